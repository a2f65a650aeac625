"""Accuracy, rank and likelihood metrics against scipy, scikit-learn, closed forms and repeated rows."""

import warnings
from functools import partial

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error

from uqbench.metrics import accuracy, confidence, likelihood, ranking, reliability

pytestmark = pytest.mark.numerics


@pytest.fixture
def data():
    """Errors (n, 3) and variances (n,) with ties in the variances, and multiplicities with zeros."""
    rng = np.random.default_rng(0)
    variance = np.round(np.exp(rng.normal(0, 1, 400)), 1) + 0.1
    return rng.normal(size=(400, 3)) * np.sqrt(variance)[:, None] * 1.3, variance, rng.poisson(1.0, 400)


ALL = {
    "mae": lambda e, v, w: accuracy.mae(e, w),
    "rmse": lambda e, v, w: accuracy.rmse(e, w),
    "spearman": lambda e, v, w: ranking.spearman(v, accuracy.squared_norm(e), w),
    "spearman_tied_errors": lambda e, v, w: ranking.spearman(v, np.round(accuracy.squared_norm(e)), w),
    "roc_auc": lambda e, v, w: ranking.roc_auc(v, np.round(accuracy.squared_norm(e)), 0.9, w),
    "nll": likelihood.gaussian_nll,
    "crps": likelihood.gaussian_crps,
    "zms": reliability.zms,
    "area": reliability.miscalibration_area,
    "area_norm": reliability.miscalibration_area_norm,
    "coverage": lambda e, v, w: reliability.coverage(e, v, 0.9, w),
    "width": lambda e, v, w: reliability.width(v, 0.9, w),
    "sharpness": lambda e, v, w: reliability.sharpness(v, w),
    "dispersion": lambda e, v, w: reliability.dispersion(v, w),
    "ence": lambda e, v, w: reliability.ence(e, v, 7, w),
    "ause": lambda e, v, w: confidence.ause(v, accuracy.squared_norm(e), w),
    "ause_probabilistic": confidence.ause_probabilistic,
}


@pytest.mark.parametrize("name", ALL)
def test_weights_equal_repeated_rows_and_order_is_irrelevant(name, data):
    errors, variance, weights = data
    weighted = ALL[name](errors, variance, weights)
    repeated = ALL[name](np.repeat(errors, weights, axis=0), np.repeat(variance, weights), None)
    assert weighted == pytest.approx(repeated, rel=1e-10)
    assert weighted != pytest.approx(ALL[name](errors, variance, None), rel=1e-6)
    shuffled = np.random.default_rng(1).permutation(len(variance))
    assert ALL[name](errors[shuffled], variance[shuffled], weights[shuffled]) == pytest.approx(weighted, rel=1e-10)


def test_accuracy_equals_scikit_learn(data):
    errors, _, _ = data
    zeros = np.zeros(errors.size)
    assert accuracy.mae(errors) == pytest.approx(mean_absolute_error(zeros, errors.ravel()))
    assert accuracy.rmse(errors) == pytest.approx(root_mean_squared_error(zeros, errors.ravel()))
    assert accuracy.mae(errors[:, 0]) == pytest.approx(np.abs(errors[:, 0]).mean())
    assert accuracy.per_atom([3.0, -8.0], [3, 4]) == pytest.approx([1.0, -2.0])


def test_spearman_and_auc_equal_scipy_and_scikit_learn_with_ties(data):
    errors, score, _ = data
    for squared in (accuracy.squared_norm(errors), np.round(accuracy.squared_norm(errors))):
        assert ranking.spearman(score, squared) == pytest.approx(stats.spearmanr(score, squared).statistic, abs=1e-12)
        for q in (0.5, 0.8, 0.9, 0.95):
            expected = roc_auc_score(squared > np.quantile(squared, q), score)
            assert ranking.roc_auc(score, squared, q) == pytest.approx(expected, abs=1e-12)


def test_ranking_ignores_monotone_changes_of_the_score(data):
    errors, score, _ = data
    squared = accuracy.squared_norm(errors)
    for change in (np.log, np.sqrt, lambda u: 1e6 * u - 3e9):
        assert ranking.spearman(change(score), squared) == ranking.spearman(score, squared)
        assert ranking.roc_auc(change(score), squared, 0.8) == ranking.roc_auc(score, squared, 0.8)
        assert confidence.ause(change(score), squared) == pytest.approx(confidence.ause(score, squared), rel=1e-12)
    assert ranking.spearman(-score, squared) == pytest.approx(-ranking.spearman(score, squared))


@pytest.mark.parametrize(("spread", "rho", "auc"), [(0.25, 0.47, 0.78), (0.5, 0.72, 0.90), (1.0, 0.89, 0.96)])
def test_simulated_ceilings(spread, rho, auc):
    rng = np.random.default_rng(2)
    variance = np.exp(2 * spread * rng.normal(size=200_000))
    squared = accuracy.squared_norm(reliability.simulate_errors(variance, 3, rng))
    assert ranking.spearman(variance, squared) == pytest.approx(rho, abs=0.006)
    assert ranking.roc_auc(variance, squared, 0.8) == pytest.approx(auc, abs=0.006)


