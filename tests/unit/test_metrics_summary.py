"""Metric rows: names, units, intervals, ideals, strata and pairing."""

import warnings

import numpy as np
import pytest
from scipy import stats

from uqbench.metrics import accuracy, confidence, likelihood, ranking, reliability
from uqbench.metrics.bootstrap import bootstrap, interval, resampled_counts
from uqbench.metrics.kernels import Means, Ordering
from uqbench.metrics.populations import by_element, by_force_magnitude
from uqbench.metrics.ranges import range_of
from uqbench.metrics.ranking import Ranking
from uqbench.metrics.reliability import simulate_errors
from uqbench.metrics.summary import MetricSettings, energy_summary, force_summary

pytestmark = pytest.mark.numerics

REQUIRED = ["mae", "rmse", "spearman", "roc_auc_80", "roc_auc_90", "roc_auc_95", "nll", "cnll"]
SETTINGS = {"quantiles": (0.8, 0.9, 0.95), "levels": (0.5, 0.68, 0.9, 0.95), "bins": 20, "bootstrap": 40}
SIMULATED = {"ideal_items": 1_000_000, "ideal_draws": 100}


def settings(**changes):
    """Keywords of the summaries, with some settings or keywords changed."""
    values = {name: changes.pop(name, value) for name, value in (SETTINGS | SIMULATED).items()}
    return {"settings": MetricSettings(**values), "generator": np.random.default_rng(7)} | changes


def force_rows(*arguments, **keywords):
    summary = force_summary(*arguments, **keywords)
    return [] if summary is None else summary.rows()


def energy_rows(*arguments, **keywords):
    return energy_summary(*arguments, **keywords).rows()


@pytest.fixture
def forces():
    """Arguments of force_rows: 60 structures of 4 to 6 atoms, underestimated variances, a log score."""
    rng = np.random.default_rng(0)
    ptr = np.concatenate(([0], np.cumsum(rng.integers(4, 7, size=60))))
    variance = np.exp(rng.normal(-6, 1, ptr[-1]))
    reference = rng.normal(size=(ptr[-1], 3))
    predicted = reference + simulate_errors(1.5 * variance, 3, rng)
    return [reference, predicted, np.log(variance), variance, 1.5 * variance + 1e-6, ptr]


def by_metric(rows):
    return {row["metric"]: row for row in rows}


def test_force_rows_hold_the_plain_metrics(forces):
    rows = by_metric(force_rows(*forces, **settings()))
    errors, score, variance, calibrated = forces[1] - forces[0], *forces[2:5]
    squared = accuracy.squared_norm(errors)
    expected = {
        "mae": np.abs(errors).mean(),
        "rmse": np.sqrt((errors**2).mean()),
        "spearman": stats.spearmanr(score, squared).statistic,
        "roc_auc_90": ranking.roc_auc(score, squared, 0.9),
        "nll": likelihood.gaussian_nll(errors, variance),
        "cnll": likelihood.gaussian_nll(errors, calibrated),
        "zms": reliability.zms(errors, variance),
        "calibrated_zms": reliability.zms(errors, calibrated),
        "miscalibration_area": reliability.miscalibration_area(errors, variance),
        "calibrated_miscalibration_area_norm": reliability.miscalibration_area_norm(errors, calibrated),
        "dispersion": variance.std() / variance.mean(),
        "sharpness": np.sqrt(variance.mean()),
        "width_95": reliability.width(variance, 0.95),
        "crps": likelihood.gaussian_crps(errors, variance),
        "ence": reliability.ence(errors, variance, bins=20),
        "calibrated_ence": reliability.ence(errors, calibrated, bins=20),
        "ause": confidence.ause(score, squared),
        "ause_probabilistic": confidence.ause_probabilistic(errors, variance),
        "calibrated_ause_probabilistic": confidence.ause_probabilistic(errors, calibrated),
        "coverage_68": reliability.coverage(errors, variance, 0.68),
    }
    assert {name: rows[name]["value"] for name in expected} == pytest.approx(expected, rel=1e-10)
    assert rows["nll"]["value"] != pytest.approx(rows["cnll"]["value"], abs=1e-3)
    for name in REQUIRED:
        assert rows[name]["ci_low"] < rows[name]["value"] < rows[name]["ci_high"], name
    for row in rows.values():
        assert list(row) == ["target", "population", "metric", "value", "unit", "n", "ci_low", "ci_high"]
        assert (row["target"], row["population"], row["n"]) == ("forces", "all", len(errors))
    units = {name: row["unit"] for name, row in rows.items()}
    assert {name for name in units if units[name] == "eV/Å"} >= {"mae", "rmse", "crps", "width_50", "sharpness"}
    assert {units[name] for name in ("spearman", "roc_auc_80_ideal", "nll", "zms", "ence", "coverage_50")} == {"1"}


