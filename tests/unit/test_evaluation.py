"""Predictions, calibration and metric rows, from method to table."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import graphs_of, small_method

from uqbench.errors import ConfigError, TrainingError
from uqbench.evaluation import Calibration, Metrics, cost_rows, predict
from uqbench.uq.calibration import LinearCalibration


@pytest.fixture(scope="module")
def method(ethanol):
    return small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 3})


def metrics(**changes):
    return Metrics(**{"quantiles": [0.8, 0.9], "bootstrap": 20, "batch_size": 7, **changes})


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
    rows = metrics().rows(predictions, Calibration.fit(predictions), seed=0)
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
    calibration = Calibration.fit(validation)
    test = predict(method, ethanol[30:], batch_size=30, device="cpu")
    fitted_on_test = Calibration.fit(test)
    assert calibration != fitted_on_test
    rows = {row["metric"]: row["value"] for row in metrics().rows(test, calibration, 0) if row["target"] == "forces"}
    variance = calibration.forces.variance(test.score)[:, None]
    error = test.forces - ethanol[30:].forces
    assert rows["cnll"] == pytest.approx(0.5 * (np.log(2 * np.pi * variance) + error**2 / variance).mean())


def test_calibration_survives_json(method, ethanol):
    calibration = Calibration.fit(predict(method, ethanol, batch_size=60, device="cpu"))
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    assert isinstance(calibration.forces, LinearCalibration)


def test_non_finite_predictions_are_an_error(ethanol):
    method = small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 2})
    with torch.no_grad():
        next(method.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="non-finite"):
        predict(method, ethanol, batch_size=60, device="cpu")


@pytest.mark.parametrize("change", [{"quantiles": []}, {"quantiles": [1.2]}, {"bootstrap": -1}, {"batch_size": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match="evaluation"):
        metrics(**change)


def test_costs_have_units():
    (row,) = cost_rows(training_time=(12.5, "s"))
    assert (row["target"], row["metric"], row["value"], row["unit"]) == ("cost", "training_time", 12.5, "s")


def test_prediction_leaves_no_graph_behind(method, ethanol):
    prediction = method.predict(graphs_of(ethanol[:2]).batch([0, 1]))
    assert not prediction.forces.requires_grad and not prediction.score.requires_grad