def test_simulated_errors_follow_the_seed_and_the_variance():
    variance = np.array([4.0, 0.0])
    first, second = (reliability.simulate_errors(variance, 3, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second) and np.all(first[1] == 0)
    many = reliability.simulate_errors(np.full(100_000, 4.0), 3, np.random.default_rng(0))
    assert many.std() == pytest.approx(2.0, rel=0.01)
    with pytest.raises(ValueError, match="negative"):
        reliability.simulate_errors([-1.0], 3, np.random.default_rng(0))


def test_nll_is_the_mean_log_density_per_component(data):
    errors, variance, _ = data
    expected = -stats.norm.logpdf(errors, scale=np.sqrt(variance)[:, None]).mean()
    assert likelihood.gaussian_nll(errors, variance) == pytest.approx(expected, rel=1e-12)
    vector = 1.5 * np.log(2 * np.pi * variance) + accuracy.squared_norm(errors) / (2 * variance)
    assert likelihood.gaussian_nll(errors, variance) == pytest.approx(vector.mean() / 3, rel=1e-12)


def test_crps_equals_the_integral_of_its_definition():
    for error, sigma in ((0.3, 1.0), (-2.0, 0.7)):

        def gap(x, sigma=sigma, error=error):
            return (stats.norm.cdf(x, scale=sigma) - (x >= error)) ** 2

        expected = integrate.quad(gap, -12, error)[0] + integrate.quad(gap, error, 12)[0]
        assert likelihood.gaussian_crps([error], [sigma**2]) == pytest.approx(expected, rel=1e-6)
    assert likelihood.gaussian_crps([[3.0]], [0.0]) == 3.0


def test_confidence_curve_by_hand():
    squared = np.array([4.0, 1.0, 0.0, 3.0])
    oracle = confidence.confidence_curve(squared, squared)
    # Nothing, a quarter, a half, three quarters set aside: means of what is left over the mean of all.
    assert oracle[[0, 25, 50, 75]] == pytest.approx(np.sqrt([1, (4 / 3) / 2, 0.5 / 2, 0]))
    # Two equal scores are set aside in proportion: half of their sum is left with one of them.
    tied = confidence.confidence_curve(np.array([1.0, 1.0, 0.0, 2.0]), squared)
    assert tied[50] == pytest.approx(np.sqrt(((0 + (4 + 1) / 2) / 2) / 2))
    assert confidence.ause(squared, squared) == pytest.approx(0, abs=1e-15)
    assert confidence.ause(-squared, squared) > confidence.ause(np.array([4.0, 0.0, 1.0, 3.0]), squared) > 0


def test_probabilistic_reference_is_met_by_calibrated_variances_only():
    rng = np.random.default_rng(3)
    variance = np.exp(rng.normal(size=100_000))
    errors = reliability.simulate_errors(variance, 3, rng)
    calibrated = confidence.ause_probabilistic(errors, variance)
    assert calibrated < 0.005
    assert confidence.ause_probabilistic(errors, variance**2) > 20 * calibrated
    # A common factor is no matter of ordering, so the curve does not see it.
    assert confidence.ause_probabilistic(errors, 9 * variance) == pytest.approx(calibrated, rel=1e-9)
    assert confidence.ause(variance, accuracy.squared_norm(errors)) > 20 * calibrated


def test_undefined_values_are_nan_without_warnings():
    errors, squared = np.ones((4, 3)), np.array([3.0, 1.0, 2.0, 4.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(ranking.spearman(np.ones(4), squared))
        assert np.isnan(ranking.spearman(squared, np.ones(4)))
        assert np.isnan(ranking.spearman([1.0], [2.0]))
        assert np.isnan(ranking.roc_auc(np.ones(4), squared, 0.8))
        assert np.isnan(ranking.roc_auc(squared, np.ones(4), 0.8))
        assert np.isnan(confidence.ause(np.ones(4), squared))
        assert np.isnan(confidence.ause(squared, np.zeros(4)))
        assert np.isnan(accuracy.mae(errors, np.zeros(4)))
        for metric in (
            likelihood.gaussian_nll,
            reliability.zms,
            reliability.miscalibration_area,
            partial(reliability.ence, bins=20),
        ):
            assert np.isnan(metric(errors, np.zeros(4)))
        assert np.isnan(reliability.miscalibration_area_norm(errors, [1.0, 1.0, 0.0, 1.0]))
        assert np.isnan(reliability.dispersion(np.zeros(4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_is_rejected(bad, data):
    errors, variance, _ = data
    for metric in (likelihood.gaussian_nll, reliability.miscalibration_area, partial(reliability.ence, bins=20)):
        broken = errors.copy()
        broken[3, 1] = bad
        with pytest.raises(ValueError, match="errors: 1 of 1200 values are not finite"):
            metric(broken, variance)
        with pytest.raises(ValueError, match="variance: 1 of 400"):
            metric(errors, np.where(np.arange(400) == 7, bad, variance))
    for metric in (ranking.spearman, confidence.ause, confidence.confidence_curve):
        with pytest.raises(ValueError, match="not finite"):
            metric([1.0, bad], [1.0, 2.0])


def test_wrong_arguments_are_rejected(data):
    errors, variance, _ = data
    with pytest.raises(ValueError, match="negative"):
        likelihood.gaussian_nll(errors, -variance)
    with pytest.raises(ValueError, match="shape"):
        likelihood.gaussian_nll(errors, variance[:-1])
    with pytest.raises(ValueError, match="equal"):
        ranking.spearman(variance, variance[:-1])
    with pytest.raises(ValueError, match="quantile"):
        ranking.roc_auc(variance, variance, 80)
    with pytest.raises(ValueError, match="level"):
        reliability.coverage(errors, variance, 95)
    with pytest.raises(ValueError, match="bins"):
        reliability.ence(errors, variance, 0)
    with pytest.raises(ValueError, match="whole"):
        accuracy.mae(errors, np.full(400, 0.5))
    with pytest.raises(ValueError, match="n_atoms"):
        accuracy.per_atom([1.0], [0])
