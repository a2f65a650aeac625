"""Whatever is given as input ends: in one line with exit code 2, seconds after the program has started."""

import gzip
import json
import os
import shutil
import textwrap

import pytest
from helpers import bomb

from uqbench.errors import ConfigError
from uqbench.runs import lock
from uqbench.runs.files import file_sha256

SECONDS = 5  # of CPU, without imports: other processes on the same cores do not count
WALL = 120.0  # s, for what would wait and not compute


@pytest.fixture
def within_time(program):
    """Run the program, and kill it when it takes longer: exit code and standard error."""

    def run(arguments: list[str]) -> tuple[int, str]:
        process = program.start(arguments, limits={"RLIMIT_CPU": SECONDS}, figures=False)
        return process.wait(WALL), process.err

    return run


def test_what_takes_for_ever_is_killed(program, tmp_path):
    """Otherwise the tests below would see nothing."""
    process = program.start(
        ["train", f"outputs={tmp_path}", "training.epochs=100000"], limits={"RLIMIT_CPU": 2}, figures=False
    )
    assert process.wait(WALL) < 0


@pytest.fixture
def refused(within_time, tmp_path):
    """Demand that a command line is refused in one line that names what is wrong and leaves nothing; give the line."""
    outputs = tmp_path / "outputs"

    def check(arguments: list[str], name: str) -> str:
        code, err = within_time([arguments[0], f"outputs={outputs}", *arguments[1:]])
        assert code == 2, (code, err)
        assert err.startswith("uqbench: error: ") and err.count("\n") == 1 and name in err, err
        assert not outputs.exists()
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


ALIASES = "x:\n" + textwrap.indent(bomb(), "  ")
DEEP = "x: " + "[" * 20000
LONG = f"x: {':'.join(['1'] * 300_000)}\n"  # a number to the base of 60
HUGE = f"x: {'1' * 5000}\n"  # more digits than Python makes a number of


BOMBS = {"aliases": ALIASES, "deep": DEEP, "long": LONG, "loop": "x: &x [*x]\n"}


@pytest.mark.parametrize("text", [*BOMBS.values(), HUGE, "x: '\udcff'\n"], ids=[*BOMBS, "huge", "no text"])
def test_a_config_file_that_would_take_for_ever(refused, text, tmp_path):
    path = tmp_path / "dataset" / "evil.yaml"
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    refused(["data", "--config-dir", str(tmp_path), "dataset=evil"], str(path))


def test_an_experiment_that_would_take_for_ever(refused, tmp_path):
    path = tmp_path / "experiment" / "evil.yaml"
    path.parent.mkdir()
    path.write_text(f"# @package _global_\n{ALIASES}")
    refused(["train", "-m", "--config-dir", str(tmp_path), "seed=0,1", "experiment=evil"], str(path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, program):
    """A finished run."""
    outputs = tmp_path_factory.mktemp("finished")
    settings = ["uq=deterministic", "backbone.features=8", "backbone.layers=1", "training.epochs=1"]
    sizes = ["dataset.n_train=20", "dataset.n_validation=10", "dataset.n_test=10", "dataset.block=10"]
    reduced = ["evaluation.bootstrap=0", "evaluation.ideal_draws=1", "evaluations.out_of_domain=null"]
    process = program.start(["train", *settings, *sizes, *reduced, f"outputs={outputs}"], figures=False)
    assert process.wait() == 0, process.err
    [path] = outputs.glob("train/*/*/*/*")
    return path


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_config_of_a_run_that_would_take_for_ever(within_time, finished, command, text, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run") / "config.yaml"
    with open(path, "a") as file:
        file.write(text)
    info = json.loads((path.parent / "run.json").read_text())
    info["files"]["config.yaml"], info["sha256"]["config.yaml"] = path.stat().st_size, file_sha256(path)
    (path.parent / "run.json").write_text(json.dumps(info))
    place = f"run={path.parent}" if command == "evaluate" else f"runs={path.parent}"
    code, err = within_time([command, place])
    assert code == 2 and str(path) in err and "damaged" in err


FRAME = '2\nenergy=1 Properties=species:S:1:pos:R:3:forces:R:3 pbc="F F F"\nH 0 0 0 0 0 0\nH 0 0 1 0 0 0\n'
MANY = 99999999999
CELL = "H\n1.0\n5 0 0\n0 5 0\n0 0 5\nH\n"
BOX = "ITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\nITEM: ATOMS id type x y z\n1 1 0 0 0\n"
FILES = {
    "first.xyz": f"{MANY}\nenergy=1\nH 0 0 0\n",
    "later.extxyz": f"{FRAME * 20}{MANY}\nenergy=1\nH 0 0 0\n",
    "packed.xyz.gz": gzip.compress(f"{FRAME}{MANY}\nenergy=1\nH 0 0 0\n".encode()),
    "plain.xyz": f"{MANY}\n\nH 0 0 0\n",
    "XDATCAR": f"{CELL}{MANY}\nDirect configuration= 1\n0 0 0\n",
    "POSCAR": f"{CELL}{MANY}\nDirect\n0 0 0\n",
    "a.lammpsdump": f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n{MANY}\n{BOX}",
}
FORMATS = {"a.lammpsdump": "lammps-dump-text", "plain.xyz": "xyz"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_announces_more_atoms_than_it_has(refused, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name] if isinstance(FILES[name], bytes) else FILES[name].encode())
    refused(["train", "dataset=file", f"dataset.path={path}", f"dataset.format={FORMATS.get(name, 'null')}"], str(path))


def test_a_path_of_a_reaction_that_announces_more_atoms_than_it_has(refused, finished, tmp_path):
    path = tmp_path / "path.xyz"
    path.write_text(FILES["later.extxyz"])
    refused(["evaluate", f"run={finished}", "evaluation=neb", f"evaluation.path={path}"], str(path))


def test_a_pipe_to_which_nobody_writes(within_time, refused, finished, tmp_path):
    pipe = tmp_path / "pipe.xyz"
    os.mkfifo(pipe)
    refused(["evaluate", f"run={finished}", "evaluation=neb", f"evaluation.path={pipe}"], str(pipe))
    for name in ("config.yaml", "run.json"):
        damaged = shutil.copytree(finished, tmp_path / name) / name
        damaged.unlink()
        os.mkfifo(damaged)
        for command, key in (("evaluate", "run"), ("report", "runs")):
            code, err = within_time([command, f"{key}={damaged.parent}"])
            assert code == 2 and str(damaged.parent) in err, err


def test_interpolations_of_interpolations(refused, tmp_path):
    lines = ["_target_: uqbench.data.sources.quickstart.Quickstart", "a0: 1"]
    lines += [f'a{k}: "{("${dataset.a" + str(k - 1) + "}") * 9}"' for k in range(1, 10)]
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "evil.yaml").write_text("\n".join(lines) + "\n")
    line = refused(["data", "--config-dir", str(tmp_path), "dataset=evil"], "dataset.a")
    assert "stands for more than 10000 values" in line
