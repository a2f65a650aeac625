"""Layers on a model that is trained once, fits on finished runs, and runs of an earlier version."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import uqbench
from uqbench.cli import main
from uqbench.data.sources.quickstart import Quickstart
from uqbench.errors import CheckpointError, DataError
from uqbench.runs import lock, run_dir
from uqbench.runs.files import file_sha256

DATA = ["dataset.n_train=60", "dataset.n_validation=20", "dataset.n_test=20", "dataset.block=20"]
SMALL = [*DATA, "backbone.features=8", "backbone.layers=1", "training.epochs=2"]
SMALL += ["evaluation.bootstrap=20", "evaluation.ideal_draws=2"]
pytestmark = pytest.mark.usefixtures("without_figures")
OLD = Path(__file__).parents[1] / "data" / "runs_of_0.1"


def run_of(outputs, uq, command="train"):
    [path] = outputs.glob(f"{command}/quickstart-ethanol/painn_small/{uq}/*")
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory, without_figures):
    """A sweep over two layers, which nothing may change."""
    outputs = tmp_path_factory.mktemp("swept")
    assert main(["train", "-m", *SMALL, "uq=gmm,constant", f"outputs={outputs}"]) == 0
    return outputs


@pytest.fixture
def damageable(swept, tmp_path):
    """A copy of the sweep that a test may damage."""
    return Path(shutil.copytree(swept, tmp_path / "copy"))


def test_a_sweep_over_layers_trains_once(swept):
    [history] = swept.rglob("history.csv")
    assert history.parent == run_of(swept, "deterministic")
    tables = [pd.read_csv(run_of(swept, uq) / "metrics.csv") for uq in ("gmm", "constant")]
    errors = [table[table["metric"].isin(["mae", "rmse"])]["value"].tolist() for table in tables]
    assert errors[0] == errors[1], "layers on one model make the same errors"


def test_a_fit_on_the_finished_model_gives_the_same_bits(swept, tmp_path, capsys):
    model = run_of(swept, "deterministic")
    command = ["fit", f"run={model}", "uq=gmm", "evaluation.bootstrap=20", "evaluation.ideal_draws=2"]
    assert main([*command, f"outputs={tmp_path}"]) == 0
    fitted, layer = run_of(tmp_path, "gmm", "fit"), run_of(swept, "gmm")
    assert (fitted / "layer.pt").read_bytes() == (layer / "layer.pt").read_bytes()
    sha256 = run_dir.read(model).weights_sha256()
    assert [run_dir.read(path).info["model"]["sha256"] for path in (fitted, layer)] == [sha256, sha256]
    a, b = (pd.read_parquet(path / "predictions_test.parquet") for path in (fitted, layer))
    np.testing.assert_array_equal(np.concatenate(a["score"]), np.concatenate(b["score"]))
    before = (fitted / "layer.pt").stat().st_mtime_ns
    assert main([*command, f"outputs={tmp_path}"]) == 0 and "Forces" in capsys.readouterr().out
    assert (fitted / "layer.pt").stat().st_mtime_ns == before, "a finished fit is only shown"


def test_a_fit_of_what_is_trained_is_refused(swept, tmp_path, capsys):
    assert main(["fit", f"run={run_of(swept, 'gmm')}", "uq=mve", f"outputs={tmp_path / 'x'}"]) == 2
    assert "uqbench train uq=mve" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_layer_is_not_fitted_on_an_ensemble(tmp_path, capsys):
    run = next((OLD / "train").rglob("ensemble/*"))
    assert main(["fit", f"run={run}", "uq=constant", f"outputs={tmp_path / 'x'}"]) == 2
    assert "needs a single model, this one has 5 members" in capsys.readouterr().err


def test_a_layer_predicts_evaluates_and_moves_with_its_model(damageable, swept, tmp_path, capsys):
    layer = run_of(damageable, "gmm")
    stored = pd.read_parquet(layer / "predictions_test.parquet")
    quickstart = Quickstart(n_train=60, n_validation=20, n_test=20, block=20, split_seed=0)
    structures = quickstart.load()
    found = uqbench.load(layer).predict(structures[quickstart.split(structures)["test"]])
    np.testing.assert_allclose(found.score, np.concatenate(stored["score"]), rtol=1e-6)
    assert main(["evaluate", f"run={layer}", "split=validation", f"outputs={tmp_path}"]) == 0
    assert "split validation" in capsys.readouterr().out


def test_a_layer_refuses_another_model_and_a_missing_one(damageable):
    model, layer = run_of(damageable, "deterministic"), run_of(damageable, "gmm")
    content = (model / "best.pt").read_bytes()
    (model / "best.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="best.pt: changed since the run finished"):
        uqbench.load(layer)
    info = json.loads((model / "run.json").read_text())
    info["sha256"]["best.pt"] = file_sha256(model / "best.pt")
    (model / "run.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match="is not the model that .* was fitted on"):
        uqbench.load(layer)
    shutil.rmtree(model)
    with pytest.raises(DataError, match="no such run"):
        uqbench.load(layer)


def test_a_layer_that_was_interrupted_after_its_fit_comes_to_the_same_bits(damageable):
    layer = run_of(damageable, "gmm")
    before = {name: (layer / name).read_bytes() for name in ("layer.pt", "predictions_test.parquet")}
    info = json.loads((layer / "run.json").read_text())
    (layer / "run.json").write_text(json.dumps(info | {"status": "running", "finished": None, "files": {}}))
    (layer / "metrics.csv").unlink()
    assert main(["train", *SMALL, "uq=gmm", f"outputs={damageable}"]) == 0
    for name in ("layer.pt", "predictions_test.parquet"):
        assert (layer / name).read_bytes() == before[name], name


def test_models_of_layers_are_in_no_report_until_they_are_asked_for(damageable, tmp_path, capsys):
    def methods():
        assert main(["report", f"runs={damageable / 'train'}", f"output={tmp_path / 'report'}"]) == 0
        return set(pd.read_csv(tmp_path / "report" / "metrics.csv")["uq"])

    assert methods() == {"gmm", "constant"}
    modified = (run_of(damageable, "deterministic") / "best.pt").stat().st_mtime_ns
    assert main(["train", *SMALL, "uq=deterministic", f"outputs={damageable}"]) == 0
    assert (run_of(damageable, "deterministic") / "best.pt").stat().st_mtime_ns == modified
    assert methods() == {"gmm", "constant", "deterministic"}


@pytest.mark.parametrize("uq", ["ensemble", "gmm"])
def test_a_run_of_an_earlier_version_predicts_what_it_predicted(uq):
    """Classes have other names now, and `gmm` has become a layer."""
    path = next((OLD / "train").rglob(f"{uq}/*"))
    stored = pd.read_parquet(path / "predictions_test.parquet")
    structures = Quickstart(n_train=60, n_validation=20, n_test=20, block=20, split_seed=0).load()
    found = uqbench.load(path).predict(structures[json.loads((path / "splits.json").read_text())["test"]])
    forces = np.concatenate(stored["forces"]).reshape(-1, 3)
    score = np.concatenate(stored["score"])
    # float32 on another CPU: rounding, amplified by the mixture's whitening.
    np.testing.assert_allclose(found.forces, forces, rtol=0, atol=1e-4 * np.abs(forces).max())
    np.testing.assert_allclose(found.score, score, rtol=0, atol=1e-2 * np.abs(score).max())
    assert found.calibrated


@pytest.mark.parametrize("uq", ["ensemble", "gmm"])
def test_the_same_command_finds_a_run_of_an_earlier_version(uq, tmp_path, capsys):
    outputs = Path(shutil.copytree(OLD, tmp_path / "outputs"))
    before = sorted(path.relative_to(outputs) for path in outputs.rglob("*"))
    assert main(["train", *SMALL, f"uq={uq}", f"outputs={outputs}"]) == 0
    assert "split test" in capsys.readouterr().out
    assert sorted(path.relative_to(outputs) for path in outputs.rglob("*") if path.name != ".lock") == before


@pytest.mark.parametrize("made_for", ["layers", None])
def test_a_plain_model_that_is_being_trained_for_layers_is_waited_for(damageable, made_for, capsys):
    """As a job of the same sweep; one that somebody else trains for itself is not."""
    command = ["train", *SMALL, "uq=deterministic", f"outputs={damageable}"]
    path = run_of(damageable, "deterministic")
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | {"status": "running", "made_for": made_for}))
    held = lock.acquire(path)
    release = threading.Timer(2.0, lambda: ((path / "run.json").write_text(json.dumps(info)), lock.release(held)))
    release.start()
    code = main(command)
    release.join()
    assert code == (0 if made_for else 2)
    assert made_for or "is in use by" in capsys.readouterr().err
