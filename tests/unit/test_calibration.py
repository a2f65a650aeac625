"""Calibration against brute force, known truths, degenerate data and the conformal guarantee."""

import json
import warnings

import numpy as np
import pytest
from scipy import optimize, stats

from uqbench.metrics.likelihood import gaussian_nll
from uqbench.metrics.reliability import simulate_errors
from uqbench.uq.calibration import ConformalCalibration, LinearCalibration, Scale, ScoreCalibration

pytestmark = pytest.mark.numerics


def nll(variance, squared_error, components):
    return np.mean(0.5 * np.log(2 * np.pi * variance) + squared_error / (2 * components * variance))


def squared_errors(variance, seed=0, components=3):
    return np.square(simulate_errors(variance, components, np.random.default_rng(seed))).sum(axis=1)


SCORES = {
    "proportional": (lambda v, rng: v / 7, lambda u: 7 * u),
    "offset": (lambda v, rng: v - 0.05, None),
    "noisy": (lambda v, rng: v * np.exp(rng.normal(0, 1.5, len(v))), None),
    "negative_log_density": (lambda v, rng: 3 * np.log(v) - 400, None),
    "decades": (lambda v, rng: v**4, None),
    "outlier": (lambda v, rng: np.where(np.arange(len(v)) == 3, 1e9, v), None),
    "useless": (lambda v, rng: rng.normal(size=len(v)), None),
    "reversed": (lambda v, rng: 1 / v, None),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("components", [1, 3])
def test_fit_is_no_worse_than_brute_force_and_a_two_parameter_optimiser(name, components):
    rng = np.random.default_rng(1)
    true = np.exp(rng.normal(-2, 1, 500))
    score, squared = SCORES[name][0](true, rng), squared_errors(true, 2, components)
    fit = LinearCalibration.fit(score, squared, components=components)
    found = nll(fit.variance(score), squared, components)
    assert fit.a >= 0 and np.all(fit.a * score + fit.b > 0)

    # Slope and intercept at the lowest score, on a grid of their logarithms, and without slope.
    low, span, mean = score.min(), np.ptp(score), squared.mean() / components
    best = nll(np.full(500, mean), squared, components)
    start = None
    for slope in mean * np.logspace(-4, 8, 60):
        for intercept in mean * np.logspace(-5, 1, 45):
            value = nll(intercept + slope * (score - low) / span, squared, components)
            if value < best:
                best, start = value, np.log([slope, intercept])
    assert found <= best + 1e-9
    if start is not None:

        def objective(p):
            return nll(np.exp(p[1]) + np.exp(p[0]) * (score - low) / span, squared, components)

        refined = optimize.minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
        assert found == pytest.approx(refined.fun, abs=1e-7)


def test_best_of_several_minima_is_found():
    """A likelihood with two minima, of which the one at the smaller slope is worse by some nats."""
    scores, squares, counts = [0.0, 0.007, 1.0], [0.002, 8.6, 7.0], [40, 30, 5]
    score, squared = np.repeat(scores, counts), np.repeat(squares, counts)
    slopes, intercepts = np.logspace(-2, 5, 4001), np.logspace(-4, 1, 501)[:, None]
    values = 0.5 * np.log(2 * np.pi)
    for u, square, n in zip(scores, squares, counts, strict=True):
        variance = u * slopes + intercepts
        values = values + n / sum(counts) * 0.5 * (np.log(variance) + square / variance)
    values = values.min(axis=0)
    valleys = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])) + 1
    assert len(valleys) > 1 and values[valleys[0]] > values.min() + 1, "the data do have a worse minimum"
    fit = LinearCalibration.fit(score, squared, components=1)
    assert nll(fit.variance(score), squared, 1) <= values.min() + 1e-9
    assert fit.a == pytest.approx(slopes[values.argmin()], rel=0.05)


def test_true_line_is_recovered_and_improves_the_test_likelihood():
    rng = np.random.default_rng(3)
    score = rng.gamma(2.0, size=40_000) - 1.0
    true = 0.4 * score + 0.5
    fit = LinearCalibration.fit(score[:20_000], squared_errors(true)[:20_000], components=3)
    assert fit.a == pytest.approx(0.4, rel=0.03) and fit.b == pytest.approx(0.5, rel=0.03)
    errors = simulate_errors(true, 3, rng)[20_000:]
    calibrated = gaussian_nll(errors, fit.variance(score[20_000:]))
    assert calibrated == pytest.approx(gaussian_nll(errors, true[20_000:]), abs=1e-3)


def test_components_make_forces_and_energies_agree():
    """Three equal components carry the same variance as one of them: the factor 3 of |dF|^2."""
    score = np.linspace(1, 2, 50)
    one = squared_errors(score, 4, 1)
    forces, energy = (LinearCalibration.fit(score, c * one, components=c) for c in (3, 1))
    assert forces == energy


