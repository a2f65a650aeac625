"""A training that is told to stop, and told again, and then left alone: the same bits as one that never was."""

import json
import signal
import subprocess
import sys

import torch

from uqbench.rundir import load_checkpoint

COMMAND = [
    *(sys.executable, "-m", "uqbench", "train", "uq=mve", "dataset.n_train=60", "dataset.n_validation=10"),
    *("dataset.n_test=12", "backbone.features=8", "training.epochs=8", "training.checkpoint_seconds=1000"),
    *("training.batch_size=2", "evaluation.bootstrap=5", "evaluation.ideal_draws=1"),
]


def launch(outputs, stop: int | None = None) -> tuple[int, str]:
    """Start the command, stop it by a signal in the middle of an epoch, and return exit code and standard error."""
    command = [*COMMAND, f"outputs={outputs}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        err = ""
        while stop and "epoch " not in err:
            line = process.stderr.readline()
            assert line, err
            err += line
        if stop:
            process.send_signal(stop)
        err += process.communicate(timeout=60)[1]
    return process.returncode, err


def test_sigterm_and_sigusr1_cost_no_step(tmp_path):
    launches = {signal.SIGTERM: 1, signal.SIGUSR1: 2}
    for number, count in launches.items():
        code, err = launch(tmp_path / "cut", number)
        assert code == 130 and "Traceback" not in err and "the same command goes on from here" in err, err
        [run] = (tmp_path / "cut").glob("train/*/*/*/seed0-*")
        info = json.loads((run / "run.json").read_text())
        assert info["status"] == "interrupted" and len(info["launches"]) == count
        state = load_checkpoint(run / "last.pt")["state"]
        assert 0 < state["epoch"] < 8
    for outputs in ("cut", "whole"):
        code, err = launch(tmp_path / outputs)
        assert code == 0, err
    [whole] = (tmp_path / "whole").glob("train/*/*/*/seed0-*")
    assert whole.name == run.name
    for name in ("history.csv", "predictions_test.parquet"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    cut, uncut = (load_checkpoint(folder / "best.pt")["method"] for folder in (run, whole))
    assert cut.keys() == uncut.keys() and all(torch.equal(cut[name], uncut[name]) for name in cut)
