"""Sweeps on the launchers: all jobs run, failures are listed, and the same command does only what is missing."""

import json
import signal
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins

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
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "finished\n", err
    found = failures(err)
    assert found.keys() == {"seed=13 action=pass", "seed=13 action=fail", "seed=14 action=fail"}
    assert found["seed=14 action=fail"].startswith("diverged (log: outputs/toy/d/b/u/seed14-")
    log = Path(found["seed=13 action=pass"].rpartition("traceback in ")[2].rstrip(")"))
    assert "unlucky\nseed" in log.read_text()
    process = start("toy", "-m", "hydra/launcher=joblib", "seed=14,15", "action=pass")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and sorted(out.splitlines()) == ["already done", "finished"], err
    assert sorted(path.name for path in Path().iterdir()) == ["outputs"]
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["toy"]


@pytest.mark.parametrize("chosen", [None, "3"])
def test_joblib_shares_the_cores(start, monkeypatch, chosen):
    """Two jobs at once have half of the cores each, unless the environment says otherwise."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    process = start("toy", "-m", "hydra/launcher=joblib", "seed=1,2", "action=threads")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    threads = {path.read_text() for path in Path("outputs").glob("**/threads.txt")}
    assert threads == {chosen or str(max(1, joblib.cpu_count() // 2))}


def test_joblib_loses_a_process(start):
    process = start("toy", "-m", "hydra/launcher=joblib", "action=vanish", "seed=1,2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "TerminatedWorkerError" in failures(err)["action=vanish seed=1"] and len(failures(err)) == 2


def test_joblib_is_interrupted(start):
    process = start("toy", "-m", "hydra/launcher=joblib", "action=wait,late", "seed=1,2")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert failures(err)["action=wait seed=1"] == "interrupted"
    again = start("toy", "-m", "hydra/launcher=joblib", "action=pass", "seed=1,2")
    assert again.communicate(timeout=60)[0] == "finished\n" * 2


def test_missing_plugin_names_the_extra(uqbench_main, monkeypatch):
    monkeypatch.setattr(Plugins.instance(), "discover", lambda kind: [])
    code, _, err = uqbench_main("toy", "-m", "hydra/launcher=joblib", "seed=1,2")
    expected = "hydra/launcher=joblib: its plugin is not installed; pip install 'uqbench[cluster]'"
    assert (code, err) == (2, f"uqbench: error: {expected}\n")
