"""`uqbench train` and `uqbench evaluate` from the command line to the metric table."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import CONF, HEAVY

from uqbench.cli import main
from uqbench.figures import canvas
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import PredictionSet
from uqbench.runs import run_dir
from uqbench.runs.tables import COLUMNS

pytestmark = pytest.mark.usefixtures("without_figures")
SMALL = [
    "uq.members=2", "dataset.n_train=40", "dataset.n_validation=10", "dataset.n_test=12", "backbone.features=8",
    "training.epochs=2", "evaluation.bootstrap=10",
]  # fmt: skip


def train(outputs, *overrides):
    return main(["train", f"outputs={outputs}", *SMALL, *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, without_figures):
    """A finished run with its figures, and the folder of all runs."""
    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uqbench.evaluations.metrics.render", canvas.render)
        assert train(outputs) == 0
    (run,) = outputs.glob("train/quickstart-ethanol/painn_small/ensemble/seed0-*")
    return run, outputs


def test_a_run_directory_holds_what_a_reader_expects(trained):
    run, _ = trained
    names = {
        "config.yaml", "run.json", "splits.json", "history.csv", "best.pt", "last.pt", "calibration.json",
        "predictions_validation.parquet", "predictions_test.parquet", "metrics.csv",
    }  # fmt: skip
    names |= {
        f"forces_{figure}.png" for figure in ("error_uncertainty", "reliability", "rmse_rmv", "confidence", "z_scores")
    }
    assert names <= {path.name for path in run.iterdir()}
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "done" and info["device"] == "cpu"
    assert {"train", "evaluate"} <= info["seconds"].keys() and info["peak_memory_mb"] > 0
    assert len(info["data_sha256"]) == 64 and info["family"] == "ensemble"
    splits = json.loads((run / "splits.json").read_text())
    assert {name: len(frames) for name, frames in splits.items()} == {"train": 40, "validation": 10, "test": 12}


def test_metrics_are_tidy_and_agree_with_the_predictions(trained):
    run, _ = trained
    table = pd.read_csv(run / "metrics.csv")
    assert list(table.columns) == list(COLUMNS)
    assert set(table.command) == {"train"} and set(table.split) == {"test"} and set(table.uq) == {"ensemble"}
    value = table.set_index(["target", "metric"]).value
    predictions = pd.read_parquet(run / "predictions_test.parquet")
    error = np.concatenate(predictions.forces) - np.concatenate(predictions.forces_reference)
    assert value["forces", "mae"] == pytest.approx(np.abs(error).mean())
    assert value["energy", "rmse"] == pytest.approx(
        np.sqrt(((predictions.energy - predictions.energy_reference) ** 2).mean())
    )
    for target in ("forces", "energy"):
        for metric in ("spearman", "roc_auc_80", "roc_auc_90", "roc_auc_95", "miscalibration_area", "nll", "cnll"):
            assert np.isfinite(value[target, metric]), (target, metric)
    assert np.isfinite(value["forces", "miscalibration_area_norm"])
    for cost in ("training_time", "inference_time", "parameters", "peak_memory"):
        assert value["cost", cost] > 0


def test_the_calibration_is_that_of_the_validation_frames(trained):
    run, _ = trained
    stored = Calibration.load(run_dir.read(run))
    predictions = [PredictionSet.read(run / f"predictions_{split}.parquet") for split in ("validation", "test")]
    fits = [Calibration.fit(split, tuple(stored.forces.conformal.quantiles)).to_dict() for split in predictions]
    assert stored.to_dict() == fits[0] != fits[1]


def test_a_done_run_prints_its_table_and_is_left_alone(trained, capsys):
    run, outputs = trained
    files = [path for path in run.iterdir() if path.name != ".lock"]
    before = [path.stat().st_mtime_ns for path in files]
    capsys.readouterr()
    assert train(outputs) == 0
    assert "spearman" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_done_run_is_shown_without_importing_what_computes(trained, importing, flags):
    _, outputs = trained
    code, out, err, modules = importing("train", *flags, f"outputs={outputs}", *SMALL)
    assert code == 0 and "spearman" in out and "error" not in err
    assert not HEAVY & modules


def test_a_done_run_is_not_taken_for_that_of_an_option_with_the_same_content(trained, tmp_path):
    run, outputs = trained
    (tmp_path / "dataset").mkdir()
    shutil.copy(CONF / "dataset" / "quickstart.yaml", tmp_path / "dataset" / "twin.yaml")
    assert train(outputs, "--config-dir", str(tmp_path), "dataset=twin") == 0
    assert (outputs / "train" / "twin-ethanol" / "painn_small" / "ensemble" / run.name / "metrics.csv").exists()


def test_a_done_evaluation_is_shown_without_importing_what_computes(trained, importing):
    run, outputs = trained
    command = ["evaluate", f"run={run}", f"outputs={outputs}", "evaluation.bootstrap=10"]
    assert main(command) == 0
    code, out, err, modules = importing(*command)
    assert code == 0 and "spearman" in out and "error" not in err
    assert not HEAVY & modules


def test_settings_that_a_done_run_does_not_have_are_checked(trained, importing):
    _, outputs = trained
    code, _, err, modules = importing("train", f"outputs={outputs}", *SMALL, "training.checkpoint_seconds=often")
    assert code == 2 and err == "uqbench: error: training.checkpoint_seconds: expected a number >= 0, got 'often'\n"
    assert "torch" in modules, "the signature was looked at; and the test above can see what is imported"


def test_evaluating_the_own_test_split_gives_the_same_numbers(trained):
    run, outputs = trained
    assert main(["evaluate", f"run={run}", f"outputs={outputs}", "evaluation.bootstrap=10"]) == 0
    (folder,) = outputs.glob("evaluate/quickstart-ethanol/painn_small/ensemble/seed0-*")
    ours, theirs = (pd.read_csv(path / "metrics.csv").query("target != 'cost'") for path in (folder, run))
    keys = ["target", "population", "metric"]
    merged = ours.merge(theirs, on=keys, suffixes=("", "_train"))
    assert len(merged) == len(ours) == len(theirs)
    np.testing.assert_allclose(merged.value, merged.value_train, rtol=1e-12)
    np.testing.assert_allclose(merged.ci_low, merged.ci_low_train, rtol=1e-12)


def test_what_else_is_evaluated_changes_neither_the_run_nor_its_name(trained, tmp_path, capsys):
    """It is the run that `uqbench evaluate` makes, so that either command finds it done."""
    run, outputs = trained
    before = (run / "run.json").read_bytes()
    wanted = "evaluations.out_of_domain"
    assert train(outputs, f"{wanted}.split=validation", f"{wanted}.evaluation.bootstrap=7") == 0
    assert (run / "run.json").read_bytes() == before
    (table,) = outputs.glob("evaluate/*/*/*/*/predictions_validation.parquet")
    info = json.loads((table.parent / "run.json").read_text())
    assert info["choices"]["evaluation"] == "metrics" and info["choices"]["uq"] == info["family"] == "ensemble"
    written = table.stat().st_mtime_ns
    assert main(["evaluate", f"run={run}", f"outputs={outputs}", "split=validation", "evaluation.bootstrap=7"]) == 0
    assert list(outputs.glob("evaluate/*/*/*/*/predictions_validation.parquet")) == [table]
    assert table.stat().st_mtime_ns == written
    capsys.readouterr()
    assert train(tmp_path / "new", f"{wanted}.split=validatoin") == 2
    assert "evaluations.out_of_domain.split" in capsys.readouterr().err
    assert not list(tmp_path.glob("new/**/*.pt")), "before anything is trained"


def test_a_test_out_of_domain_is_made_where_the_data_has_one(tmp_path, importing, capsys):
    few = [word for word in SMALL if not word.startswith(("dataset", "uq"))]
    few += ["dataset=ammonia", "uq=mve", "training.epochs=1", "evaluations.out_of_domain.evaluation.bootstrap=0"]
    command = ["train", f"outputs={tmp_path}", *few]
    assert main(command) == 0
    (table,) = tmp_path.glob("evaluate/ammonia-NH3/*/mve/*/metrics.csv")
    assert set(pd.read_csv(table).split) == {"out_of_domain"}
    capsys.readouterr()
    assert main([*command, "evaluations.out_of_domain.split=null"]) == 0
    assert "split out_of_domain" not in capsys.readouterr().out
    code, out, _, modules = importing(*command)
    assert code == 0 and "split test" in out and "split out_of_domain" in out and not HEAVY & modules


def test_evaluating_other_data(trained, tmp_path):
    run, outputs = trained
    from uqbench.data.sources.quickstart import Quickstart

    frames = Quickstart(n_train=30, n_validation=10, n_test=20, block=1, split_seed=0).load()[:6]
    from ase.io import write

    write(tmp_path / "few.extxyz", frames.to_atoms())
    command = [
        "evaluate",
        f"run={run}",
        f"outputs={tmp_path}",
        "dataset=file",
        f"dataset.path={tmp_path / 'few.extxyz'}",
    ]
    assert main([*command, "split=all"]) == 0
    (table,) = tmp_path.glob("evaluate/**/predictions_all.parquet")
    np.testing.assert_allclose(pd.read_parquet(table).energy_reference, frames.energies)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=nowhere"], "no such run"),
        (["split=tset"], "did you mean 'test'"),
        (["split=validatoin"], "did you mean 'validation'"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(trained, tmp_path, capsys, overrides, message):
    run, _ = trained
    assert main(["evaluate", f"run={run}", f"outputs={tmp_path}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_changed_setting_is_another_run(trained, tmp_path):
    run, outputs = trained
    assert train(outputs, "training.lr=1e-3") == 0
    assert len(list(outputs.glob("train/quickstart-ethanol/painn_small/ensemble/seed0-*"))) == 2
