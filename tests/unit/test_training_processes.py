"""Training in several processes, and in one that is killed."""

import signal
import subprocess
import sys
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


def test_kill_in_mid_training_changes_nothing(tmp_path):
    """The command line as a user has it: kill -9, the same command again, the same bits as without the kill."""
    command = [
        sys.executable, "-m", "uqbench", "train", "uq.members=2", "dataset.n_train=40", "dataset.n_validation=10",
        "dataset.n_test=10", "backbone.features=8", "training.epochs=30", "training.checkpoint_seconds=0",
        "evaluation.bootstrap=0",
    ]  # fmt: skip
    subprocess.run([*command, f"outputs={tmp_path / 'whole'}"], check=True, capture_output=True)
    cut = subprocess.Popen([*command, f"outputs={tmp_path / 'cut'}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (history := list(tmp_path.glob("cut/**/history.csv"))) or len(history[0].read_text().splitlines()) < 4:
        assert cut.poll() is None, cut.stderr.read()
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.communicate()
    assert len(history[0].read_text().splitlines()) < 31, "the run ended before it was killed"
    again = subprocess.run([*command, f"outputs={tmp_path / 'cut'}"], check=True, capture_output=True, text=True)
    (whole,), (cut_run,) = tmp_path.glob("whole/**/best.pt"), tmp_path.glob("cut/**/best.pt")
    assert_equal_runs(whole.parent, cut_run.parent)
    assert "Forces" in again.stdout
