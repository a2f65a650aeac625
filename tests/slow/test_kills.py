"""kill -9 at random moments: the command that is repeated ends with the bits of an undisturbed one.

`make test` kills a training once; `make test-kills` all commands, as often as UQBENCH_KILLS says, and shows the table.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("UQBENCH_KILLS", "0"))
SMALL = ["backbone.features=8", "backbone.layers=1", "training.epochs=6", "evaluation.bootstrap=4"]
SMALL += ["evaluation.ideal_draws=1", "evaluations.out_of_domain=null"]
FRAMES = ["dataset.n_train=20", "dataset.n_validation=10", "dataset.n_test=10", "dataset.block=10"]
PLAIN = ["train", "uq=deterministic", *SMALL, *FRAMES]
AMMONIA = ["dataset=ammonia", "oracle=xtb", "al.generations=2", "al.proposals=4", "al.batch=2", "acquisition.steps=5"]
# By name: what is there before, and the command that is killed.
COMMANDS = {
    "train": ([], ["train", "uq=mve", *SMALL, *FRAMES]),
    "fit": ([PLAIN], ["fit", "run={run}", "uq=gmm"]),
    "al": ([], ["al", "uq=gmm", "oracle.cache=labels", *AMMONIA, *SMALL]),
    "sweep": ([], ["train", "-m", "uq=mve,gmm", *SMALL, *FRAMES, "hydra/launcher=joblib"]),
    "report": (
        [["train", "-m", "uq=mve,gmm", "seed=0,1", *SMALL, *FRAMES]],
        ["report", "runs=outputs", "output=report"],
    ),
}
# What says when, where and for how long something ran, or in how much memory; a process that is killed does not write
# how long it took. In tables of metrics these are the rows of target `cost`, in last.pt the `seconds`.
SAYS_WHEN = {"run.json"}
NOT_OF_RUNS = {".lock"}
LEFT = "*.tmp"  # half a file of a process that was killed; it has another name and is taken for nothing


def flat(value, path=""):
    """Every number and tensor of nested containers by its path, without the seconds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
        return
    for key, item in items:
        if key != "seconds":
            yield from flat(item, f"{path}/{key}")


def contents(folder):
    """Every file by its name, without what says when and for how long."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name in SAYS_WHEN | NOT_OF_RUNS or path.match(LEFT):
            continue
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.stat().st_size > 1 else pd.DataFrame()
            if "target" in table:
                table = table[table["target"] != "cost"]
            files[name] = table.to_csv(index=False)
        elif path.suffix == ".pt":
            files[name] = dict(flat(torch.load(path, weights_only=True)))
        else:
            files[name] = path.read_bytes()
    return files


def prepared(program, folder, commands):
    folder.mkdir()
    for command in commands:
        process = program.start(command, figures=False, folder=str(folder))
        assert process.wait() == 0, process.err


class Started:
    """The program in an interpreter of its own, as joblib needs it, with the methods of a fork."""

    def __init__(self, command, folder):
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]
        script = "import sys; from uqbench.cli import main; sys.exit(main())"
        out, err = self._streams
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *command], cwd=folder, stdout=out, stderr=err, start_new_session=True
        )
        self.pid, self.poll, self.wait = self._process.pid, self._process.poll, self._process.wait

    @property
    def err(self):
        self._streams[1].seek(0)
        return self._streams[1].read()


def start(program, command, folder):
    if any("joblib" in word for word in command):
        return Started(command, folder)
    return program.start(command, figures=False, folder=str(folder))


def completed(program, command, folder, patience=60.0):
    """Repeat a command until nobody else works on its runs: orphans of a killed sweep end by themselves."""
    deadline = time.monotonic() + patience
    while True:
        process = start(program, command, folder)
        code = process.wait()
        if code == 0 or "in use" not in process.err or time.monotonic() > deadline:
            return code, process
        time.sleep(0.5)


@pytest.mark.parametrize("name", COMMANDS if KILLS else ["train"])
def test_killed_anywhere_the_repeated_command_ends_with_the_same_bits(name, program, tmp_path):
    if name == "al":
        pytest.importorskip("tblite", reason="the oracle needs the extra xtb")
    before, command = COMMANDS[name]
    prepared(program, tmp_path / "start", before)
    run = next((path.parent for path in (tmp_path / "start").rglob("deterministic/*/run.json")), None)
    command = [word.format(run=run and run.relative_to(tmp_path / "start")) for word in command]
    shutil.copytree(tmp_path / "start", tmp_path / "undisturbed")
    began = time.monotonic()
    assert completed(program, command, tmp_path / "undisturbed")[0] == 0
    duration = time.monotonic() - began
    expected = contents(tmp_path / "undisturbed")
    assert expected
    moments = random.Random(0)
    for k in range(max(KILLS, 1)):
        folder = tmp_path / str(k)
        # Now the whole group, as at the end of a job, and now the process alone, which leaves its workers behind.
        kill = os.killpg if k % 2 else os.kill
        while True:
            shutil.copytree(tmp_path / "start", folder)
            process = start(program, command, folder)
            moment = moments.uniform(0.0, duration)
            time.sleep(moment)
            if process.poll() is None:
                break
            shutil.rmtree(folder)  # it was faster than the first one
        kill(process.pid, signal.SIGKILL)
        process.wait()
        left = sorted(json.loads(path.read_text())["status"] for path in folder.rglob("run.json"))
        code, again = completed(program, command, folder)
        assert code == 0, again.err
        found = contents(folder)
        differing = sorted(file for file in found.keys() | expected.keys() if found.get(file) != expected.get(file))
        print(f"\n| {name} | {kill.__name__} after {moment:.2f} s | {left} | {differing or 'none'} |")
        assert not differing, f"killed after {moment:.3f} s"