def test_energy_rows_hold_the_plain_metrics_per_structure_and_per_atom():
    rng = np.random.default_rng(1)
    reference, variance, n_atoms = rng.normal(size=50), np.exp(rng.normal(size=50)), rng.integers(2, 9, size=50)
    predicted = reference + rng.normal(size=50) * np.sqrt(variance)
    rows = by_metric(energy_rows(reference, predicted, variance, variance, None, n_atoms, **settings()))
    error = predicted - reference
    assert rows["mae"]["value"] == pytest.approx(np.abs(error).mean())
    assert rows["mae_per_atom"]["value"] == pytest.approx(np.abs(error / n_atoms).mean())
    assert rows["rmse_per_atom"]["value"] == pytest.approx(np.sqrt(np.mean((error / n_atoms) ** 2)))
    assert rows["nll"]["value"] == pytest.approx(-stats.norm.logpdf(error, scale=np.sqrt(variance)).mean())
    assert [rows[name]["unit"] for name in ("mae", "mae_per_atom", "crps", "nll")] == ["eV", "eV/atom", "eV", "1"]
    assert not any(name.startswith(("cnll", "calibrated")) or "norm" in name for name in rows)


def test_ideals_are_what_a_perfect_model_reaches(forces):
    reference, predicted, score, variance, _, ptr = forces
    rng = np.random.default_rng(3)
    draws = [accuracy.squared_norm(simulate_errors(variance, 3, rng)) for _ in range(200)]
    rows = by_metric(force_rows(reference, predicted, score, variance, None, ptr, **settings()))
    expected = np.mean([ranking.spearman(variance, squared) for squared in draws])
    assert rows["spearman_ideal"]["value"] == pytest.approx(expected, abs=0.01)
    expected = np.mean([ranking.roc_auc(variance, squared, 0.9) for squared in draws])
    assert rows["roc_auc_90_ideal"]["value"] == pytest.approx(expected, abs=0.01)
    exact = (0.5 * np.log(2 * np.pi * variance) + 0.5).mean()
    assert rows["nll_ideal"]["value"] == pytest.approx(exact, abs=0.02)
    assert rows["miscalibration_area_norm_ideal"]["value"] == reliability.NORM_FLOOR
    assert rows["miscalibration_area_ideal"]["value"] == pytest.approx(0.31 / np.sqrt(3 * len(variance)), rel=0.2)
    # The rows of one metric stand together.
    names = list(rows)
    assert names[names.index("spearman") + 1] == "spearman_ideal"


def test_ideal_ranking_comes_from_the_calibrated_variance_where_there_is_no_other(forces):
    forces[3] = None
    rows = by_metric(force_rows(*forces, **settings(bootstrap=0)))
    assert rows["spearman_ideal"]["value"] == pytest.approx(0.72, abs=0.05)
    assert "nll" not in rows and "cnll" in rows and "cnll_ideal" in rows and np.isnan(rows["cnll"]["ci_low"])
    forces[4] = None
    rows = by_metric(force_rows(*forces, **settings(bootstrap=0)))
    assert list(rows) == ["mae", "rmse", "spearman", "roc_auc_80", "roc_auc_90", "roc_auc_95", "ause"]


