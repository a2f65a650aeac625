"""How the structure of simulated frames differs from that of a reference, as metric rows and as a table of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from scipy import stats

from uqbench.data.distributions import Description, RadialDistribution
from uqbench.figures.dataset import pair_name
from uqbench.metrics.survival import LEVEL, mean_interval, share_interval

Rows = list[dict[str, Any]]


def rows_of(
    population: str,
    model: Description | None,
    reference: Description,
    replicas: Sequence[Description | None],
    references: Sequence[Description | None] = (),
) -> Rows:
    """Return metric rows of target `structure`; those of the model are NaN where no replica stayed sound.

    model: of all its sound replicas together. reference: with the bond and the cutoff that all others were described
    with. replicas: of each on the model, None where it exploded; references: the same on the reference, if it was
    simulated.

    For each pair of elements: the integral of |g - g_ref| over r, Å (0 for the same structure; it includes the noise
    of both), the distance of the highest g less that of the reference, and the shortest distance less that of the
    reference, Å. For both elements of the bond: the share of atoms with the coordination number that is commonest in
    the reference, of model and reference.
    """
    sound = [one for one in replicas if one is not None]
    rows = [_survival("survival", replicas)]
    if references:
        rows.append(_survival("survival_reference", references))
    for pair, theirs in reference.distributions.items():
        name, n = pair_name(pair), len(sound)
        difference = peak_shift = closest_shift = np.nan
        interval = (None, None)
        if model is not None:
            ours = model.distributions[pair]
            difference = distance(ours, theirs)
            peak_shift, closest_shift = ours.peak - theirs.peak, ours.closest - theirs.closest
            interval = _distance_interval(difference, pair, replicas, references, theirs)
        rows.append(_row(f"rdf_difference_{name}", "Å", n, difference, interval))
        rows.append(_row(f"rdf_peak_shift_{name}", "Å", n, peak_shift))
        rows.append(_row(f"closest_shift_{name}", "Å", n, closest_shift))
    for (centre, neighbour), counts in reference.counts.items():
        if not len(counts):
            continue
        common = int(np.bincount(counts).argmax())
        name = f"{chemical_symbols[centre]}_with_{common}_{chemical_symbols[neighbour]}"
        rows.append(_mean(name, [np.mean(one.counts[centre, neighbour] == common) for one in sound]))
        rows.append(_row(f"{name}_reference", "1", len(counts), float(np.mean(counts == common))))
    if model is not None:
        rows.append(_row("density", "g/cm³", len(sound), float(model.densities.mean())))
    rows.append(_row("density_reference", "g/cm³", len(reference.densities), float(reference.densities.mean())))
    return [{"target": "structure", "population": population, **row} for row in rows]


def distance(ours: RadialDistribution, theirs: RadialDistribution) -> float:
    """Return the integral of |g - g_ref| over r in Å, of distributions in the same shells."""
    return float(np.abs(ours.g - theirs.g).sum() * (ours.r[1] - ours.r[0]))


def curves(described: Mapping[str, Description]) -> pd.DataFrame:
    """Return all g(r) in one table: what was described, pair, r in Å, g."""
    parts = [
        pd.DataFrame({"of": name, "pair": pair_name(pair), "r": one.r, "g": one.g})
        for name, description in described.items()
        for pair, one in description.distributions.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _distance_interval(
    value: float,
    pair: tuple[int, int],
    replicas: Sequence[Description | None],
    references: Sequence[Description | None],
    reference: RadialDistribution,
) -> tuple[float | None, float | None]:
    """Jackknife interval of `distance` over replicas, each left out on both sides (Efron and Stein, 1981).

    All replicas hold as many frames, so that the mean of their g is that of all their frames.
    """
    ours = {k: one.distributions[pair].g for k, one in enumerate(replicas) if one is not None}
    theirs = {k: one.distributions[pair].g for k, one in enumerate(references) if one is not None}
    if len(ours) < 2 or len(theirs) == 1:
        return None, None
    left_out = []
    for k in ours:
        parts = [np.mean([g for j, g in side.items() if j != k], axis=0) for side in (ours, theirs) if side]
        means = [RadialDistribution(reference.r, g) for g in parts]
        left_out.append(distance(means[0], means[1] if theirs else reference))
    n = len(left_out)
    error = np.sqrt((n - 1) / n * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * error)
    return max(value - half, 0.0), value + half


def _survival(metric: str, replicas: Sequence[Description | None]) -> dict[str, Any]:
    n, sound = len(replicas), sum(one is not None for one in replicas)
    return _row(metric, "1", n, sound / n, share_interval(sound, n))


def _mean(metric: str, shares: Sequence[float]) -> dict[str, Any]:
    """Mean over replicas, which are independent but for their starts."""
    return _row(metric, "1", len(shares), *mean_interval(shares, (0.0, 1.0)))


def _row(metric: str, unit: str, n: int, value: float, ends: tuple = (None, None)) -> dict[str, Any]:
    low, high = ends
    return {"metric": metric, "value": float(value), "unit": unit, "n": n, "ci_low": low, "ci_high": high}