def test_score_without_merit_gives_the_constant_mean():
    squared = squared_errors(np.exp(np.linspace(-2, 2, 300)))
    for score in (np.zeros(300), np.linspace(2, -2, 300)):
        fit = LinearCalibration.fit(score, squared, components=3)
        assert fit.a == 0 and fit.b == fit.floor == pytest.approx(squared.mean() / 3)
    assert LinearCalibration.fit([5.0], [6.0], components=3) == LinearCalibration(a=0.0, b=2.0, floor=2.0)


@pytest.mark.parametrize("c", [1e-12, 23.06, 1e9])
def test_labels_times_c_give_std_times_c(c):
    """Whether the score scales with the labels (a variance) or not (a log density)."""
    rng = np.random.default_rng(5)
    variance = np.exp(rng.normal(size=400))
    squared = squared_errors(variance, 6)
    for score, scaled in ((variance, c**2 * variance), (np.log(variance), np.log(variance))):
        before = LinearCalibration.fit(score, squared, components=3).variance(score)
        after = LinearCalibration.fit(scaled, c**2 * squared, components=3).variance(scaled)
        assert after == pytest.approx(c**2 * before, rel=1e-5)


def test_fit_does_not_depend_on_scale_and_origin_of_the_score():
    score = np.exp(np.random.default_rng(7).normal(size=400))
    squared = squared_errors(0.1 + score, 8)
    expected = LinearCalibration.fit(score, squared, components=3).variance(score)
    for factor, shift in ((1e-9, 0), (1e12, 0), (1, -5e3)):
        moved = factor * score + shift
        assert LinearCalibration.fit(moved, squared, components=3).variance(moved) == pytest.approx(expected, rel=1e-5)


def test_variance_stays_positive_below_the_validation_range():
    score = np.linspace(10, 20, 200)
    fit = LinearCalibration.fit(score, squared_errors(score - 9.9), components=3)
    assert fit.a > 0 > fit.b
    assert fit.variance([-1e6, 0.0, 10.0]) == pytest.approx(fit.floor) and fit.floor > 0
    assert fit.variance(15.0) == pytest.approx(5.1, rel=0.2) and fit.variance(30.0) > fit.variance(20.0)


def test_an_item_without_error_cannot_pull_the_variance_to_zero():
    score = np.linspace(0, 1, 100)
    squared = squared_errors(score, 9)
    assert squared[0] == 0
    fit = LinearCalibration.fit(score, squared, components=3)
    assert fit.floor >= 0.9e-8 * fit.a and np.isfinite(nll(fit.variance(score), squared, 3))


def test_bad_data_are_rejected_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for score, squared, message in (
            ([1.0, np.nan], [1.0, 1.0], "finite"),
            ([1.0, 2.0], [1.0, np.inf], "finite"),
            ([1.0, 2.0], [1.0, -1.0], "negative"),
            ([1.0, 2.0], [0.0, 0.0], "zero"),
            ([1.0, 2.0], [1.0], "equal"),
            ([], [], "equal"),
        ):
            with pytest.raises(ValueError, match=message):
                LinearCalibration.fit(score, squared, components=3)
        with pytest.raises(ValueError, match="components"):
            LinearCalibration.fit([1.0], [1.0], components=0)
        LinearCalibration.fit([-1e308, 0.0, 1e308], [1.0, 2.0, 3.0], components=3)


def test_conformal_radius_covers_new_errors():
    """Mean coverage over many splits lies in [level, level + 1/(n+1)], whatever the quality of the uncertainty."""
    rng = np.random.default_rng(10)
    for level in (0.5, 0.9):
        covered = []
        for _ in range(2000):
            sigma = np.exp(rng.normal(size=20))
            errors = np.abs(sigma * rng.standard_t(3, size=20))
            fit = ConformalCalibration.fit(sigma[:19], errors[:19] ** 2, levels=(level,))
            covered.append(errors[19] <= fit.radius(sigma[19:], level)[0])
        spread = 3 * np.sqrt(level * (1 - level) / 2000)
        assert level - spread <= np.mean(covered) <= level + 1 / 20 + spread


