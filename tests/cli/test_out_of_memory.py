"""Trainings that do not fit into memory: refused beforehand in one line, or continued to the same bits afterwards."""

import json
import re

import pytest
import torch

from uqbench.cli import main
from uqbench.runs import memory
from uqbench.runs.memory import Available
from uqbench.runs.run_dir import load_checkpoint
from uqbench.training import loop

COMMAND = [
    *("train", "uq=mve", "dataset.n_train=20", "dataset.n_validation=10", "dataset.n_test=12", "backbone.features=8"),
    *("training.epochs=2", "training.checkpoint_seconds=0", "training.batch_size=4"),
    *("evaluation.bootstrap=5", "evaluation.ideal_draws=1"),
]
TORCH = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"


def limited(monkeypatch, size):
    monkeypatch.setattr(memory, "available", lambda device="cpu": Available(size, "of this test"))


@pytest.mark.parametrize(
    ("size", "changes", "line"),
    [
        (
            20_000_000,
            ["training.batch_size=1000000000000", "backbone.features=64", "dataset.n_train=100", "kernels=torch"],
            r"training\.batch_size: 1000000000000 frames a step need about [\d.]+ [GM]B, but 20 MB are available "
            r"\(of this test\); the largest batch_size sure to fit is [1-9]\d?",
        ),
        (
            4_000_000,
            ["backbone.features=64", "kernels=torch"],
            r"training\.batch_size: 4 frames a step need about \d+ MB, but 4 MB are available \(of this test\); "
            r"not even one frame fits: choose .*",
        ),
    ],
)
def test_what_cannot_fit_is_refused_and_leaves_nothing(size, changes, line, tmp_path, monkeypatch, capsys):
    limited(monkeypatch, size)
    assert main([*COMMAND, *changes, f"outputs={tmp_path / 'runs'}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"uqbench: error: {line}", error), error
    assert not (tmp_path / "runs").exists()


def test_absurd_sizes_are_no_alarm(tmp_path, capsys, without_figures):
    absurd = ["training.batch_size=1000000000000", "evaluation.batch_size=1000000000000", "training.epochs=1"]
    assert main([*COMMAND, *absurd, f"outputs={tmp_path}"]) == 0
    assert main([*COMMAND, "backbone.features=1000000000000", f"outputs={tmp_path}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("uqbench: error: backbone: its weights do not fit into")


def test_the_batch_size_that_is_named_fits(tmp_path, program):
    """A process that may not take more is told what it can take, and takes it."""
    frames = ["dataset.n_train=120", "dataset.n_validation=10", "backbone.features=32", "kernels=torch", "uq=ensemble"]
    command = [*COMMAND, *frames, "training.epochs=1", f"outputs={tmp_path}"]
    given = {"memory": 150_000_000, "figures": False}
    refused = program.start([*command, "training.batch_size=120"], **given)
    assert refused.wait() == 2
    [line] = refused.err.splitlines()
    assert "available (under ulimit -d)" in line and not list(tmp_path.iterdir())
    batch_size = int(re.search(r"sure to fit is (\d+)$", line)[1])
    assert 10 < batch_size < 120
    process = program.start([*command, f"training.batch_size={batch_size}"], **given)
    assert process.wait() == 0, process.err


def test_a_run_that_ran_out_of_memory_is_continued_to_the_same_bits(tmp_path, monkeypatch, capsys, without_figures):
    original, steps = loop.check_finite, []

    def failing(*arguments):
        original(*arguments)
        steps.append(1)
        if len(steps) == 8:  # within the second epoch
            raise RuntimeError(TORCH)

    monkeypatch.setattr(loop, "check_finite", failing)
    assert main([*COMMAND, f"outputs={tmp_path / 'cut'}"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uqbench:")]
    pattern = (
        r"uqbench: error: training ran out of memory with training\.batch_size=4; training\.batch_size=2 would fit "
        r"into the [\d.]+ GB that are available \(.*\); with more memory the same command goes on from the last "
        r"checkpoint"
    )
    assert re.fullmatch(pattern, line), line
    [run] = (tmp_path / "cut").glob("train/*/*/*/seed0-*")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert load_checkpoint(run / "last.pt")["state"]["epoch"] == 1
    assert "Traceback" in (run / "error.log").read_text()
    for folder in ("cut", "uncut"):
        assert main([*COMMAND, f"outputs={tmp_path / folder}"]) == 0
    [uncut] = (tmp_path / "uncut").glob("train/*/*/*/seed0-*")
    for name in ("history.csv", "predictions_test.parquet"):
        assert (run / name).read_bytes() == (uncut / name).read_bytes()
    first, second = (load_checkpoint(folder / "best.pt")["method"] for folder in (run, uncut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
