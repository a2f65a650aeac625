"""Weighted building blocks: sort once, then evaluate a metric for many weightings of the same items.

A bootstrap over structures gives every structure an integer multiplicity ("counts", shape (S,)), and all items of a
structure share it through ``owner`` (n,), the structure of each item. Every kernel is called with such a `Weighting`
and gives what the plain metric would give on rows repeated that many times.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Values = dict[str, float]


def as_errors(errors: ArrayLike, variance: ArrayLike | None = None) -> tuple[Array, Array | None]:
    """Give errors as (n, D) and variances as (n,), both float64.

    A 1-D array of errors is taken as one component per item. Raises ValueError for other shapes, no items,
    non-finite numbers, or a negative variance.
    """
    errors = finite("errors", errors)
    if errors.ndim == 1:
        errors = errors[:, None]
    if errors.ndim != 2 or errors.size == 0:
        raise ValueError(f"errors: expected shape (n,) or (n, D) with n, D > 0, got {errors.shape}")
    if variance is None:
        return errors, None
    variance = finite("variance", variance)
    if variance.shape != errors.shape[:1]:
        raise ValueError(f"variance: expected shape {errors.shape[:1]}, got {variance.shape}")
    if np.any(variance < 0):
        raise ValueError("variance: negative values")
    return errors, variance


def finite(name: str, values: ArrayLike) -> Array:
    """Give values as float64; ValueError naming the array if any of them is NaN or infinite."""
    values = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size} values are not finite")
    return values


def percent(share: float) -> str:
    """Give a share as it stands in metric names: 0.9 gives ``90``, 0.975 gives ``97_5``."""
    return f"{100 * share:g}".replace(".", "_")


def as_counts(weights: ArrayLike | None, n: int) -> Array:
    """Give per-item multiplicities (n,) as float64, ones where None; ValueError unless they are whole and >= 0."""
    if weights is None:
        return np.ones(n)
    weights = finite("weights", weights)
    if weights.shape != (n,):
        raise ValueError(f"weights: expected shape ({n},), got {weights.shape}")
    if np.any(weights < 0) or np.any(weights != np.round(weights)):
        raise ValueError("weights: expected whole numbers >= 0 (how often each row is repeated)")
    return weights


def weighted_mean(terms: Array, weights: ArrayLike | None) -> float:
    """Mean of per-item terms (n,) under multiplicities (n,); NaN where all weights are zero or a term is undefined."""
    weights = as_counts(weights, len(terms))
    total = weights.sum()
    return float(np.dot(weights, terms) / total) if total > 0 else float("nan")


class Ordering:
    """Items sorted by one key, once, for any number of weightings; items with equal keys form one group.

    keys (G,): the distinct keys, ascending. order (n,): the item at each sorted position. group (n,): the group of
    each item, in the items' own order. bounds (G+1,): sorted positions where the groups begin and end.
    """

    def __init__(self, key: Array, owner: NDArray[np.integer] | None = None) -> None:
        self.order = np.argsort(key)  # not stable: nothing depends on the order within a group
        ascending = key[self.order]
        begins = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))
        self.keys = ascending[begins]
        self.bounds = np.append(begins, len(key))
        self.group = np.empty(len(key), dtype=np.int32)
        self.group[self.order] = np.repeat(np.arange(len(begins), dtype=np.int32), np.diff(self.bounds))
        self._owner = self.order if owner is None else owner[self.order]
        self._tied = len(begins) < len(key)

    def fits(self, key: Array) -> bool:
        """Whether another key (n,) sorts the items into the same groups in the same order."""
        step = np.diff(key[self.order])
        return bool(np.all(step >= 0)) and np.array_equal(np.flatnonzero(step) + 1, self.bounds[1:-1])

    def weights(self, counts: Array) -> Array:
        """Multiplicity of the item at each sorted position (n,) from those of the owners (S,)."""
        return counts[self._owner]

    def running(self, values: Array) -> Array:
        """Running sums (G+1,) of per-position values (n,) at the group bounds, beginning with zero."""
        sums = np.empty(len(values) + 1)
        sums[0] = 0.0
        np.cumsum(values, out=sums[1:])
        return sums[self.bounds] if self._tied else sums


class Weighting:
    """One multiplicity per structure, counts (S,), and what several kernels need to know of it, computed once."""

    def __init__(self, counts: Array) -> None:
        self.counts = counts
        self._weights: dict[Ordering, Array] = {}
        self._below: dict[tuple[Ordering, int], tuple[Array | None, Array]] = {}

    def weights(self, ordering: Ordering) -> Array:
        """Multiplicity of the item at each sorted position (n,)."""
        if ordering not in self._weights:
            self._weights[ordering] = ordering.weights(self.counts)
        return self._weights[ordering]

    def below(self, ordering: Ordering, column: Array | None = None) -> Array:
        """Weight, or weighted sum of a column (n,) given in sorted order, before each group bound (G+1,).

        Columns are told apart by identity, so they must not change.
        """
        key = (ordering, id(column))
        if key not in self._below:
            weights = self.weights(ordering)
            sums = ordering.running(weights if column is None else weights * column)
            self._below[key] = column, sums  # holding the column keeps its id from being used again
        return self._below[key][1]

    def sums_at(self, ordering: Ordering, edges: Array, column: Array) -> Array:
        """Weighted sums (K,) of a column over the first items that make up the amounts of weight in edges (K,).

        edges in [0, total]. A group of ties is passed through in proportion, which is the mean over all its orders.
        """
        weight, sums = self.below(ordering), self.below(ordering, column)
        upper = np.clip(np.searchsorted(weight, edges, side="left"), 1, len(weight) - 1)
        step = weight[upper] - weight[upper - 1]
        share = np.divide(edges - weight[upper - 1], step, out=np.zeros(len(edges)), where=step > 0)
        return sums[upper - 1] + share * (sums[upper] - sums[upper - 1])


Kernel = Callable[[Weighting], Values]


class Means:
    """Metrics that are functions of plain means over items: one sum per structure, then a dot product a weighting.

    columns: per-item terms (n,) by name; derive: from the dict of their means to the metrics wanted.
    """

    def __init__(
        self,
        columns: Mapping[str, Array],
        owner: NDArray[np.integer],
        structures: int,
        derive: Callable[[Values], Values] = dict,
    ) -> None:
        self._names = list(columns)
        self._sums = np.stack([np.bincount(owner, column, minlength=structures) for column in columns.values()])
        self._size = np.bincount(owner, minlength=structures).astype(np.float64)
        self._derive = derive

    def __call__(self, weighting: Weighting) -> Values:
        total = float(self._size @ weighting.counts)
        with np.errstate(invalid="ignore"):
            means = self._sums @ weighting.counts / total if total > 0 else np.full(len(self._names), np.nan)
        return self._derive(dict(zip(self._names, means.tolist(), strict=True)))
