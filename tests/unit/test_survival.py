"""Kaplan-Meier against hand-computed and published examples."""

import numpy as np
import pytest
from scipy import stats

from uqbench.metrics.survival import kaplan_meier, restricted_mean, share_interval


def test_an_example_by_hand():
    """Six subjects: 1, 2+, 3, 3, 4+, 5 (+: lost from sight)."""
    curve = kaplan_meier([3, 1, 2, 3, 4, 5], [True, True, False, True, False, True])
    at = dict(zip(curve.times, curve.share, strict=True))
    assert at[1] == pytest.approx(5 / 6)
    assert at[3] == pytest.approx(5 / 6 * (1 - 2 / 4))
    assert at[5] == 0
    # Greenwood's variance of ln S at 3, and the interval S^exp(± z σ / ln S).
    sigma = np.sqrt(1 / (6 * 5) + 2 / (4 * 2))
    share, z = 5 / 12, stats.norm.ppf(0.975)
    ends = share ** np.exp(z * sigma / np.abs(np.log(share)) * np.array([1, -1]))
    k = list(curve.times).index(3)
    np.testing.assert_allclose([curve.low[k], curve.high[k]], ends)
    # Area: 1 to 1, 5/6 to 3, 5/12 to 5; variance: sum of (area to the right)² d / (n (n - d)).
    mean, low, high = restricted_mean([3, 1, 2, 3, 4, 5], [True, True, False, True, False, True], 5.0)
    assert mean == pytest.approx(1 + 2 * 5 / 6 + 2 * 5 / 12)
    se = np.sqrt(2.5**2 / (6 * 5) + (5 / 6) ** 2 * 2 / (4 * 2))
    assert low == pytest.approx(mean - z * se) and high == pytest.approx(min(mean + z * se, 5.0))


def test_the_leukaemia_trial():
    """Remission under 6-MP: Freireich et al. 1963, as tabulated in textbooks (Klein and Moeschberger 2003)."""
    ended = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    lost = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    curve = kaplan_meier([*ended, *lost], [True] * len(ended) + [False] * len(lost))
    at = dict(zip(curve.times, curve.share, strict=True))
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for time, share in published.items():
        assert at[time] == pytest.approx(share, abs=5e-4)


def test_the_ends_have_binomial_intervals():
    survived = kaplan_meier([10.0] * 20, [False] * 20)
    assert survived.share.tolist() == [1.0]
    assert survived.low[0] == survived.start[0] == pytest.approx(0.025 ** (1 / 20)) and survived.high[0] == 1
    lost = kaplan_meier(np.arange(1.0, 21), [True] * 20)
    assert (lost.share[-1], lost.low[-1]) == (0, 0)
    assert lost.high[-1] == pytest.approx(1 - 0.025 ** (1 / 20))  # of all twenty, not of the last one
    assert not np.isnan([lost.low, lost.high]).any()
    assert np.all((lost.low <= lost.share) & (lost.share <= lost.high))
    assert share_interval(0, 20)[1] == pytest.approx(1 - 0.025 ** (1 / 20))


def test_without_censoring_in_between_the_mean_is_that_of_the_times():
    rng = np.random.default_rng(0)
    times = np.minimum(rng.exponential(5.0, 200), 10.0)
    mean, low, high = restricted_mean(times, times < 10, 10.0)
    assert mean == pytest.approx(times.mean())
    half = stats.norm.ppf(0.975) * times.std() / np.sqrt(200)  # Greenwood's variance is then that of a mean
    assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    everyone = restricted_mean([10.0] * 5, [False] * 5, 10.0)
    assert everyone[0] == 10 and np.isnan(everyone[1:]).all()
    nobody = restricted_mean([1.0, 2.0], [True, True], 10.0)
    assert nobody[0] == pytest.approx(1.5)


@pytest.mark.parametrize(("times", "ended"), [([], []), ([1.0, 2.0], [True])])
def test_what_is_no_sample_is_refused(times, ended):
    with pytest.raises(ValueError, match="times"):
        kaplan_meier(times, ended)