def test_scaling_labels_scales_std_and_leaves_ranks(forces):
    """Units: everything of an energy's dimension takes the factor, everything else stays, NLL shifts by its log."""
    reference, predicted, score, variance, calibrated, ptr = forces
    before = by_metric(force_rows(*forces, **settings()))
    c = 23.06
    scaled = (c * reference, c * predicted, score * 3 - 1, c**2 * variance, c**2 * calibrated, ptr)
    after = by_metric(force_rows(*scaled, **settings()))
    for name, row in before.items():
        factor = c if row["unit"] == "eV/Å" else 1
        shift = np.log(c) if name.removesuffix("_ideal") in ("nll", "cnll") else 0
        for column in ("value", "ci_low", "ci_high"):
            expected = factor * row[column] + shift
            assert after[name][column] == pytest.approx(expected, rel=1e-8, abs=1e-10, nan_ok=True), (name, column)


def test_equal_generators_give_equal_rows_and_others_do_not(forces):
    first, again, other = (
        by_metric(force_rows(*forces, **settings(generator=np.random.default_rng(seed)))) for seed in (1, 1, 2)
    )
    assert str(first) == str(again)
    assert first["mae"]["value"] == other["mae"]["value"] and first["mae"]["ci_low"] != other["mae"]["ci_low"]


def test_kernels_under_resampling_equal_repeated_structures(forces):
    """The weighted kernels against metrics of rows that are literally repeated."""
    errors, score, variance, ptr = forces[1] - forces[0], forces[2], forces[3], forces[5]
    summary = force_summary(*forces, **settings(bootstrap=3))
    mask = np.arange(len(errors)) % 3 == 1
    masked = force_summary(*forces, **settings(bootstrap=3, mask=mask))
    seed = np.random.default_rng(7).integers(2**63, size=2)[0]
    for k, counts in enumerate(resampled_counts(60, 3, np.random.default_rng(seed))):
        assert counts.sum() == 60
        atoms = np.concatenate([np.arange(ptr[s], ptr[s + 1]) for s in range(60) for _ in range(int(counts[s]))])
        squared = accuracy.squared_norm(errors[atoms])
        expected = {
            "rmse": np.sqrt((errors[atoms] ** 2).mean()),
            "spearman": stats.spearmanr(score[atoms], squared).statistic,
            "roc_auc_95": ranking.roc_auc(score[atoms], squared, 0.95),
            "nll": likelihood.gaussian_nll(errors[atoms], variance[atoms]),
            "miscalibration_area": reliability.miscalibration_area(errors[atoms], variance[atoms]),
            "miscalibration_area_norm": reliability.miscalibration_area_norm(errors[atoms], variance[atoms]),
            "dispersion": variance[atoms].std() / variance[atoms].mean(),
            "ence": reliability.ence(errors[atoms], variance[atoms], bins=20),
            "ause": confidence.ause(score[atoms], squared),
        }
        assert {name: summary.samples[name][k] for name in expected} == pytest.approx(expected, rel=1e-9)
        kept = atoms[mask[atoms]]
        assert masked.samples["mae"][k] == pytest.approx(np.abs(errors[kept]).mean(), rel=1e-9)


def test_bootstrap_covers_the_truth_when_atoms_are_correlated():
    """Nominal 95 %, structures of ten equal atoms: resampling atoms would cover about half of the time."""
    rng = np.random.default_rng(0)
    owner, hits, trials = np.repeat(np.arange(60), 10), 0, 200
    for _ in range(trials):
        values = np.repeat(rng.normal(2.0, 1.0, size=60), 10)
        kernel = Means({"mean": values}, owner, 60)
        low, high = interval(values.mean(), bootstrap([kernel], 60, 200, rng)["mean"])
        hits += low < 2.0 < high
    assert 0.89 <= hits / trials <= 0.99


def test_interval_is_centred_on_the_value_and_undefined_rather_than_made_up():
    assert interval(5.0, np.arange(101.0)) == pytest.approx((5.0 - 47.5, 5.0 + 47.5)), "shifted to the value"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(interval(np.nan, np.arange(9.0))).all()
        assert np.isnan(interval(1.0, np.array([1.0]))).all()
        assert np.isnan(interval(1.0, np.array([np.nan, np.nan, 1.0, 2.0]))).all()


