"""Sweeps on the launchers: all jobs run, failures are listed, and the same command does only what is missing."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from uqbench.runs import slurm

joblib = pytest.importorskip("joblib", reason="needs the extra `cluster`")


def finished() -> set[str]:
    """Labels of the runs that are done."""
    infos = [json.loads(path.read_text()) for path in Path("outputs").glob("**/run.json")]
    return {info["command"].partition("toy ")[2] for info in infos if info["status"] == "done"}


def failures(err: str) -> dict[str, str]:
    """Reason of every job in the list at the end."""
    lines = err[err.index("jobs failed; ") :].splitlines()[1:]
    return dict(line.removeprefix("uqbench: error:   ").split(": ", 1) for line in lines)


def test_joblib_runs_all_jobs_and_lists_failures(start):
    argv = ["toy", "-m", "hydra/launcher=joblib", "seed=13,14", "action=pass,fail"]
    process = start(*argv)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == "finished\n", err
    found = failures(err)
    assert found.keys() == {"seed=13 action=pass", "seed=13 action=fail", "seed=14 action=fail"}
    assert found["seed=14 action=fail"].startswith("diverged (log: outputs/toy/d/b/u/seed14-")
    log = Path(found["seed=13 action=pass"].rpartition("traceback in ")[2].rstrip(")"))
    assert "unlucky\nseed" in log.read_text()
    process = start("toy", "-m", "hydra/launcher=joblib", "seed=14,15", "action=pass")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and sorted(out.splitlines()) == ["already done", "finished"], err
    assert sorted(path.name for path in Path().iterdir()) == ["outputs"]
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["toy"]


def test_joblib_shares_the_cores(start, monkeypatch):
    """Two jobs at once have half of the cores each."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    process = start("toy", "-m", "hydra/launcher=joblib", "seed=1,2", "action=threads")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    threads = {path.read_text() for path in Path("outputs").glob("**/threads.txt")}
    assert threads == {str(max(1, joblib.cpu_count() // 2))}


def test_joblib_loses_a_process(start):
    process = start("toy", "-m", "hydra/launcher=joblib", "action=vanish", "seed=1,2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "TerminatedWorkerError" in failures(err)["action=vanish seed=1"] and len(failures(err)) == 2


def test_joblib_is_interrupted(start):
    process = start("toy", "-m", "hydra/launcher=joblib", "action=wait,late", "seed=1,2")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    assert failures(err)["action=wait seed=1"] == "interrupted"
    again = start("toy", "-m", "hydra/launcher=joblib", "action=pass", "seed=1,2")
    assert again.communicate(timeout=120)[0] == "finished\n" * 2


def test_missing_plugin_names_the_extra(uqbench_main, monkeypatch):
    discover = Plugins.instance().discover
    monkeypatch.setattr(Plugins.instance(), "discover", lambda kind: [] if kind is Launcher else discover(kind))
    code, _, err = uqbench_main("toy", "-m", "hydra/launcher=joblib", "seed=1,2")
    expected = "hydra/launcher=joblib: its plugin is not installed; pip install 'uqbench[cluster]'"
    assert (code, err) == (2, f"uqbench: error: {expected}\n")


LOCAL = ["-m", "hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.poll_s=0.1"]


def test_submitit_runs_all_jobs_and_lists_failures(start):
    """One is told to stop in mid-run, is run again and finishes; two fail in their own ways."""
    process = start("toy", *LOCAL, "action=pass,fail,vanish,yield")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == "", err
    found = failures(err)
    assert found.keys() == {"action=fail", "action=vanish"}
    assert found["action=fail"].startswith("diverged (log: outputs/toy/d/b/u/seed0-")
    assert found["action=vanish"].startswith("lost: job ") and " ended as FAILED (log: " in found["action=vanish"]
    log = Path(found["action=vanish"].rpartition("(log: ")[2].rstrip(")"))
    assert log.parent == Path("outputs/slurm") and "job 2: action=vanish" in log.read_text()
    infos = {info["config"]: info for info in map(described, Path("outputs").glob("**/run.json"))}
    assert {action: info["status"] for action, info in infos.items()} == {
        **{"pass": "done", "fail": "failed", "vanish": "running", "yield": "done"}
    }
    assert {action: len(info["launches"]) for action, info in infos.items()} == {
        **{"pass": 1, "fail": 1, "vanish": 1, "yield": 2}
    }
    assert {path.suffix for path in Path("outputs/slurm").iterdir()} == {".err", ".out"}
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["slurm", "toy"]


def described(path: Path) -> dict:
    """A run's record, and what it was told to do."""
    [line] = [line for line in (path.parent / "config.yaml").read_text().splitlines() if line.startswith("action: ")]
    return json.loads(path.read_text()) | {"config": line.removeprefix("action: ")}


def test_submitit_is_interrupted(start):
    process = start("toy", *LOCAL, "action=wait", "seed=1,2")
    logs = []
    while sum("waiting" in log.read_text() for log in logs) < 2:
        assert process.poll() is None
        logs = list(Path("outputs/slurm").glob("*.out"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and failures(err).keys() == {"action=wait seed=1", "action=wait seed=2"}
    statuses = {json.loads(path.read_text())["status"] for path in Path("outputs").glob("**/run.json")}
    assert statuses == {"interrupted"}
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["slurm", "toy"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("hydra.launcher.signal_delay_s=240", "hydra.launcher.signal_delay_s: must be less than time_min"),
        ("hydra.launcher.cluster=none", "hydra/launcher=slurm: AutoExecutor doesn't know any executor named none"),
        ("hydra.launcher.qos=null", 'hydra/launcher=slurm: Could not detect "srun"'),
    ],
)
def test_slurm_that_cannot_be_used_is_one_line(uqbench_main, monkeypatch, change, reason):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = uqbench_main("toy", "-m", "hydra/launcher=slurm", "hydra.launcher.time_min=4", change, "seed=1,2")
    assert code == 2 and err.startswith(f"uqbench: error: {reason}") and err.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.parametrize("folder", ["outputs/slurm", "outputs", "logs/%j"])
def test_submitit_unpickles_nothing_that_others_can_write(uqbench_main, folder):
    given = [] if folder.startswith("outputs") else [f"hydra.launcher.folder={folder}"]
    opened = Path(folder.removesuffix("/%j"))
    opened.mkdir(parents=True)
    opened.chmod(0o777)
    code, _, err = uqbench_main("toy", *LOCAL, *given, "seed=1,2")
    found = f"hydra/launcher=slurm: {opened.absolute()} can be written by others (mode 777)"
    assert code == 2 and err.startswith(f"uqbench: error: {found}") and err.count("\n") == 1, err
    assert "choose another outputs=DIR" in err
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_submitit_with_an_umask_for_groups(start):
    """Runs are as open as all else that this user makes; what is unpickled is not."""
    before = os.umask(0o002)
    try:
        process = start("toy", *LOCAL, "action=pass", "seed=1,2")
    finally:
        os.umask(before)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert {path.stat().st_mode & 0o777 for path in Path("outputs").glob("**/result.txt")} == {0o664}
    assert {path.stat().st_mode & 0o022 for path in Path("outputs/slurm").iterdir()} == {0}


@pytest.mark.parametrize(
    ("state", "restarts", "goes_on"), [("RUNNING", 0, True), ("RUNNING", 3, False), ("CANCELLED", 0, False)]
)
def test_only_a_running_job_is_requeued_and_not_for_ever(monkeypatch, state, restarts, goes_on):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    monkeypatch.setattr(slurm, "state", {"7": state}.get)
    assert slurm_launcher(max_requeues=3)._goes_on() == goes_on


def slurm_launcher(**changes: object) -> Launcher:
    """The launcher as its YAML describes it, with some values changed."""
    from hydra_plugins.uqbench_launchers import SlurmLauncher

    written = OmegaConf.load(Path(__file__).parents[2] / "conf/hydra/launcher/slurm.yaml")
    settings = {key: written._get_node(key)._value() for key in written if key != "_target_"}
    return SlurmLauncher(**settings | {"setup": []} | changes)


def test_slurm_may_forget_what_has_ended(monkeypatch):
    answers = iter([["RUNNING", "CANCELLED"], ["RUNNING", "UNKNOWN"], ["UNKNOWN", "GONE"], ["COMPLETED", "GONE"]])
    monkeypatch.setattr(slurm, "states_of", lambda *_: next(answers))
    assert slurm_launcher(poll_s=0.0)._wait([None, None]) == ["COMPLETED", "CANCELLED"]


def test_states_of_slurm(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    squeue.write_text("#!/bin/sh\nprintf '7_0 RUNNING\\n7_1 NODE_FAIL\\n8 PENDING\\n'\n")
    squeue.chmod(0o755)
    assert slurm.states(["7_1", "7_0", "9"]) == ["NODE_FAIL", "RUNNING", slurm.GONE]
    squeue.write_text("#!/bin/sh\necho RUNNING\n")
    assert slurm.state("7") == "RUNNING"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert slurm.state("7") == slurm.GONE
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    assert slurm.states(["7", "8"]) == [slurm.UNKNOWN] * 2 and slurm.state("7") == slurm.UNKNOWN
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.state("7") == slurm.UNKNOWN


def has_slurm() -> bool:
    return bool(shutil.which("sbatch")) and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_slurm(), reason="needs SLURM: scripts/slurm_local.sh start")
def test_real_slurm(start):
    """One is told to stop, which SLURM starts again; one loses its process; one is cancelled."""
    small = ["hydra.launcher.cpus=1", "hydra.launcher.mem_gb=1", "hydra.launcher.poll_s=0.5"]
    process = start("toy", "-m", "hydra/launcher=slurm", *small, "action=pass,vanish,wait")
    while not any("waiting" in log.read_text() for log in Path("outputs").glob("slurm/*_2_0_log.out")):
        assert process.poll() is None, process.communicate()[1]
    [log] = Path("outputs").glob("slurm/*_2_0_log.out")
    job = log.name.removesuffix("_0_log.out")
    subprocess.run(["scancel", job], check=True)
    _, err = process.communicate(timeout=120)
    found = failures(err)
    assert process.returncode == 1 and found.keys() == {"action=vanish", "action=wait"}, err
    assert found["action=wait"].startswith(f"interrupted: job {job} ended as CANCELLED (log: outputs/slurm/{job}_0_")
    assert " ended as FAILED " in found["action=vanish"]
    again = start("toy", "-m", "hydra/launcher=slurm", *small, "action=pass")
    assert again.wait(timeout=120) == 0
