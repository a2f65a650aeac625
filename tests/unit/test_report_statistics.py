"""Intervals over seeds and structures, against scipy's and by how often they hold the truth; and methods compared."""

import numpy as np
import pytest
from report_runs import al_run, compared, learned_runs, write_run
from scipy import stats

from uqbench.metrics.ranges import range_of
from uqbench.report.load.runs import load_runs
from uqbench.report.statistics.comparison import compare
from uqbench.report.statistics.intervals import Estimate, Values, difference, estimate, share, share_difference
from uqbench.report.statistics.metrics import BY_GENERATION, SCORED, badness

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    root = tmp_path_factory.mktemp("learned")
    learned_runs(root)
    return compare(load_runs([root]), against="ensemble", units="eV")


def runs(values, samples=None, frames=None):
    samples = [None] * len(values) if samples is None else samples
    return Values(list(values), frames or ["a"] * len(values), samples)


def still(values):
    """Runs whose bootstrap values do not move: all chance comes from the seeds."""
    return runs(values, [np.full(50, value) for value in values])


def test_without_chance_in_the_structures_it_is_students_interval():
    values = [1.0, 1.3, 0.9, 1.1]
    found, expected = estimate(still(values)), stats.ttest_1samp(values, 0.0).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert found.runs == 4 and found.seeds == pytest.approx(np.std(values, ddof=1))


def test_differences_without_chance_in_the_structures_are_welchs():
    one, other = [1.0, 1.3, 0.9, 1.1], [2.0, 2.9, 1.4]
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    found = difference(still(one), still(other))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_single_run_has_the_interval_of_its_structures():
    samples = np.random.default_rng(0).normal(2.0, 0.1, size=400)
    found = estimate(runs([2.0], [samples]))
    reach = stats.t.ppf(0.975, 399) * samples.std(ddof=1)
    assert (found.low, found.high) == pytest.approx((2.0 - reach, 2.0 + reach))
    assert np.isnan(found.seeds)


def test_without_any_knowledge_of_the_spread_there_is_no_interval():
    found = estimate(runs([2.0]))
    assert found.mean == 2.0 and np.isnan([found.low, found.high, found.seeds]).all()


def test_several_sets_of_frames_are_paired_between_methods():
    frames = ["a", "b", "c"]
    one, other = np.array([1.0, 5.0, 9.0]), np.array([1.2, 5.1, 9.4])
    found = difference(runs(one, frames=frames), runs(other, frames=frames))
    expected = stats.ttest_rel(one, other).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    part = difference(runs(one, frames=frames), runs([1.2, 9.4, 7.0], frames=["a", "c", "elsewhere"]))
    assert part.mean == pytest.approx(-0.3), "only frames that both have"
    with pytest.raises(ValueError, match="no structures in common"):
        difference(runs([1.0]), runs([1.0], frames=["b"]))


def test_structures_that_both_methods_find_hard_cancel_in_the_difference():
    rng = np.random.default_rng(1)
    common = rng.normal(0, 1.0, size=300)
    one = runs([5.0], [5.0 + common + rng.normal(0, 0.01, 300)])
    other = runs([4.9], [4.9 + common + rng.normal(0, 0.01, 300)])
    assert estimate(one).low < 4.9 < 5.0 < estimate(other).high, "the intervals of the two overlap"
    assert difference(one, other).low > 0.05


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_interval_holds_the_truth_in_95_of_100_studies(seeds):
    """Values move with the structures (known by bootstrap) and with the seed (known from the runs alone)."""
    rng, hits, studies = np.random.default_rng(seeds), 0, 1500
    for _ in range(studies):
        structures = rng.normal(0, 1.0)
        values = 7.0 + structures + rng.normal(0, 1.0, size=seeds)
        noise = rng.normal(0, 1.0, size=200)
        found = estimate(runs(values, [value + noise for value in values]))
        hits += found.low < 7.0 < found.high
    # Welch and Satterthwaite's approximation errs a little to the safe side for two seeds.
    assert 0.935 <= hits / studies <= 0.985


