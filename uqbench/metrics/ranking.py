"""Does the score put the items with the large errors first? Invariant under every increasing change of the score."""

import numpy as np
from numpy.typing import ArrayLike

from uqbench.metrics.kernels import Array, Ordering, Values, Weighting, as_counts, finite, percent


def spearman(score: ArrayLike, squared_error: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Spearman's rank correlation of score and squared error, average ranks for ties.

    Population: items (atoms, or structures). score, squared_error (n,); weights (n,) multiplicities. In [-1, 1]; NaN
    where score or error is constant. Source: docs/metrics.md (rho between score_i and e_i^2).

    Example:
        >>> from uqbench.metrics.ranking import spearman
        >>> round(spearman(score=[1, 2, 3, 4], squared_error=[0.1, 0.4, 0.3, 0.9]), 4)
        0.8
    """
    return _evaluate(score, squared_error, (), weights)["spearman"]


def roc_auc(score: ArrayLike, squared_error: ArrayLike, quantile: float, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve of the score as a detector of large errors, ties counted one half.

    Population: items (atoms, or structures) of the set scored; positive = squared error above its own quantile there
    (linear interpolation between order statistics, as `numpy.quantile`). score, squared_error (n,); weights (n,)
    multiplicities. In [0, 1]; NaN where the score is constant or a class is empty.
    Source: docs/metrics.md; the rank-sum identity of Mann and Whitney.

    Example:
        >>> from uqbench.metrics.ranking import roc_auc
        >>> roc_auc(score=[1, 4, 3, 2], squared_error=[0.1, 0.2, 0.3, 0.9], quantile=0.5)  # 0.3 and 0.9 are large
        0.5
    """
    return _evaluate(score, squared_error, (quantile,), weights)[roc_name(quantile)]


def roc_name(quantile: float) -> str:
    """Name of the metric for an error quantile: 0.8 gives ``roc_auc_80``; ValueError outside (0, 1)."""
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: expected a number between 0 and 1, got {quantile}")
    return f"roc_auc_{percent(quantile)}"


class Ranking:
    """Kernel giving ``spearman`` and ``roc_auc_*`` from the orderings by score and by squared error."""

    def __init__(self, by_score: Ordering, by_error: Ordering, quantiles: tuple[float, ...]) -> None:
        self._by_score, self._by_error = by_score, by_error
        self._names = {roc_name(q): q for q in quantiles}
        # Score group of the items in order of error: one gather then brings the score ranks into that order.
        self._score_group = by_score.group[by_error.order]

    def __call__(self, weighting: Weighting) -> Values:
        below_score, below_error = weighting.below(self._by_score), weighting.below(self._by_error)
        total = below_error[-1]
        # Rank among the repeated rows: a group occupying the places b+1 ... b+w has the average rank b + (w+1)/2.
        # Centred by the mean rank (total+1)/2, which makes a constant score exactly zero.
        score_rank = (below_score[1:] + below_score[:-1] - total) / 2
        error_rank = (below_error[1:] + below_error[:-1] - total) / 2
        score_spread = np.dot(np.diff(below_score), score_rank**2)
        if not score_spread > 0:
            return dict.fromkeys(["spearman", *self._names], float("nan"))
        weighted_rank = weighting.weights(self._by_error) * score_rank[self._score_group]
        return {"spearman": self._spearman(weighted_rank, error_rank, below_error, score_spread)} | {
            name: self._auc(q, weighted_rank, below_error) for name, q in self._names.items()
        }

    def _spearman(self, weighted_rank: Array, error_rank: Array, below_error: Array, score_spread: float) -> float:
        error_spread = np.dot(np.diff(below_error), error_rank**2)
        if not error_spread > 0:
            return float("nan")
        per_item = np.repeat(error_rank, np.diff(self._by_error.bounds))
        return float(np.dot(weighted_rank, per_item) / np.sqrt(score_spread * error_spread))

    def _auc(self, quantile: float, weighted_rank: Array, below_error: Array) -> float:
        # The interpolated quantile lies in [x_k, x_k+1), so "above it" means above x_k, k = floor((W-1) q).
        total = below_error[-1]
        group = np.searchsorted(below_error[1:], np.floor((total - 1) * quantile), side="right")
        negatives = below_error[group + 1]
        positives = total - negatives
        if positives <= 0:
            return float("nan")
        # Mean centred rank of the positives is half the difference of wins and losses against the negatives.
        return float(0.5 + weighted_rank[self._by_error.bounds[group + 1] :].sum() / (positives * negatives))


def _evaluate(
    score: ArrayLike, squared_error: ArrayLike, quantiles: tuple[float, ...], weights: ArrayLike | None
) -> Values:
    score, squared_error = finite("score", score), finite("squared_error", squared_error)
    if score.ndim != 1 or score.shape != squared_error.shape or score.size == 0:
        raise ValueError(f"score {score.shape} and squared_error {squared_error.shape}: expected two equal (n,), n > 0")
    kernel = Ranking(Ordering(score), Ordering(squared_error), quantiles)
    return kernel(Weighting(as_counts(weights, len(score))))