# Bootstrap values on whose far side a plain shift to the value would leave the range.
SKEWED = {
    "spearman": (0.9, np.linspace(0.3, 0.97, 101)),
    "roc_auc_80": (0.97, np.linspace(0.6, 0.99, 101)),
    "coverage_95": (0.02, np.linspace(0.01, 0.3, 101)),
    "miscalibration_area": (0.01, np.linspace(0.02, 0.2, 101)),
    "calibrated_ence": (0.05, np.geomspace(0.06, 2.0, 101)),
    "mae_per_atom": (0.1, np.linspace(0.1, 0.9, 101)),
    "zms": (0.5, np.geomspace(0.2, 30, 101)),
}


@pytest.mark.parametrize("metric", SKEWED)
def test_no_interval_leaves_the_range_of_its_metric(metric):
    value, samples = SKEWED[metric]
    ends = range_of(metric)
    plain = np.array(interval(value, samples))
    assert metric == "zms" or np.any((plain < ends[0]) | (plain > ends[1])), "the example shows nothing"
    low, high = interval(value, samples, ends=ends)
    assert ends[0] <= low < value < high <= ends[1]


def test_the_interval_of_a_correlation_is_shifted_as_fisher_s_z():
    low, high = interval(0.5, np.tanh(np.linspace(-1, 3, 101)), ends=range_of("spearman"))
    z = np.arctanh(0.5)
    np.testing.assert_allclose(np.arctanh([low, high]), [z - 1.9, z + 1.9], atol=1e-3)


@pytest.mark.parametrize(("value", "samples"), [(1.0, np.linspace(0.9, 1, 41)), (0.9, np.r_[0.8, np.ones(40)])])
def test_at_the_end_of_its_range_an_interval_reaches_to_the_value(value, samples):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = interval(value, samples, ends=(0.0, 1.0))
    assert low <= value <= high <= 1.0 and low < high


def test_intervals_of_a_summary_of_few_structures_stay_within_the_ranges():
    rng = np.random.default_rng(2)
    variance = rng.uniform(0.01, 4.0, 24)
    errors = rng.normal(size=(24, 3)) * np.sqrt(variance)[:, None] * np.repeat([0.1, 1, 1, 8], 6)[:, None]
    reference = rng.normal(size=(24, 3))
    ptr = np.arange(0, 25, 6)
    summary = force_summary(
        reference, reference + errors, variance, variance, 3 * variance, ptr, **settings(bootstrap=300)
    )
    plainly_outside = []
    for row in summary.rows():
        low, high = range_of(row["metric"])
        assert not (row["ci_low"] < low or row["ci_high"] > high), row
        ends = interval(row["value"], summary.samples.get(row["metric"], np.empty(0)))
        plainly_outside += [row["metric"]] if ends[0] < low or ends[1] > high else []
    assert plainly_outside, "the example shows nothing"


def test_equal_generators_pair_the_resamples(forces):
    """Differences between methods are taken resample by resample, see `uqbench.report.statistics.intervals`."""
    first = force_summary(*forces, **settings(bootstrap=200))
    slightly_worse = list(forces)
    slightly_worse[1] = forces[0] + 1.02 * (forces[1] - forces[0])
    second = force_summary(*slightly_worse, **settings(bootstrap=200))
    np.testing.assert_allclose(second.samples["mae"], 1.02 * first.samples["mae"], rtol=1e-12)


def test_resamples_are_shared_between_methods_with_different_columns(forces):
    with_variance = force_summary(*forces, **settings())
    forces[3] = forces[4] = None
    assert np.array_equal(force_summary(*forces, **settings()).samples["mae"], with_variance.samples["mae"])


