"""Calibration metrics: exact areas, the floor of the norm convention, bins, synthetic perfectly calibrated data."""

from functools import partial

import numpy as np
import pytest
from scipy import integrate, stats

from uqbench.metrics import reliability
from uqbench.metrics.reliability import simulate_errors

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def calibrated():
    """200 000 atoms whose errors follow N(0, v)."""
    rng = np.random.default_rng(0)
    variance = np.exp(rng.normal(-3, 1, 200_000))
    return simulate_errors(variance, 3, rng), variance


def test_calibrated_data_reach_the_perfect_values(calibrated):
    errors, variance = calibrated
    n = errors.size
    assert reliability.zms(errors, variance) == pytest.approx(1, abs=5 * np.sqrt(2 / n))
    # The mean area of a Brownian bridge over sqrt(n) is 0.31.
    assert reliability.miscalibration_area(errors, variance) < 1.0 / np.sqrt(n)
    assert reliability.miscalibration_area_norm(errors, variance) == pytest.approx(0.126, abs=0.001)
    assert reliability.ence(errors, variance, bins=20) < 0.01
    for level in (0.5, 0.68, 0.9, 0.95):
        assert reliability.coverage(errors, variance, level) == pytest.approx(level, abs=0.003)
    expected, observed = reliability.z_quantiles(errors, variance, [0.025, 0.5, 0.84])
    assert expected == pytest.approx([-1.96, 0, 0.9945], abs=1e-3)
    assert observed == pytest.approx(expected, abs=0.02)


def test_wrong_variances_are_seen_by_every_metric(calibrated):
    errors, variance = calibrated
    assert reliability.zms(errors, variance / 4) == pytest.approx(4, rel=0.02)
    # z with standard deviation 2: the area between N(0, 4) and N(0, 1) is arctan(2)/pi - 1/4.
    assert reliability.miscalibration_area(errors, variance / 4) == pytest.approx(np.arctan(2) / np.pi - 0.25, abs=2e-3)
    assert reliability.ence(errors, variance / 4, bins=20) == pytest.approx(1, abs=0.02)
    assert reliability.coverage(errors, variance / 4, 0.95) == pytest.approx(2 * stats.norm.cdf(0.98) - 1, abs=0.003)


def test_norm_floor_equals_an_independent_integral():
    """Over the half-normal probability q, by the chi distribution of scipy."""
    area = integrate.quad(
        lambda q: abs(stats.chi.cdf(np.sqrt(3) * stats.halfnorm.ppf(q), 3) - q), 0, 1, limit=500, points=[0.6, 0.7]
    )[0]
    assert area == pytest.approx(reliability.NORM_FLOOR, abs=1e-6)
    assert reliability.NORM_FLOOR == pytest.approx(0.126, abs=5e-4)


def test_area_of_few_points_by_hand():
    # One z at the median: the step from 0 to 1 at p = 1/2 leaves two triangles of 1/8.
    assert reliability.miscalibration_area([0.0], [1.0]) == pytest.approx(0.25)
    # All z far out to one side: the worst case.
    assert reliability.miscalibration_area([50.0, 60.0], [1.0, 1.0]) == pytest.approx(0.5)
    # Two points at the quartiles: four triangles of width 1/4.
    z = stats.norm.ppf([0.25, 0.75])
    assert reliability.miscalibration_area(z * 2, [4.0, 4.0]) == pytest.approx(4 * 0.25**2 / 2)


def test_area_equals_a_fine_grid_also_across_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    errors, variance = rng.normal(0.2, 1.4, size=(300, 3)), np.exp(rng.normal(size=300))
    exact = reliability.miscalibration_area(errors, variance)
    grid = (np.arange(400_000) + 0.5) / 400_000
    assert exact == pytest.approx(np.abs(reliability.reliability_curve(errors, variance, grid) - grid).mean(), abs=1e-5)
    norm = np.abs(reliability.reliability_curve(errors, variance, grid, norm=True) - grid).mean()
    assert reliability.miscalibration_area_norm(errors, variance) == pytest.approx(norm, abs=1e-5)
    monkeypatch.setattr(reliability, "CHUNK", 7)
    assert reliability.miscalibration_area(errors, variance) == pytest.approx(exact, rel=1e-12)


def test_areas_follow_uncertainty_toolbox():
    toolbox = pytest.importorskip("uncertainty_toolbox.metrics_calibration")
    rng = np.random.default_rng(2)
    errors, variance = rng.normal(0.1, 1.5, size=2000), np.exp(rng.normal(size=2000))
    arguments = (-errors, np.sqrt(variance), np.zeros(2000))
    theirs = toolbox.miscalibration_area(*arguments, num_bins=2000, prop_type="quantile")
    assert reliability.miscalibration_area(errors, variance) == pytest.approx(theirs, abs=2e-3)
    theirs = toolbox.miscalibration_area(*arguments, num_bins=2000, prop_type="interval")
    # For one component the norm against half-normal quantiles is the central interval.
    assert reliability.miscalibration_area_norm(errors, variance) == pytest.approx(theirs, abs=2e-3)
    assert reliability.sharpness(variance) == pytest.approx(
        pytest.importorskip("uncertainty_toolbox.metrics").sharpness(np.sqrt(variance))
    )


def test_norm_convention_is_rotation_invariant(calibrated):
    errors, variance = calibrated[0][:1000], calibrated[1][:1000]
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    for metric in (reliability.zms, reliability.miscalibration_area_norm, partial(reliability.ence, bins=20)):
        assert metric(errors @ rotation, variance) == pytest.approx(metric(errors, variance), rel=1e-9)


def test_bins_by_hand():
    errors = np.sqrt([1.0, 9.0, 4.0, 16.0])
    rmv, rmse = reliability.rmse_rmv(errors, [4.0, 2.0, 1.0, 3.0], bins=2)
    assert rmv == pytest.approx(np.sqrt([1.5, 3.5]))
    assert rmse == pytest.approx(np.sqrt([6.5, 8.5]))
    expected = np.mean(np.abs(np.sqrt([1.5, 3.5]) - np.sqrt([6.5, 8.5])) / np.sqrt([1.5, 3.5]))
    assert reliability.ence(errors, [4.0, 2.0, 1.0, 3.0], bins=2) == pytest.approx(expected)
    # Equal variances: every bin holds the same mixture, in whatever order the rows come.
    rmv, rmse = reliability.rmse_rmv(errors, np.full(4, 7.5), bins=3)
    assert rmv == pytest.approx(np.full(3, np.sqrt(7.5))) and rmse == pytest.approx(np.full(3, np.sqrt(7.5)))


def test_width_sharpness_and_dispersion_by_hand():
    variance = np.array([1.0, 4.0])
    assert reliability.width(variance, 0.95) == pytest.approx(2 * 1.959964 * 1.5)
    assert reliability.sharpness(variance) == pytest.approx(np.sqrt(2.5))
    assert reliability.dispersion(variance) == pytest.approx(1.5 / 2.5)
    assert reliability.dispersion(np.full(5, 1e-200)) == 0
