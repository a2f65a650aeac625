"""What the metrics are called in reports, and which values of them are good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from uqbench.metrics.reliability import NORM_FLOOR
from uqbench.metrics.summary import CALIBRATED

# Target, metric, and what it is called; in the order of a report.
MAIN = (
    ("forces", "mae", "force MAE"),
    ("forces", "rmse", "force RMSE"),
    ("energy", "mae", "energy MAE"),
    ("forces", "spearman", "Spearman ρ"),
    ("forces", "roc_auc_80", "ROC-AUC, worst 20 %"),
    ("forces", "roc_auc_95", "ROC-AUC, worst 5 %"),
    ("forces", "ause", "AUSE"),
    ("forces", "miscalibration_area", "miscalibration area, raw"),
    ("forces", "calibrated_miscalibration_area", "miscalibration area, calibrated"),
    ("forces", "zms", "ZMS ⟨z²⟩, raw"),
    ("forces", "calibrated_zms", "ZMS ⟨z²⟩, calibrated"),
    ("forces", "nll", "NLL, raw"),
    ("forces", "cnll", "NLL, calibrated"),
    ("forces", "calibrated_ence", "ENCE, calibrated"),
    ("forces", "calibrated_crps", "CRPS, calibrated"),
    ("forces", "conformal_coverage_90", "coverage of 90 % conformal radii"),
    ("forces", "conformal_radius_90", "mean 90 % conformal radius"),
    ("energy", "cnll", "energy NLL, calibrated"),
    ("cost", "training_time", "training"),
    ("cost", "inference_time", "inference"),
)
# Of active learning and simulations, in the order of a report; `population` of several rows is named beside.
LEARNING = (
    ("forces", "mae", "force MAE"),
    ("energy", "mae", "energy MAE"),
    ("forces", "spearman", "Spearman ρ"),
    ("forces", "roc_auc_80", "ROC-AUC, worst 20 %"),
    ("forces", "cnll", "NLL, calibrated"),
    ("neb", "barrier_error", "barrier error, signed"),
    ("neb", "barrier_abs_error", "barrier error, absolute"),
    ("neb", "converged", "share of paths converged"),
    ("md", "survival", "share of replicas that survive"),
    ("md", "restricted_mean_survival_time", "mean survival time"),
    ("acquisition", "score_seeds", "score of the seeds"),
    ("acquisition", "score_random", "score, random of equal length"),
    ("acquisition", "score_proposals", "score of the proposals"),
    ("acquisition", "above_random", "share of proposals above random"),
    ("acquisition", "displacement", "displacement of the proposals"),
    ("acquisition", "labelled", "proposals labelled"),
    ("acquisition", "force_rmse", "force RMSE on labelled proposals"),
)
# A star stands for the elements, which are named beside.
STRUCTURE = (
    ("structure", "survival", "share of replicas that stay sound"),
    ("structure", "rdf_difference_*", "∫|Δg(r)| dr"),
    ("structure", "rdf_peak_shift_*", "shift of the peak of g(r)"),
    ("structure", "closest_shift_*", "shift of the shortest distance"),
)
SIMULATIONS = {"md": "dynamics", "neb": "barriers", "structure": "structure"}
SIMULATED = (*(entry for entry in LEARNING if entry[0] in SIMULATIONS), *STRUCTURE)
ALL = ("all", "run")  # populations that need not be named
Metric = tuple[str, str, str, str]
"""Target, metric, population, label."""
Row = dict[str, Any]
"""A row of a table; of many small selections, dictionaries are much faster than data frames."""
HIGH_IS_GOOD = ("spearman", "roc_auc", "survival", "restricted_mean_survival_time", "warning_auc")
# Metrics that say how an interval or distribution looks, or what was done, not how good it is.
NEUTRAL = (
    *("sharpness", "dispersion", "width", "parameters", "score_", "above_random", "labelled", "count_", "displacement"),
    *("converged", "fmax", "saddle_", "single_point_barrier", "mean_temperature", "median_force_std", "force_std_rise"),
    "force_rmse",  # of the proposals of a run, which are its own
    *("density", "survival_reference"),
)
# Signed distances from a reference, judged by their size.
SIGNED = ("barrier_error", "reverse_barrier_error", "energy_drift", "rdf_peak_shift_", "closest_shift_")
VALUES_OF = ("barrier", "barrier_reference", "reverse_barrier", "reverse_barrier_reference")
PROPOSED = "adversarial"  # the acquisition that the others are baselines of
# Shares of a number of trials, whose intervals are binomial.
SHARES = (("md", "survival"), ("structure", "survival"))

COVERAGE = re.compile(r"coverage_(\d+(?:_\d+)?)$", re.ASCII)  # with its level in per cent

# Values between which a metric must lie, by the beginning of its name; the others have no end or begin at zero.
UNBOUNDED = ("nll", "cnll", "score_", *SIGNED)
BOUNDS = {"spearman": (-1.0, 1.0), "roc_auc": (0.0, 1.0), "miscalibration_area": (0.0, 0.5), "coverage": (0.0, 1.0)}
BOUNDS |= dict.fromkeys(("survival", "above_random", "converged", "warning_auc"), (0.0, 1.0))
BOUNDS |= {"conformal_coverage": (0.0, 1.0)} | dict.fromkeys(UNBOUNDED, (-np.inf, np.inf))


def metrics_of(rows: pd.DataFrame, wanted: Iterable[tuple[str, str, str]]) -> Iterator[tuple[Metric, list[Row]]]:
    """Yield the wanted metrics (target, metric, label) that are there, one by one, with their rows.

    Elements and ranges of forces are left out; of simulations, each temperature is a metric of its own.
    """
    found = grouped(rows.to_dict("records"), "target", "metric")
    for target, metric, label in _named(wanted, found):
        for (population,), own in grouped(found.get((target, metric), ()), "population").items():
            plain = population in ALL
            if plain or target in SIMULATIONS:
                where = "" if plain or target == "neb" else f", {str(population).removeprefix('temperature=')}"
                yield (target, metric, str(population), label + where), own


def _named(wanted: Iterable[tuple[str, str, str]], found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield what is wanted, with each metric that is found in the place of one that ends in a star."""
    for target, metric, label in wanted:
        if not metric.endswith("*"):
            yield target, metric, label
            continue
        for other, name in found:
            if other == target and name.startswith(metric[:-1]):
                yield target, name, f"{label}, {name.removeprefix(metric[:-1])}"


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows by their values of some keys, in the order of the first of each."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def bounds(metric: str) -> tuple[float, float]:
    """Return the lowest and the highest value that a metric can have."""
    base = metric.removeprefix(CALIBRATED)
    return next((ends for start, ends in BOUNDS.items() if base.startswith(start)), (0.0, np.inf))


def badness(metric: str, values: ArrayLike) -> NDArray[np.float64] | None:
    """Turn values of a metric into numbers that are small where it is good; None for a metric that does not judge.

    Coverage is judged by its distance from the level, the mean squared z-score by that of its logarithm from zero, the
    miscalibration area of the norm by that from the area of a perfect model.
    """
    values = np.asarray(values, dtype=np.float64)
    base = metric.removeprefix(CALIBRATED)
    if base.startswith(NEUTRAL) or base in VALUES_OF or "_with_" in base:
        return None
    if base.startswith(SIGNED):
        return np.abs(values)
    if base.startswith(HIGH_IS_GOOD):
        return -values
    if base == "zms":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(np.log(values))
    if base == "miscalibration_area_norm":
        return np.abs(values - NORM_FLOOR)
    level = COVERAGE.search(base)
    if level is not None:
        return np.abs(values - float(level[1].replace("_", ".")) / 100)
    return values
