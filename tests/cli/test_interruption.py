"""A training that is told to stop, and told again, and then left alone: the same bits as one that never was."""

import json
import os
import signal

import torch

from uqbench.cli import main
from uqbench.runs.run_dir import load_checkpoint
from uqbench.training import loop

COMMAND = [
    *("train", "uq=mve", "dataset.n_train=20", "dataset.n_validation=10", "dataset.n_test=12", "backbone.features=8"),
    *("training.epochs=3", "training.checkpoint_seconds=1000", "training.batch_size=2"),
    *("evaluation.bootstrap=5", "evaluation.ideal_draws=1"),
]


def test_sigterm_and_sigusr1_cost_no_step(tmp_path, monkeypatch, capsys, without_figures):
    original, steps = loop.check_finite, []

    def signalling(*arguments):
        original(*arguments)
        steps.append(1)
        if len(steps) in signals:
            os.kill(os.getpid(), signals[len(steps)])

    signals = {13: signal.SIGTERM, 17: signal.SIGUSR1}  # within the second epoch of ten steps each
    monkeypatch.setattr(loop, "check_finite", signalling)
    for launches, done in enumerate(signals, start=1):
        assert main([*COMMAND, f"outputs={tmp_path / 'cut'}"]) == 130
        assert capsys.readouterr().err.endswith("uqbench: interrupted; the same command goes on from here\n")
        [run] = (tmp_path / "cut").glob("train/*/*/*/seed0-*")
        info = json.loads((run / "run.json").read_text())
        assert info["status"] == "interrupted" and len(info["launches"]) == launches
        state = load_checkpoint(run / "last.pt")["state"]
        assert (state["epoch"], state["step"]) == divmod(done, 10)
    # A process that is killed writes its checkpoints, but not how long it took.
    (run / "run.json").write_text(json.dumps(info | {"seconds": {}}))
    assert main([*COMMAND, f"outputs={tmp_path / 'cut'}"]) == 0
    assert json.loads((run / "run.json").read_text())["seconds"]["train"] > state["seconds"] > 0
    assert len(steps) == 30
    assert main([*COMMAND, f"outputs={tmp_path / 'uncut'}"]) == 0
    [uncut] = (tmp_path / "uncut").glob("train/*/*/*/seed0-*")
    assert uncut.name == run.name
    for name in ("history.csv", "predictions_test.parquet"):
        assert (run / name).read_bytes() == (uncut / name).read_bytes()
    first, second = (load_checkpoint(folder / "best.pt")["method"] for folder in (run, uncut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
