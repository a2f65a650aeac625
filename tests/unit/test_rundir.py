"""Run directories: names, lock, status, atomic files, checkpoints, provenance."""

import fcntl
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from uqbench.config import digest
from uqbench.errors import CheckpointError, ConfigError, DataError, LockedError, TrainingError, UserError
from uqbench.runs import lock, run_dir, slurm
from uqbench.runs.run_dir import RunDir, atomic_write, load_checkpoint, save_checkpoint

torch = pytest.importorskip("torch")

CONFIG = OmegaConf.create({"command": "train", "seed": 3, "outputs": "o", "training": {"lr": 1e-3}})


def open_run(root: Path, config: DictConfig = CONFIG, seed: int = 3) -> RunDir:
    labels = {"command": "train", "dataset": "rmd17-ethanol", "backbone": "painn", "uq": "mve"}
    return RunDir.open(root=root / "outputs", seed=seed, config=config, **labels)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob("**/*")}


def test_path_follows_from_the_config(tmp_path):
    with open_run(tmp_path) as run:
        name = f"seed3-{digest(CONFIG)[:8]}"
        assert run.path == tmp_path / "outputs/train/rmd17-ethanol/painn/mve" / name
    config = OmegaConf.create({"x": 1})
    labels = {"command": "train", "dataset": "../a b/é", "backbone": "b", "uq": "u"}
    with RunDir.open(root=tmp_path / "outputs", seed=0, config=config, **labels) as run:
        assert run.path.parent == tmp_path / "outputs/train/a-b/b/u"
    with pytest.raises(ConfigError, match="folder name"):
        RunDir.open(root=tmp_path, seed=0, config=config, **(labels | {"uq": "/."}))


def test_life_of_a_run(tmp_path):
    with open_run(tmp_path) as run:
        assert not run.done and not run.resumed
        assert OmegaConf.load(run.path / "config.yaml") == CONFIG
        info = json.loads((run.path / "run.json").read_text())
        assert info["status"] == "running" and info["digest"] == digest(CONFIG) and info["schema"] == 1
        assert info["versions"]["torch"] == torch.__version__ and info["versions"]["python"]
        assert info["hostname"] and info["platform"] and info["cpus"] > 0 and info["peak_memory_mb"] > 1
        run.update(device="cpu", data_sha256="abc")
        run.write_json("splits.json", {"train": [1, 2]})
        run.finish()
    info = json.loads((run.path / "run.json").read_text())
    assert (info["status"], info["device"], info["data_sha256"]) == ("done", "cpu", "abc")
    assert info["started"] <= info["finished"] and info["files"].keys() == {"config.yaml", "splits.json"}
    before = {path: path.stat().st_mtime_ns for path in run.path.glob("[!.]*")}
    with open_run(tmp_path) as again:
        assert again.done and again.read_json("splits.json") == {"train": [1, 2]}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finished = run_dir.read(run.path)
    assert finished.done and finished.config == CONFIG and finished.info == info and finished.path == run.path


@pytest.mark.parametrize(
    ("error", "status", "log"),
    [
        (TrainingError("diverged"), "failed", True),
        (ValueError("x"), "failed", True),
        (KeyboardInterrupt(), "interrupted", False),
    ],
)
def test_status_after_an_error(tmp_path, error, status, log):
    with pytest.raises(type(error)), open_run(tmp_path) as run:
        raise error
    info = json.loads((run.path / "run.json").read_text())
    assert info["status"] == status and (run.path / "error.log").exists() is log
    if log:
        assert str(error) in (run.path / "error.log").read_text() and str(error) in info["error"]
        assert error.__notes__ == [str(run.path / "error.log")]
    with pytest.raises(DataError, match="has not finished; first repeat: "):
        run_dir.read(run.path)
    with open_run(tmp_path) as run:
        assert run.resumed and not (run.path / "error.log").exists()
    assert json.loads((run.path / "run.json").read_text())["status"] == "interrupted"  # left without finish()


def test_bad_input_leaves_nothing_of_a_new_run(tmp_path):
    with pytest.raises(UserError), open_run(tmp_path):
        raise DataError("no such file")
    assert tree(tmp_path) == set()


def test_bad_input_removes_nothing_that_was_there(tmp_path):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError), open_run(tmp_path):
        raise DataError("no such file")
    assert tree(tmp_path) == {"outputs"}
    with pytest.raises(UserError), open_run(tmp_path) as run:
        run.write_text("result", "precious")
        raise DataError("found late")
    assert (run.path / "result").read_text() == "precious"
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, seed=4) as run:
        raise KeyboardInterrupt
    with pytest.raises(UserError), open_run(tmp_path, seed=4) as run:
        raise DataError("second time")
    assert (run.path / "config.yaml").exists()


