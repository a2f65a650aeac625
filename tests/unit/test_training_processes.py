"""Training in several processes, and in one that is killed."""

import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import assert_equal_runs, fit, weights

pytestmark = pytest.mark.slow


def test_two_processes_follow_the_curve_of_one(ethanol, tmp_path):
    parts = ethanol[:24], ethanol[24:36]
    one = fit(parts, tmp_path / "one", batch_size=5, devices=1)
    two = fit(parts, tmp_path / "two", batch_size=5, devices=2)
    # Fabric hands the terms of each step on in single precision, and each process rounds its own share of them.
    pd.testing.assert_frame_equal(one, two, rtol=8 * float(np.finfo(np.float32).eps))
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(a[name].double(), b[name].double(), rtol=1e-4, atol=1e-7) for name in a)


def test_kill_in_mid_training_changes_nothing(tmp_path, program):
    """The command line as a user has it: kill -9, the same command again, the same bits as without the kill."""
    command = [
        "train", "uq.members=2", "dataset.n_train=40", "dataset.n_validation=10", "dataset.n_test=10",
        "backbone.features=8", "training.epochs=12", "training.checkpoint_seconds=0", "evaluation.bootstrap=0",
    ]  # fmt: skip
    uncut = program.start([*command, f"outputs={tmp_path / 'uncut'}"], figures=False)
    assert uncut.wait() == 0, uncut.err
    cut = program.start([*command, f"outputs={tmp_path / 'cut'}"], figures=False)
    while not (history := list(tmp_path.glob("cut/**/history.csv"))) or len(history[0].read_text().splitlines()) < 4:
        assert cut.poll() is None, cut.err
        time.sleep(0.005)
    cut.kill()
    assert cut.wait() == -signal.SIGKILL
    assert len(history[0].read_text().splitlines()) < 13, "the run ended before it was killed"
    again = program.start([*command, f"outputs={tmp_path / 'cut'}"], figures=False)
    assert again.wait() == 0, again.err
    (first,), (second,) = tmp_path.glob("uncut/**/best.pt"), tmp_path.glob("cut/**/best.pt")
    assert_equal_runs(first.parent, second.parent)
    assert "Forces" in again.out
