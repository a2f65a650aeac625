"""Intervals over seeds and structures: against scipy's t intervals, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from uqbench.report.statistics.intervals import Estimate, Values, difference, estimate, share, share_difference

pytestmark = pytest.mark.numerics


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