def test_config_that_cannot_be_resolved_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError):
        open_run(tmp_path, OmegaConf.create({"a": "${b}"}))
    assert tree(tmp_path) == set()


def test_second_opening_is_refused_until_the_first_ends(tmp_path):
    with open_run(tmp_path) as run:
        with pytest.raises(LockedError, match=f"in use by pid {os.getpid()} on host"):
            open_run(tmp_path)
        with open_run(tmp_path, seed=4):
            pass
        assert run.info["status"] == "running" and (run.path / "config.yaml").exists()
    with open_run(tmp_path):
        pass


HOLD = """
import os, sys, time
from pathlib import Path
from uqbench.runs.lock import acquire
acquire(Path(sys.argv[1]))
child = os.fork()  # such as a data loader's worker, which may outlive a killed parent
if not child:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


SLOW_DISK = """
import os, sys, time
from omegaconf import OmegaConf
from uqbench.errors import LockedError
from uqbench.runs.run_dir import RunDir
def slowly(call):
    def delayed(*arguments, **keywords):
        time.sleep(0.02)
        return call(*arguments, **keywords)
    return delayed
for name in ("open", "replace", "fsync", "mkdir", "stat"):
    setattr(os, name, slowly(getattr(os, name)))
config = OmegaConf.create({"command": "train", "seed": 3, "outputs": "o", "training": {"lr": 1e-3}})
labels = {"command": "train", "dataset": "d", "backbone": "b", "uq": "u", "seed": 3}
try:
    with RunDir.open(root=sys.argv[1], config=config, **labels) as run:
        run.write_text("winner", str(os.getpid()))
        time.sleep(4.0)
        run.finish()
        print(os.getpid())
except LockedError as error:
    assert "in use" in str(error)
