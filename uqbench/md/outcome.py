"""What simulations say of a potential: survival, temperature, drift, and whether the uncertainty gave warning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from uqbench.md.limits import REASONS
from uqbench.metrics.ranges import range_of
from uqbench.metrics.survival import kaplan_meier, mean_interval, restricted_mean, share_interval

Rows = list[dict[str, Any]]


def rows(frames: pd.DataFrame, fates: pd.DataFrame, *, duration: float, equilibration: float, warning: int) -> Rows:
    """Return metric rows for every temperature.

    Args:
        frames, fates: as a `Recorder` gives them.
        duration: of the simulations, ps.
        equilibration: ps left out of mean temperature and drift, which are of survivors only.
        warning: recorded frames before an explosion in which the uncertainty should have risen.
    """
    phases = marked(frames, fates, warning)
    all_rows: Rows = []
    for temperature, replicas in fates.groupby("temperature"):
        records = phases[phases.temperature == temperature]
        survivors = records[records.phase.eq("survivor") & (records.time_ps > equilibration)]
        all_rows += [
            {"target": "md", "population": f"temperature={temperature:g}K", **row}
            for row in [
                *_survival(replicas, duration),
                _over_replicas("mean_temperature", "K", _means(survivors)),
                _over_replicas("energy_drift", "eV/atom/ps", _drifts(survivors)),
                *_warning(records),
            ]
        ]
    return all_rows


def marked(frames: pd.DataFrame, fates: pd.DataFrame, warning: int) -> pd.DataFrame:
    """Return the frames with the phase of each: `survivor`, `before` an explosion, or `warning`, just before it.

    The phase of the last `warning` frames of an exploded replica is `warning`.
    """
    frames = frames.merge(fates[["temperature", "replica", "exploded"]], on=["temperature", "replica"])
    left = frames.groupby(["temperature", "replica"]).cumcount(ascending=False)
    phase = np.where(left < warning, "warning", "before")
    return frames.assign(phase=np.where(frames.exploded, phase, "survivor"))


def _survival(replicas: pd.DataFrame, duration: float) -> Rows:
    n, lost = len(replicas), int(replicas.exploded.sum())
    share = kaplan_meier(replicas.time_ps, replicas.exploded).share[-1]
    mean = restricted_mean(replicas.time_ps, replicas.exploded, duration)
    reasons = replicas.reason.value_counts()
    return [
        _row("survival", "1", n, float(share), share_interval(n - lost, n)),
        _row("restricted_mean_survival_time", "ps", n, mean[0], mean[1:]),
        _row("exploded", "1", n, lost),
        *(_row(f"exploded_{reason}", "1", n, int(reasons[reason])) for reason in REASONS if reason in reasons),
    ]


def _means(survivors: pd.DataFrame) -> np.ndarray:
    return survivors.groupby("replica").kinetic_temperature.mean().to_numpy()


def _drifts(survivors: pd.DataFrame) -> np.ndarray:
    """Slope of the conserved energy per atom of each survivor, by least squares."""
    slopes = [
        np.polynomial.polynomial.polyfit(one.time_ps, one.conserved_energy, 1)[1] / one.n_atoms.iloc[0]
        for _, one in survivors.groupby("replica")
        if len(one) > 1
    ]
    return np.array(slopes)


def _warning(records: pd.DataFrame) -> Rows:
    """Compare the uncertainty just before explosions with that of all other frames, within one temperature.

    The calibrated deviation has a unit and so a ratio; the score only ranks: the probability that it is higher just
    before an explosion than in another frame, one half where it says nothing.
    """
    calm, late = records[records.phase != "warning"], records[records.phase == "warning"]
    median = _row("median_force_std", "eV/Å", len(calm), _median(calm.force_std_max))
    if late.empty:
        return [median]
    replicas = late.groupby("replica")
    rise = _median(replicas.force_std_max.median()) / _median(calm.force_std_max)
    auc = float("nan")
    if len(calm):
        auc = float(stats.mannwhitneyu(late.score_max, calm.score_max).statistic) / (len(late) * len(calm))
    n = len(replicas)
    return [median, _row("force_std_rise", "1", n, rise), _row("warning_auc", "1", n, auc)]


def _median(values: pd.Series) -> float:
    return float(values.median()) if len(values) else float("nan")


def _over_replicas(metric: str, unit: str, values: np.ndarray) -> dict[str, Any]:
    return _row(metric, unit, len(values), *mean_interval(values, range_of(metric)))  # replicas are independent


def _row(metric: str, unit: str, n: int, value: float, ends: Iterable[float] = (None, None)) -> dict[str, Any]:
    low, high = ends
    return {"metric": metric, "value": value, "unit": unit, "n": n, "ci_low": low, "ci_high": high}