def test_a_share_of_alike_runs_is_at_most_as_sure_as_one_of_independent_trials():
    counts, trials = [18, 17, 19, 18, 18, 17], [20] * 6
    found = share(counts, trials)
    exact = stats.binomtest(sum(counts), sum(trials)).proportion_ci(0.95, method="exact")
    assert found.mean == pytest.approx(107 / 120)
    assert found.low < exact.low and found.high > exact.high
    single = share([18], [20])
    exact = stats.binomtest(18, 20).proportion_ci(0.95, method="exact")
    assert (single.low, single.high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_shares_hold_the_truth_although_trials_of_a_run_are_alike(spread):
    """Runs whose own probabilities differ: a plain binomial interval would fail."""
    rng, hits, plain, studies = np.random.default_rng(0), 0, 0, 400
    sides = np.array([0.6 - 0.3 * spread, 0.6 + 0.3 * spread])
    for _ in range(studies):
        counts = rng.binomial(50, rng.choice(sides, size=6))
        found = share(counts, [50] * 6)
        exact = stats.binomtest(int(counts.sum()), 300).proportion_ci(0.95, method="exact")
        hits += found.low <= 0.6 <= found.high
        plain += exact.low <= 0.6 <= exact.high
    assert hits / studies >= 0.93
    assert spread == 0.0 or plain / studies < 0.6


def test_differences_of_shares_are_newcombes():
    """His example (b): 9/10 against 3/10, with Wilson intervals."""
    wilson = [stats.binomtest(k, 10).proportion_ci(0.95, method="wilson") for k in (9, 3)]
    one, other = (Estimate(k / 10, ci.low, ci.high, 1, 0.0) for k, ci in zip((9, 3), wilson, strict=True))
    found = share_difference(one, other)
    assert (found.low, found.high) == pytest.approx((0.1705, 0.8090), abs=2e-4)


def test_a_single_run_is_given_the_chance_of_the_seeds_of_the_other_method():
    found = difference(still([3.0]), still([1.0, 1.2, 1.4]))
    variance = 0.04
    assert found.mean == pytest.approx(1.8)
    reach = (found.high - found.low) / 2
    assert reach > stats.t.ppf(0.975, 4) * np.sqrt(variance + variance / 3) * 0.99


def test_equal_values_of_a_few_runs_are_no_proof_of_certainty():
    assert np.isnan(estimate(runs([4.0, 4.0])).low)


def test_shares_of_no_trials_are_unknown():
    assert np.isnan(share([0], [0]).mean)


def test_a_better_method_comes_out_better_and_an_equal_one_equal(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(4):
        jitter = 0.01 * rng.normal(size=3)
        for uq, mae, jit in (("a", 1.0, jitter[0]), ("b", 1.0, jitter[1]), ("c", 1.2, jitter[2])):
            write_run(tmp_path, uq, seed, {"mae": mae + jit, "spearman": 0.9 - mae / 2 + jit, "sharpness": 1.0})
    comparison, rows = compared(tmp_path)
    assert rows["best"].xs("mae", level="metric").to_dict() == {("a", ""): True, ("b", ""): True, ("c", ""): False}
    assert not rows.loc["c", "", "spearman"]["best"], "high is good for a rank correlation"
    assert not rows["best"].xs("sharpness", level="metric").any(), "says nothing of how good a method is"
    differences = comparison.differences.set_index(["uq", "metric"])
    assert differences.loc["c", "mae"]["ci_low"] > 0.1
    assert differences.loc["b", "mae"]["ci_low"] < 0 < differences.loc["b", "mae"]["ci_high"]
    assert comparison.missing == []


def test_other_settings_are_never_averaged(tmp_path):
    for lr, mae in ((0.1, 1.0), (0.5, 3.0)):
        for seed in (0, 1):
            write_run(tmp_path, "a", seed, {"mae": mae}, training__lr=lr)
    _, rows = compared(tmp_path)
    assert rows["mean"].to_dict() == {("a", "training.lr=0.1", "mae"): 1.0, ("a", "training.lr=0.5", "mae"): 3.0}


def test_methods_are_paired_under_the_same_conditions(tmp_path):
    for lr in (0.1, 0.5):
        for uq in ("a", "b"):
            write_run(tmp_path, uq, 0, {"mae": 1.0 + lr + (uq == "b")}, training__lr=lr)
    differences = compared(tmp_path)[0].differences.set_index(["uq", "variant"])["mean"]
    assert differences["b", "training.lr=0.1"] == pytest.approx(1.0) == differences["b", "training.lr=0.5"]


def test_variants_of_a_method_are_compared_with_the_only_one_of_another(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    for components in (2, 3):
        write_run(tmp_path, "b", 0, {"mae": 1.0}, uq__components=components)
    assert set(compared(tmp_path)[0].differences["variant"]) == {"uq.components=2", "uq.components=3"}


def test_units_change_values_and_intervals_alike(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0}, unit="eV/Å")
    first, second = (compared(tmp_path, units=units)[1].loc["a", "", "mae"] for units in ("eV", "kcal/mol"))
    assert second["unit"] == "kcal/mol/Å"
    for name in ("mean", "ci_low", "ci_high"):
        assert second[name] / first[name] == pytest.approx(23.060548)


def test_ideals_stand_beside_their_metric(tmp_path):
    write_run(tmp_path, "a", 0, {"spearman": 0.4, "spearman_ideal": 0.5, "mae": 1.0})
    _, rows = compared(tmp_path)
    assert rows.loc["a", "", "spearman"]["ideal"] == 0.5 and np.isnan(rows.loc["a", "", "mae"]["ideal"])
    assert not any(metric.endswith("_ideal") for metric in rows.index.get_level_values("metric"))


def test_intervals_use_the_resamples_of_the_nested_runs(tmp_path):
    al_run(tmp_path, "gmm", 0, "random", (2.0, 1.0))
    summary = compared(tmp_path)[0].summary
    rows = summary[(summary["target"] == "forces") & (summary["split"] == "far")].set_index("generation")
    noise = np.random.default_rng(0).normal(size=50)
    assert rows.loc[1, "ci_high"] - 2.0 == pytest.approx(0.01 * 2.0096 * noise.std(ddof=1), rel=1e-3)


def test_a_planted_gain_is_found_seed_by_seed(learned):
    gains = learned.acquisitions.query("split == 'far' and metric == 'mae'").set_index(["uq", "generation"])
    for uq in ("ensemble", "gmm"):
        assert gains.loc[(uq, 2), "ci_high"] < 0, "although the seeds differ by more"
        assert np.isnan(gains.loc[(uq, 1), "ci_low"]) or gains.loc[(uq, 1), "mean"] == 0
    methods = learned.differences.query("split == 'far' and metric == 'mae' and generation == 2")
    assert set(methods["variant"]) == {"acquisition=adversarial", "acquisition=random"}, "under the same acquisition"
    assert (methods["ci_low"] < 0).all() and (methods["ci_high"] > 0).all()


def test_acquisitions_without_a_seed_in_common_are_not_compared(tmp_path):
    al_run(tmp_path, "gmm", 0, "random", (2, 1))
    al_run(tmp_path, "gmm", 1, "adversarial", (2, 1))
    assert not len(compared(tmp_path)[0].acquisitions)


def test_barrier_errors_of_different_sign_do_not_cancel(learned):
    rows = learned.summary.query("target == 'neb' and generation == 1").groupby("metric")["mean"].first()
    assert rows["barrier_error"] == pytest.approx((4 - 9 + 14) / 3)
    assert rows["barrier_abs_error"] == pytest.approx((4 + 9 + 14) / 3)


def test_good_values_of_a_metric_are_small_as_badness():
    assert np.argmin(badness("zms", [0.2, 0.9, 1.5])) == 1
    assert np.argmin(badness("calibrated_coverage_68", [0.5, 0.66, 0.9])) == 1
    assert np.argmin(badness("conformal_coverage_97_5", [0.9, 0.97, 1.0])) == 1
    assert np.argmin(badness("roc_auc_95", [0.5, 0.9])) == 1
    assert np.argmin(badness("calibrated_miscalibration_area_norm", [0.0, 0.13, 0.3])) == 1
    assert np.argmin(badness("cnll", [-2.0, 1.0])) == 0
    assert badness("calibrated_width_90", [1.0]) is None
    assert np.argmin(badness("closest_shift_O–O", [-0.5, 0.1])) == 1 and range_of("closest_shift_O–O")[0] == -np.inf
    assert badness("Si_with_4_O", [0.9]) is badness("survival_reference", [1.0]) is None
    assert range_of("cnll")[0] == -np.inf and range_of("calibrated_miscalibration_area") == (0.0, 0.5)
    for quantities in (SCORED, BY_GENERATION):
        assert len({quantity.label for quantity in quantities}) == len(quantities), "one name for each"