"""


def test_of_several_at_once_on_a_slow_disk_one_wins(tmp_path):
    command = [sys.executable, "-c", SLOW_DISK, str(tmp_path / "outputs")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    (winner,) = [text.strip() for text in said if text]
    (path,) = tmp_path.rglob("winner")
    assert path.read_text() == winner and run_dir.read(path.parent).done


def test_a_killed_holder_leaves_no_lock_even_when_its_forked_child_lives_on(tmp_path):
    path = str(Path(run_dir.__file__).parents[2])
    line = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    holder = subprocess.Popen(line, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path})
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(LockedError, match=f"pid {holder.pid} on host"):
            lock.acquire(tmp_path / "run")
        holder.kill()
        holder.wait()
        lock.release(lock.acquire(tmp_path / "run"))
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with open_run(tmp_path) as run:
        run.finish()
    error = capsys.readouterr().err
    assert error.startswith("uqbench: warning: ") and error.count("\n") == 1


STATES = {"RUNNING": True, "PENDING": True, "UNKNOWN": True, "GONE": False, "NODE_FAIL": False, "CANCELLED": False}


@pytest.mark.parametrize(
    ("owner", "lives"),
    [
        ({"pid": os.getpid()}, True),
        ({"pid": 2**22 + 1}, False),  # above the largest that Linux gives
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "job": "7"}, False),  # this very job, before it was requeued
        *(({"host": "elsewhere", "job": state}, lives) for state, lives in STATES.items()),
    ],
)
def test_signature_counts_where_the_file_system_has_no_locks(tmp_path, monkeypatch, capsys, owner, lives):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(slurm, "state", lambda job: job)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "job": None} | owner))
    if lives:
        with pytest.raises(LockedError, match=r"is in use by pid .*; if that is gone, delete .*\.lock"):
            lock.acquire(tmp_path)
        return
    lock.release(lock.acquire(tmp_path))
    assert (tmp_path / ".lock").read_text() == "", "a lock that was given back is nobody's"
    lock.release(lock.acquire(tmp_path))


def test_lock_names_the_job_that_holds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    held = lock.acquire(tmp_path)
    with pytest.raises(LockedError, match=rf"in use by pid {os.getpid()} on host .* \(SLURM job 7\)"):
        lock.acquire(tmp_path)
    lock.release(held)


def test_damage_is_one_clear_line(tmp_path):
    with open_run(tmp_path) as run:
        run.write_text("metrics.csv", "a\n1\n")
        run.finish()
    with pytest.raises(DataError, match=f"{tmp_path}/outputs: not a run directory; runs below it: {run.path}"):
        run_dir.read(tmp_path / "outputs")
    with pytest.raises(DataError, match="no such run"):
        run_dir.read(tmp_path / "nowhere")
    stored = {name: (run.path / name).read_text() for name in ("metrics.csv", "run.json", "config.yaml")}
    for name, text in stored.items():
        for damage in (text[:3], "", "[]", None):
            (run.path / name).unlink() if damage is None else (run.path / name).write_text(damage)
            for attempt in (lambda: run_dir.read(run.path), lambda: open_run(tmp_path)):
                if (name, damage) == ("run.json", None):
                    continue  # no run is left to be damaged
                with pytest.raises(UserError) as caught:
                    attempt()
                assert "\n" not in str(caught.value) and str(run.path) in str(caught.value)
        (run.path / name).write_text(text)
    assert run_dir.read(run.path).done


def test_config_that_was_edited_is_refused(tmp_path):
    with open_run(tmp_path) as run:
        pass
    (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text().replace("0.001", "0.002"))
    with pytest.raises(ConfigError, match="differs from the config of this command"):
        open_run(tmp_path)


def test_what_was_edited_in_the_config_of_a_finished_run_is_named(tmp_path):
    with open_run(tmp_path) as run:
        run.write_text("best.pt", "weights")
        run.finish()
    path = run.path / "config.yaml"
    before = path.read_text()
    changes = {
        ("0.001", "0.002"): "training.lr is 0.002, was 0.001",
        ("lr: 0.001", "rate: 0.1"): "training.lr is missing, was 0.001; training.rate is 0.1, was missing",
        ("0.001", "${nowhere}"): "training.lr is ${nowhere}, was 0.001",
        ("seed: 3", "seed: 3\nsede: 4"): "sede is 4, was missing",
    }
    for (old, new), expected in changes.items():
        path.write_text(before.replace(old, new))
        assert path.read_text() != before
        with pytest.raises(DataError) as caught:
            run_dir.read(run.path)
        told = str(caught.value).partition(f"{path}: ")[2].rpartition("; restore")[0]
        assert told == f"changed since the run finished and best.pt was made: {expected}"


def test_a_finished_run_is_found_by_its_config_alone(tmp_path):
    config = OmegaConf.merge(CONFIG, {"outputs": str(tmp_path / "outputs"), "data_root": "here"})
    assert run_dir.find_done(config) is None
    with open_run(tmp_path, config) as run:
        assert run_dir.find_done(config) is None
        run.write_text("metrics.csv", "")
        run.finish()
    assert run_dir.find_done(config).config == config
    assert run_dir.find_done(OmegaConf.merge(config, {"data_root": "there"})).config == config  # cannot change a result
    assert run_dir.find_done(OmegaConf.merge(config, {"training": {"lr": 2e-3}})) is None
    stored = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(stored.replace("0.001", "0.002"))
    assert run_dir.find_done(config) is None
    (run.path / "config.yaml").write_text(stored)
    (run.path / "metrics.csv").unlink()
    assert run_dir.find_done(config) is None


def test_seconds_accumulate_over_launches_and_survive_a_kill(tmp_path):
    with open_run(tmp_path) as run:
        run.add_seconds("train", 100.0)
    with open_run(tmp_path) as run, run.stage("train"):
        time.sleep(0.05)
        run.save_checkpoint("last.pt", {})
        stored = json.loads((run.path / "run.json").read_text())  # what a kill would leave here
        assert 100.05 <= stored["seconds"]["train"] < 101
        run.update()
    assert 100.05 <= run.info["seconds"]["train"] < 101
    assert len(run.info["launches"]) == 2


def test_tables_round_trip(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"epoch": [1, 2], "loss": [0.1 + 0.2, 1e-17]})
    with open_run(tmp_path) as run:
        run.write_csv("history.csv", table)
        run.write_parquet("rows.parquet", table)
        pandas.testing.assert_frame_equal(run.read_csv("history.csv"), table, check_exact=True)
        pandas.testing.assert_frame_equal(pandas.read_parquet(run.path / "rows.parquet"), table, check_exact=True)
        with pytest.raises(DataError, match="missing"):
            run.read_csv("absent.csv")


def test_rows_are_read_by_their_columns(tmp_path):
    with open_run(tmp_path) as run:
        run.write_text("rows.csv", 'n,name,rest\n1,"a,é",x\n2,,y\n')
    assert run.read_rows("rows.csv", {"name": str, "n": int}) == [{"name": "a,é", "n": 1}, {"name": "", "n": 2}]
    for columns in ({"name": int}, {"absent": str}):
        with pytest.raises(DataError, match="rows.csv: damaged"):
            run.read_rows("rows.csv", columns)
    with pytest.raises(DataError, match="missing"):
        run.read_rows("absent.csv", {"n": int})


def test_atomic_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert tree(tmp_path) == {"file"} and path.read_text() == "old"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == {"file"} and path.read_text() == "new"


def test_leftovers_of_a_kill_are_swept(tmp_path):
    with open_run(tmp_path) as run:
        (run.path / ".last.pt.1234.tmp").write_text("half")
    with open_run(tmp_path):
        assert not list(run.path.glob("*.tmp")) and not list(run.path.glob(".*.tmp"))


CONTENT = {
    "weights": {"a.b": torch.arange(6, dtype=torch.float64).reshape(2, 3), 0: torch.tensor([True])},
    "list": [1, 2.5, None, "text", (1, (2,))],
    "bfloat": torch.ones(2, dtype=torch.bfloat16),
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_checkpoint_round_trip(tmp_path):
    save_checkpoint(tmp_path / "c.pt", CONTENT)
    assert same(load_checkpoint(tmp_path / "c.pt"), CONTENT)
    model = torch.nn.Linear(2, 3)
    save_checkpoint(tmp_path / "c.pt", model.state_dict())
    model.load_state_dict(load_checkpoint(tmp_path / "c.pt"))


def test_checkpoint_bytes_depend_on_the_values_alone(tmp_path):
    """Resuming must give the same bits; pickle and torch.save look at names, identities and storages by themselves."""
    shared = torch.zeros(4)
    text = "".join(["a", "bc"])
    one = {"x": shared[:2], "y": shared[2:], "s": text, "t": text, "p": torch.nn.Parameter(torch.ones(1))}
    other = {"x": torch.zeros(2), "y": torch.zeros(2), "s": "abc", "t": "".join(["ab", "c"]), "p": torch.ones(1)}
    save_checkpoint(tmp_path / "one.pt", one)
    save_checkpoint(tmp_path / "another name.pt", other)
    save_checkpoint(tmp_path / "third.pt", load_checkpoint(tmp_path / "one.pt"))
    first, *others = (path.read_bytes() for path in tmp_path.iterdir())
    assert others == [first, first]


@pytest.mark.parametrize("value", [object(), {1.5: 1}, {"a": [{"b": set()}]}, torch.nn.Linear(1, 1), Path("x")])
def test_save_checkpoint_takes_plain_values_only(tmp_path, value):
    with pytest.raises(TypeError, match="checkpoint"):
        save_checkpoint(tmp_path / "c.pt", value)
    assert tree(tmp_path) == set()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("EVIL",)


def test_load_checkpoint_refuses_everything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.pt"
    save_checkpoint(good, CONTENT)
    data = good.read_bytes()
    cases = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "text": b"not a checkpoint",
        "pickle": pickle.dumps(Malicious()),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    torch.save(Malicious(), "malicious")
    torch.save({"format": "uqbench-checkpoint", "version": 1, "content": Malicious()}, "disguised")
    torch.save(Malicious(), "legacy", _use_new_zipfile_serialization=False)
    torch.save({"weights": torch.ones(1)}, "foreign")
    torch.save({"format": "uqbench-checkpoint", "version": 99, "content": 1}, "future")
    messages = {}
    for name in [*cases, "malicious", "disguised", "legacy", "foreign", "future", "absent"]:
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / name)
        messages[name] = str(caught.value)
        assert "\n" not in messages[name] and name in messages[name]
    assert "refused" in messages["malicious"] and "refused" in messages["disguised"]
    assert "not a uqbench checkpoint" in messages["foreign"] and "version 99" in messages["future"]
    assert not (tmp_path / "EVIL").exists()
    flipped = bytearray(data)
    flipped[data.index(bytes(CONTENT["weights"]["a.b"].numpy().tobytes())) + 9] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "flipped")


def test_scratch_removes_what_a_killed_process_left(tmp_path):
    code = "import os, sys; from uqbench.runs.run_dir import scratch; block = scratch(sys.argv[1]); "
    code += "folder = block.__enter__(); (folder / '0.json').touch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.glob(".sweep-*")
    (tmp_path / ".sweep-queued" / ".submitit").mkdir(parents=True)
    with run_dir.scratch(tmp_path) as working:
        assert not left.exists()
        with run_dir.scratch(tmp_path) as other:
            assert working.is_dir() and other != working, "that of a sweep at work stays"
    assert [folder.name for folder in tmp_path.iterdir()] == [".sweep-queued"], "jobs may wait for it"


def test_scratch_cleans_up(tmp_path):
    with run_dir.scratch(tmp_path / "a/b") as folder:
        (folder / "x").write_text("")
        assert folder.parent == tmp_path / "a/b"
    assert tree(tmp_path) == set()
