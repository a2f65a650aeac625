"""A disk that is full, a terminal that cannot show everything, a folder that is gone: one line, and nothing is lost."""

import os
import subprocess
import sys

import pytest

from uqbench.cli import main

SMALL = ["uq=mve", "backbone.features=8", "backbone.layers=1", "training.epochs=1", "evaluation.bootstrap=4"]
SMALL += ["evaluation.ideal_draws=1", "evaluations.out_of_domain=null", "dataset.n_train=20", "dataset.n_test=10"]
FULL = 12_000  # bytes that a file may have; a checkpoint has more


def trained(program, folder, **options):
    process = program.start(["train", *SMALL], figures=False, folder=str(folder), **options)
    return process.wait(), process.err


def test_a_file_without_room_is_named_and_the_run_goes_on(program, tmp_path):
    for name in ("full", "reference"):
        (tmp_path / name).mkdir()
    assert trained(program, tmp_path / "reference")[0] == 0
    code, err = trained(program, tmp_path / "full", limits={"RLIMIT_FSIZE": FULL})
    line = err.strip().splitlines()[-1]
    assert code == 1 and "raceback" not in err
    assert line.startswith("uqbench: error: cannot write outputs/train/") and "make room, and the same command" in line
    assert not list(tmp_path.rglob("*.tmp")), "nothing half-written"
    assert trained(program, tmp_path / "full")[0] == 0
    (one,), (other,) = (list((tmp_path / name).rglob("best.pt")) for name in ("full", "reference"))
    assert one.read_bytes() == other.read_bytes()


def test_a_terminal_of_ascii_is_enough(tmp_path):
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | ascii_alone | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "uqbench", "data"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"eV/?" in done.stdout and done.stdout.isascii()


def test_output_that_has_no_room_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "uqbench", "train", "--cfg", "job"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (1, 120) and "Traceback" not in done.stderr and "No space left" in done.stderr


def test_output_that_nobody_reads_is_one_line(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "uqbench", "train", "--cfg", "job"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nobody reads what is printed" in done.stderr


def test_streams_that_the_shell_has_closed_are_opened(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["train", "modle=1"]) == 2
    assert sys.stderr is not None


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code = main(["train"])
    monkeypatch.chdir(tmp_path)
    assert code == 2 and "the working directory is gone" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["x", "0", "-1", "2.5", "4,2"])
def test_a_number_of_threads_that_is_none(value, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert main(["train", "--cfg", "job"]) == 0
    said = capsys.readouterr().err
    assert said == f"uqbench: warning: OMP_NUM_THREADS={value} is no number of threads, and is ignored\n"
    assert "OMP_NUM_THREADS" not in os.environ