def test_conformal_quantile_by_hand():
    fit = ConformalCalibration.fit(np.full(9, 2.0), (2 * np.arange(1.0, 10)) ** 2, levels=(0.5, 0.9, 0.95))
    assert fit.quantiles == {0.5: 5.0, 0.9: 9.0, 0.95: np.inf}
    assert fit.radius([1.0, 3.0], 0.9) == pytest.approx([9.0, 27.0])
    with pytest.raises(ValueError, match="level 0.8 was not fitted; there are 0.5, 0.9, 0.95"):
        fit.radius([1.0], 0.8)
    for uncertainty in ([0.0, 1.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="> 0"):
            ConformalCalibration.fit(uncertainty, [1.0, 1.0], levels=(0.5,))
        with pytest.raises(ValueError, match="> 0"):
            fit.radius(uncertainty, 0.5)
    with pytest.raises(ValueError, match="levels"):
        ConformalCalibration.fit([1.0], [1.0], levels=(95,))


def test_rank_of_the_conformal_quantile_is_exact_at_whole_numbers():
    """(99 + 1) * 0.29 is 28.999999999999996 and (99 + 1) * 0.57 is 56.99999999999999 in floating point."""
    errors = np.arange(1.0, 100)
    fit = ConformalCalibration.fit(np.ones(99), errors**2, levels=(0.07, 0.29, 0.55, 0.57, 0.9))
    assert list(fit.quantiles.values()) == [7, 29, 55, 57, 90]


def test_dicts_are_json_and_give_the_same_calibration_back():
    score = np.exp(np.random.default_rng(11).normal(size=30))
    both = ScoreCalibration.fit(score, squared_errors(score), components=3, levels=(0.5, 0.99))
    assert both.conformal.quantiles[0.99] == np.inf, "30 items are too few for it"
    for calibration in (both, both.linear, both.conformal):
        text = json.dumps(calibration.to_dict(), allow_nan=False)
        assert type(calibration).from_dict(json.loads(text)) == calibration
    linear = both.linear.to_dict()
    for wrong in ({}, {"kind": "cubic"}, {"kind": "linear", "a": 1.0}, linear | {"c": 1.0}, both.to_dict(), None):
        with pytest.raises(ValueError, match="calibration: expected kind"):
            LinearCalibration.from_dict(wrong)
    for wrong in ({}, linear, None, both.to_dict() | {"conformal": linear}):
        with pytest.raises(ValueError, match="calibration: expected"):
            ScoreCalibration.from_dict(wrong)


def test_radii_of_a_score_that_is_no_variance_cover_the_norms_of_new_errors():
    """Errors that are no Gaussian, and a score in nats: the radii hold where sigma alone does not."""
    rng = np.random.default_rng(14)
    sigma = np.exp(0.5 * rng.normal(size=8000))
    errors = sigma[:, None] * rng.standard_t(3, size=(8000, 3))
    sizes, score = np.linalg.norm(errors, axis=1), np.log(sigma) - 40
    fit = ScoreCalibration.fit(score[:4000], sizes[:4000] ** 2, components=3, levels=(0.5, 0.9, 0.9999))
    radii = fit.radii(score[4000:])
    assert set(radii) == {0.5, 0.9}, "4000 items are too few for 0.9999"
    for level, radius in radii.items():
        # Five standard errors of two binomial shares.
        assert np.mean(sizes[4000:] <= radius) == pytest.approx(level, abs=5 * np.sqrt(2 * level * (1 - level) / 4000))
    gaussian = np.sqrt(stats.chi2.ppf(0.5, 3) * fit.variance(score[4000:]))
    assert np.mean(sizes[4000:] <= gaussian) > 0.6
    assert np.array_equal(np.argsort(radii[0.9], kind="stable"), np.argsort(fit.variance(score[4000:]), kind="stable"))


def test_calibrated_gaussian_intervals_cover_after_the_fit():
    score = np.exp(np.random.default_rng(12).normal(size=5000))
    errors = simulate_errors(2 * score, 1, np.random.default_rng(13))[:, 0]
    v = LinearCalibration.fit(score, errors**2, components=1).variance(score)
    assert np.mean(np.abs(errors) < stats.norm.ppf(0.95) * np.sqrt(v)) == pytest.approx(0.9, abs=0.02)


def test_a_scale_is_the_likelihood_optimum_and_no_more():
    """Against a brute-force search over the one number, and the closed form of its scale."""
    generator = np.random.default_rng(0)
    score = np.exp(generator.normal(size=5000))
    squared = squared_errors(0.7 * score)
    fit = Scale().fit(score, squared, components=3)
    assert fit.b == 0 and fit.variance(score) == pytest.approx(fit.a * score)

    def nll(a):
        return float(np.mean(1.5 * np.log(a * score) + squared / (2 * a * score)))

    options = {"xatol": 1e-10}
    found = optimize.minimize_scalar(
        lambda log_a: nll(np.exp(log_a)), bounds=(-5, 5), method="bounded", options=options
    )
    assert fit.a == pytest.approx(np.exp(found.x), rel=1e-6) and fit.a == pytest.approx(0.7, rel=0.05)
    assert Scale().fit(score, 9 * squared, components=3).a == pytest.approx(9 * fit.a)


@pytest.mark.parametrize(("score", "squared"), [([0.0, 1.0], [1.0, 1.0]), ([-1.0, 1.0], [1.0, 1.0]), ([1.0], [0.0])])
def test_a_scale_needs_positive_scores_and_some_error(score, squared):
    with pytest.raises(ValueError):
        Scale().fit(score, squared, components=1)
