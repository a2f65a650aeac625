"""Whatever is given as input ends: in one line with exit code 2, seconds after the program has started."""

import math
import os
import resource
import subprocess
import sys

import pytest

from uqbench import lock
from uqbench.errors import ConfigError

SECONDS = 5.0  # of CPU, beyond what starting takes: other processes on the same cores do not count
WALL = 120.0  # s, for what would wait and not compute


def run(arguments: list[str], cpu: float | None = None) -> tuple[int, str, float]:
    """Run the program in a new process that is killed after some CPU time: exit code, standard error, CPU seconds."""

    def limit() -> None:
        if cpu is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), math.ceil(cpu)))

    line = [sys.executable, "-m", "uqbench", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(line, timeout=WALL, preexec_fn=limit, **quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.returncode, done.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Demand that a command line is refused in one line that names what is wrong, within the time; give the line."""
    # The same imports and an input that is refused at once.
    code, err, start = run(["train", "dataset=file", "dataset.path=/nowhere/absent.xyz"])
    assert code == 2, err
    folder = tmp_path_factory.mktemp("work")

    def check(arguments: list[str], name: str) -> str:
        code, err, _ = run([arguments[0], f"outputs={folder}", *arguments[1:]], start + SECONDS)
        assert code == 2, (code, err)
        assert err.startswith("uqbench: error: ") and err.count("\n") == 1 and name in err, err
        assert not os.listdir(folder)
        return err

    return check


@pytest.mark.parametrize("place", ["/proc/uqbench", "/dev/fd/uqbench", "/dev/null/x", "/dev/null", "long"])
def test_outputs_where_no_folder_can_be_made(refused, place, tmp_path):
    place = str(tmp_path / ("a" * 300)) if place == "long" else place
    quick = ["training.epochs=1", "uq=deterministic", "dataset.n_train=20", "dataset.n_validation=10"]
    quick += ["dataset.n_test=10", "dataset.block=10"]
    line = refused(["train", *quick, f"outputs={place}"], place)
    assert "choose a place with outputs=DIR" in line


def test_a_folder_that_others_keep_removing_is_given_up(tmp_path, monkeypatch):
    """The race with others that remove the folder is repeated, but not for ever."""
    left = []
    honest = os.open

    def open_(path, *arguments, **named):
        if str(path).endswith(lock.LOCK) and len(left) < losses:
            left.append(path)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return honest(path, *arguments, **named)

    monkeypatch.setattr(os, "open", open_)
    losses = 3
    lock.release(lock.acquire(tmp_path / "run"))
    assert len(left) == losses
    losses = 10**6
    with pytest.raises(ConfigError, match=r"cannot write to .*run: .*; choose a place with outputs=DIR"):
        lock.acquire(tmp_path / "run")
