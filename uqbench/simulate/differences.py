"""How the structure of simulated frames differs from that of a reference, as metric rows and as a table of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from scipy import stats

from uqbench.metrics.survival import LEVEL, share_interval
from uqbench.simulate.portrait import pair_name
from uqbench.simulate.structure import Description, RadialDistribution

Rows = list[dict[str, Any]]


def rows_of(
    population: str, whole: Description | None, replicas: Sequence[Description | None], reference: Description
) -> Rows:
    """Return metric rows of target `structure`; those of the model are NaN where no replica stayed sound.

    whole: of all sound replicas together. replicas: of each, None where it exploded. reference: with the bond and the
    cutoff that all others were described with.

    For each pair of elements: the integral of |g - g_ref| over r, Å (0 for the same structure; it includes the noise
    of both), and the distance of the highest g less that of the reference, Å. For both elements of the bond: the share
    of atoms with the coordination number that is commonest in the reference, of model and reference.
    """
    sound = [one for one in replicas if one is not None]
    n, lost = len(replicas), len(replicas) - len(sound)
    rows = [_row("survival", "1", n, len(sound) / n, share_interval(n - lost, n))]
    for pair, theirs in reference.distributions.items():
        ours = None if whole is None else whole.distributions[pair]
        name = pair_name(pair)
        rows.append(_row(f"rdf_difference_{name}", "Å", len(sound), np.nan if ours is None else distance(ours, theirs)))
        shift = np.nan if ours is None else ours.peak - theirs.peak
        rows.append(_row(f"rdf_peak_shift_{name}", "Å", len(sound), shift))
    for way, counts in reference.counts.items():
        if not len(counts):
            continue
        common = int(np.bincount(counts).argmax())
        name = f"{chemical_symbols[way[0]]}_with_{common}_{chemical_symbols[way[1]]}"
        rows.append(_mean(name, np.array([np.mean(one.counts[way] == common) for one in sound])))
        rows.append(_row(f"{name}_reference", "1", len(counts), float(np.mean(counts == common))))
    if whole is not None:
        rows.append(_row("density", "g/cm³", len(sound), float(whole.densities.mean())))
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


def _mean(metric: str, values: np.ndarray) -> dict[str, Any]:
    """Mean over replicas, which are independent but for their starts, with Student's interval."""
    n = len(values)
    if n < 2:
        return _row(metric, "1", n, float(values[0]) if n else np.nan)
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    mean = float(values.mean())
    return _row(metric, "1", n, mean, (max(mean - half, 0.0), min(mean + half, 1.0)))


def _row(metric: str, unit: str, n: int, value: float, ends: tuple = (None, None)) -> dict[str, Any]:
    low, high = ends
    return {"metric": metric, "value": float(value), "unit": unit, "n": n, "ci_low": low, "ci_high": high}
