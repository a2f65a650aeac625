"""Intervals over seeds and structures: against scipy's t intervals, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from uqbench.results.statistics import Values, difference, estimate


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
