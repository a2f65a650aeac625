"""Predictions, calibration and metric rows, from method to table."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import graphs_of, small_method

from uqbench.errors import DataError, TrainingError
from uqbench.evaluations.base import cost_rows
from uqbench.evaluations.metrics import Metrics, resamples_frame
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import PredictionSet, predict
from uqbench.runs.run_dir import Run

pytestmark = pytest.mark.numerics

LEVELS = (0.5, 0.9)


@pytest.fixture(scope="module")
def method(ethanol):
    return small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 3})


def metrics(**changes):
    settings = {"quantiles": [0.8, 0.9], "levels": list(LEVELS), "bins": 5, "bootstrap": 20, "batch_size": 7}
    simulated = {"ideal_items": 2000, "ideal_draws": 3}
    return Metrics(**{**settings, **simulated, "per_element": False, "force_ranges": None, **changes})


def rows_of(metrics, predictions, calibration):
    return [row for summary in metrics.summaries(predictions, calibration) for row in summary.rows()]


def test_predictions_do_not_depend_on_the_batch_size(method, ethanol):
    whole, cut = (predict(method, ethanol, batch_size=size, device="cpu") for size in (60, 7))
    for name in ("energy", "forces", "energy_variance", "force_variance", "score", "energy_score"):
        np.testing.assert_allclose(getattr(whole, name), getattr(cut, name), rtol=1e-9, atol=1e-12)
    assert whole.seconds > 0


def test_the_predictions_table_holds_everything_per_structure(method, ethanol, tmp_path):
    predictions = predict(method, ethanol[:5], batch_size=2, device="cpu")
    predictions.frame().to_parquet(tmp_path / "p.parquet")
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert len(table) == 5
    assert table.id.tolist() == ethanol.ids[:5].tolist()
    np.testing.assert_array_equal(np.concatenate(table.forces_reference).reshape(-1, 3), ethanol[:5].forces)
    np.testing.assert_array_equal(np.concatenate(table.forces).reshape(-1, 3), predictions.forces)
    np.testing.assert_array_equal(np.concatenate(table.force_variance), predictions.force_variance)
    np.testing.assert_array_equal(table.energy_reference, ethanol.energies[:5])
    assert [len(row) for row in table.numbers] == ethanol.n_atoms[:5].tolist()


def test_rows_carry_the_errors_of_the_predictions(method, ethanol):
    predictions = predict(method, ethanol, batch_size=20, device="cpu")
    rows = rows_of(metrics(), predictions, Calibration.fit(predictions, LEVELS))
    value = {(row["target"], row["metric"]): row["value"] for row in rows}
    error = predictions.forces - ethanol.forces
    assert value["forces", "mae"] == pytest.approx(np.abs(error).mean())
    assert value["forces", "rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert value["energy", "mae"] == pytest.approx(np.abs(predictions.energy - ethanol.energies).mean())
    variance = predictions.force_variance[:, None]
    nll = 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance).mean()
    assert value["forces", "nll"] == pytest.approx(nll)
    assert {"roc_auc_80", "roc_auc_90", "spearman", "miscalibration_area", "cnll"} <= {metric for _, metric in value}


def test_the_test_split_never_enters_the_calibration(method, ethanol):
    """Calibrated on validation, scored on test: other test labels leave the calibration alone."""
    validation = predict(method, ethanol[:30], batch_size=30, device="cpu")
    calibration = Calibration.fit(validation, LEVELS)
    test = predict(method, ethanol[30:], batch_size=30, device="cpu")
    fitted_on_test = Calibration.fit(test, LEVELS)
    assert calibration != fitted_on_test
    rows = rows_of(metrics(), test, calibration)
    rows = {row["metric"]: row["value"] for row in rows if row["target"] == "forces"}
    variance = calibration.forces.variance(test.score)[:, None]
    error = test.forces - ethanol[30:].forces
    assert rows["cnll"] == pytest.approx(0.5 * (np.log(2 * np.pi * variance) + error**2 / variance).mean())


def test_conformal_radii_of_the_validation_split_are_applied_to_the_test_split(method, ethanol):
    calibration = Calibration.fit(predict(method, ethanol[:30], batch_size=30, device="cpu"), LEVELS)
    test = predict(method, ethanol[30:], batch_size=30, device="cpu")
    # Other levels when scoring: the radii are those that the calibration has.
    rows = {(r["target"], r["metric"]): r for r in rows_of(metrics(levels=[0.7]), test, calibration)}
    for level in LEVELS:
        radius = calibration.forces.conformal.radius(np.sqrt(calibration.forces.variance(test.score)), level)
        sizes = np.linalg.norm(test.forces - ethanol[30:].forces, axis=1)
        row = rows["forces", f"conformal_coverage_{100 * level:g}"]
        assert row["value"] == pytest.approx(np.mean(sizes <= radius)) and row["unit"] == "1"
        assert rows["forces", f"conformal_coverage_{100 * level:g}_ideal"]["value"] == level
        row = rows["forces", f"conformal_radius_{100 * level:g}"]
        assert row["value"] == pytest.approx(radius.mean()) and row["unit"] == "eV/Å"
    assert rows["energy", "conformal_radius_90"]["unit"] == "eV"
    assert ("forces", "calibrated_coverage_70") in rows and ("forces", "calibrated_coverage_90") not in rows


def test_strata_on_request(method, ethanol):
    predictions = predict(method, ethanol, batch_size=20, device="cpu")
    calibration = Calibration.fit(predictions, LEVELS)
    plain = rows_of(metrics(), predictions, calibration)
    rows = rows_of(metrics(per_element=True, force_ranges=[0, 1, 1e9]), predictions, calibration)
    pd.testing.assert_frame_equal(pd.DataFrame(rows[: len(plain)]), pd.DataFrame(plain), check_exact=True)
    mae = {row["population"]: row for row in rows if (row["target"], row["metric"]) == ("forces", "mae")}
    assert set(mae) == {"all", "element=H", "element=C", "element=O", "force=0-1", "force=1-1e+09"}, "empty: no row"
    error = np.abs(predictions.forces - ethanol.forces).mean(axis=1)
    assert mae["element=O"]["value"] == pytest.approx(error[ethanol.numbers == 8].mean())
    strong = np.linalg.norm(ethanol.forces, axis=1) >= 1
    assert mae["force=1-1e+09"]["value"] == pytest.approx(error[strong].mean())
    assert mae["force=1-1e+09"]["n"] == strong.sum()


def test_all_methods_and_populations_share_their_resamples(method, ethanol):
    """Mean errors of the same atoms shifted by a constant: the bootstrap values of all are shifted by it exactly."""
    predictions = predict(method, ethanol, batch_size=20, device="cpu")
    calibration = Calibration.fit(predictions, LEVELS)
    shift = np.sign(predictions.forces - ethanol.forces)
    other = dataclasses.replace(
        predictions, forces=predictions.forces + shift, force_variance=None, energy_variance=None
    )
    frames = [
        resamples_frame(metrics(per_element=strata).summaries(one, calibration)).set_index(
            ["target", "population", "metric"]
        )["values"]
        for one, strata in ((predictions, False), (other, True))
    ]
    first, second = (frame["forces", "all", "mae"] for frame in frames)
    assert len(first) == 20 and np.ptp(first) > 0
    np.testing.assert_allclose(second - first, 1.0)
    assert not any(name.endswith("_ideal") for name in frames[1].index.get_level_values("metric"))
    assert ("forces", "element=O", "mae") in frames[1].index


def test_calibration_survives_its_file_and_others_are_refused(method, ethanol, tmp_path):
    calibration = Calibration.fit(predict(method, ethanol, batch_size=60, device="cpu"), LEVELS)
    run = Run(tmp_path, None, {})
    run.write_json = lambda name, values: (tmp_path / name).write_text(json.dumps(values, allow_nan=False))
    calibration.save(run)
    assert Calibration.load(run) == calibration
    for wrong in ({}, {"forces": {"kind": "linear", "a": 1, "b": 0, "floor": 1}, "energy": {}}, []):
        (tmp_path / "calibration.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="calibration.json is damaged or of another version"):
            Calibration.load(run)


def test_a_run_keeps_predictions_that_can_be_read_with_their_calibration(method, ethanol, tmp_path):
    run = Run(tmp_path, None, {})
    run.write_json = lambda name, values: (tmp_path / name).write_text(json.dumps(values))
    run.write_bytes = lambda name, content: (tmp_path / name).write_bytes(content)
    calibration = metrics().calibrate(run, method, ethanol[:30], "cpu")
    kept = PredictionSet.read(tmp_path / "predictions_validation.parquet")
    expected = predict(method, ethanol[:30], batch_size=7, device="cpu", calibration=calibration)
    for name in ("energy", "forces", "energy_variance", "force_variance", "score", "energy_score"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(expected, name), err_msg=name)
    assert kept.calibration == Calibration.load(run) == calibration == Calibration.fit(kept, LEVELS)
    assert kept.structures.sha256() == ethanol[:30].sha256()


def test_frames_without_labels_have_no_metrics(method, ethanol):
    bare = dataclasses.replace(ethanol, energies=None, forces=None)
    calibration = Calibration.fit(predict(method, ethanol[:30], batch_size=30, device="cpu"), LEVELS)
    with pytest.raises(DataError, match=r"60 of 60 frame\(s\) have no energy"):
        metrics().summaries(predict(method, bare, batch_size=30, device="cpu"), calibration)


def test_non_finite_predictions_are_an_error(ethanol):
    method = small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 2})
    with torch.no_grad():
        next(method.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="non-finite"):
        predict(method, ethanol, batch_size=60, device="cpu")


def test_costs_have_units():
    (row,) = cost_rows(training_time=(12.5, "s"))
    assert (row["target"], row["metric"], row["value"], row["unit"]) == ("cost", "training_time", 12.5, "s")


def test_prediction_leaves_no_graph_behind(method, ethanol):
    prediction = method.predict(graphs_of(ethanol[:2]).batch([0, 1]))
    assert not prediction.forces.requires_grad and not prediction.score.requires_grad