def test_strata_are_one_call_a_mask(forces):
    reference, predicted, score, variance, calibrated, ptr = forces
    numbers = np.tile([1, 6, 8], len(reference))[: len(reference)]
    masks = by_element(numbers, ["X", "H", "He", "Li", "Be", "B", "C", "N", "O"])
    assert list(masks) == ["element=H", "element=C", "element=O"]
    for name, mask in masks.items():
        rows = by_metric(force_rows(*forces, **settings(mask=mask, population=name)))
        assert rows["mae"]["population"] == name and rows["mae"]["n"] == mask.sum()
        assert rows["mae"]["value"] == pytest.approx(np.abs(predicted - reference)[mask].mean())
        assert rows["nll"]["value"] == pytest.approx(
            likelihood.gaussian_nll((predicted - reference)[mask], variance[mask])
        )
    bands = by_force_magnitude(reference, [0, 1, 2, 50])
    assert list(bands) == ["force=0-1", "force=1-2", "force=2-50", "force>=50"]
    assert np.array_equal(np.sum(list(bands.values()), axis=0), np.ones(len(reference)))
    assert np.linalg.norm(reference[bands["force=1-2"]], axis=1).min() >= 1
    assert force_rows(*forces, **settings(mask=bands["force>=50"])) == []
    for edges in ([], [1, 2], [0, 2, 1]):
        with pytest.raises(ValueError, match="edges"):
            by_force_magnitude(reference, edges)


def test_undefined_values_are_nan_rows_without_warnings(forces):
    reference, predicted, score, variance, _, _ = forces
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = by_metric(force_rows(reference, predicted, 0 * score, 0 * variance, None, forces[5], **settings()))
        one = by_metric(force_rows(*forces[:5], [0, len(reference)], **settings()))
        energy = by_metric(energy_rows([1.0], [1.5], [0.3], [0.2], [0.2], [3], **settings()))
        gap = by_metric(force_rows(*forces[:5], [0, 0, len(reference), len(reference)], **settings()))
    for name in ("spearman", "roc_auc_80", "ause", "nll", "zms", "miscalibration_area", "ence", "dispersion"):
        assert np.isnan([constant[name][c] for c in ("value", "ci_low", "ci_high")]).all(), name
    assert np.isnan(constant["spearman_ideal"]["value"]) and constant["mae"]["value"] > 0
    assert np.isfinite(one["spearman"]["value"]) and np.isnan(one["spearman"]["ci_low"])
    assert np.isnan(gap["mae"]["ci_low"]), "empty structures do not make one structure several"
    assert np.isnan(energy["spearman"]["value"]) and energy["mae"]["value"] == 0.5
    assert np.isnan(energy["mae"]["ci_high"]) and np.isfinite(energy["nll"]["value"])


def test_bad_input_is_rejected(forces):
    def broken(position, change):
        arguments = list(forces)
        arguments[position] = change(np.array(arguments[position]))
        return arguments

    def with_nan(values):
        values.flat[5] = np.nan
        return values

    for position, name in enumerate(("reference", "predicted", "score", "variance", "variance")):
        with pytest.raises(ValueError, match=f"{name}: 1 of .* not finite"):
            force_rows(*broken(position, with_nan), **settings())
    with pytest.raises(ValueError, match="negative"):
        force_rows(*broken(3, np.negative), **settings())
    with pytest.raises(ValueError, match="equal"):
        force_rows(*broken(1, lambda a: a[:-1]), **settings())
    for change in (lambda p: p[:-1], lambda p: p + 1, lambda p: p[::-1]):
        with pytest.raises(ValueError, match="ptr"):
            force_rows(*broken(5, change), **settings())
    with pytest.raises(ValueError, match="mask"):
        force_rows(*forces, **settings(mask=[True]))
    with pytest.raises(ValueError, match="score"):
        force_rows(*broken(2, lambda s: s[:, None]), **settings())
    with pytest.raises(ValueError, match="equal"):
        energy_summary([1.0, 2.0], [1.0], [1.0, 2.0], None, None, [1, 1], **settings())


def test_orderings_are_shared_only_where_they_agree():
    key = np.array([3.0, 1.0, 2.0, 1.0])
    ordering = Ordering(key)
    assert ordering.fits(np.log(key)) and ordering.fits(key)
    assert not ordering.fits(-key)
    assert not ordering.fits(np.array([3.0, 1.0, 2.0, 1.5])), "a tie resolved is another ordering"
    assert not ordering.fits(np.array([3.0, 2.0, 2.0, 2.0])), "a new tie is another ordering"
    with pytest.raises(ValueError, match="quantile"):
        Ranking(ordering, ordering, (0.0,))
