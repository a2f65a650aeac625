"""What the metrics are called in reports, in which units they are, and which values of them are good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ase import units as ase_units
from numpy.typing import ArrayLike, NDArray

from uqbench.metrics.ranges import CALIBRATED, SIGNED
from uqbench.metrics.reliability import NORM_FLOOR
from uqbench.runs.tables import NUMBERS

EV_IN_KCAL_MOL = float(ase_units.mol / ase_units.kcal)


class Quantity(NamedTuple):
    """What is measured, and what it is called."""

    target: str
    metric: str
    label: str


FORCE_MAE = Quantity("forces", "mae", "force MAE")
ENERGY_MAE = Quantity("energy", "mae", "energy MAE")
SPEARMAN = Quantity("forces", "spearman", "Spearman ρ")
ROC_AUC = Quantity("forces", "roc_auc_80", "ROC-AUC, worst 20 %")
MISCALIBRATION_RAW = Quantity("forces", "miscalibration_area", "miscalibration area, raw")
MISCALIBRATION = Quantity("forces", "calibrated_miscalibration_area", "miscalibration area, calibrated")
NLL = Quantity("forces", "cnll", "NLL, calibrated")
BARRIER = Quantity("neb", "barrier_abs_error", "barrier error, absolute")
SURVIVAL = Quantity("md", "survival", "share of replicas that survive")
TRAINING = Quantity("cost", "training_time", "training")
INFERENCE = Quantity("cost", "inference_time", "inference")
# In the order of a report.
MAIN = (
    FORCE_MAE,
    Quantity("forces", "rmse", "force RMSE"),
    ENERGY_MAE,
    SPEARMAN,
    ROC_AUC,
    Quantity("forces", "roc_auc_95", "ROC-AUC, worst 5 %"),
    Quantity("forces", "ause", "AUSE"),
    MISCALIBRATION_RAW,
    MISCALIBRATION,
    Quantity("forces", "zms", "ZMS ⟨z²⟩, raw"),
    Quantity("forces", "calibrated_zms", "ZMS ⟨z²⟩, calibrated"),
    Quantity("forces", "nll", "NLL, raw"),
    NLL,
    Quantity("forces", "calibrated_ence", "ENCE, calibrated"),
    Quantity("forces", "calibrated_crps", "CRPS, calibrated"),
    Quantity("forces", "conformal_coverage_90", "coverage of 90 % conformal radii"),
    Quantity("forces", "conformal_radius_90", "mean 90 % conformal radius"),
    Quantity("energy", "cnll", "energy NLL, calibrated"),
    TRAINING,
    INFERENCE,
)
DYNAMICS = (SURVIVAL, Quantity("md", "restricted_mean_survival_time", "mean survival time"))
BARRIERS = (
    Quantity("neb", "barrier_error", "barrier error, signed"),
    BARRIER,
    Quantity("neb", "converged", "share of paths converged"),
)
PROPOSALS = (
    Quantity("acquisition", "score_seeds", "score of the seeds"),
    Quantity("acquisition", "score_random", "score, random of equal length"),
    Quantity("acquisition", "score_proposals", "score of the proposals"),
    Quantity("acquisition", "above_random", "share of proposals above random"),
    Quantity("acquisition", "displacement", "displacement of the proposals"),
    Quantity("acquisition", "labelled", "proposals labelled"),
    Quantity("acquisition", "force_rmse", "force RMSE on labelled proposals"),
)
# A star stands for the elements, which are named beside.
STRUCTURE = (
    Quantity("structure", "survival", "share of replicas that stay sound"),
    Quantity("structure", "rdf_difference_*", "∫|Δg(r)| dr"),
    Quantity("structure", "rdf_peak_shift_*", "shift of the peak of g(r)"),
    Quantity("structure", "closest_shift_*", "shift of the shortest distance"),
)
SIMULATIONS = {"md": "dynamics", "neb": "barriers", "structure": "structure"}
SCORED = (*MAIN, *BARRIERS, *DYNAMICS, *STRUCTURE)  # of trained models
BY_GENERATION = (FORCE_MAE, ENERGY_MAE, SPEARMAN, ROC_AUC, NLL, *BARRIERS, *DYNAMICS, *PROPOSALS)  # of active learning
# What claims and ranks rest on: errors, ranking, calibration.
PRINCIPAL = (FORCE_MAE, ENERGY_MAE, SPEARMAN, ROC_AUC, MISCALIBRATION, NLL)
MD_SURVIVAL = SURVIVAL._replace(label="share of MD replicas that survive")  # where it stands beside other metrics
UNNAMED = ("all", "run")  # populations that need not be named

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
VALUES_OF = ("barrier", "barrier_reference", "reverse_barrier", "reverse_barrier_reference")
PROPOSED = "adversarial"  # the acquisition that the others are baselines of
# Shares of a number of trials, whose intervals are binomial.
SHARES = (("md", "survival"), ("structure", "survival"))

COVERAGE = re.compile(r"coverage_(\d+(?:_\d+)?)$", re.ASCII)  # with its level in per cent


def metrics_of(rows: pd.DataFrame, wanted: Iterable[Quantity]) -> Iterator[tuple[Quantity, list[Row]]]:
    """Yield the wanted metrics that are there, one by one, with their rows.

    Elements and ranges of forces are left out; of simulations, each temperature is a metric of its own.
    """
    by_metric = grouped(rows.to_dict("records"), "target", "metric")
    for target, metric, label in _without_stars(wanted, by_metric):
        for (population,), selected in grouped(by_metric.get((target, metric), ()), "population").items():
            if population in UNNAMED or target in SIMULATIONS:
                unnamed = population in UNNAMED or target == "neb"
                where = "" if unnamed else f", {str(population).removeprefix('temperature=')}"
                yield Quantity(target, metric, label + where), selected


def _without_stars(wanted: Iterable[Quantity], present: Iterable[tuple[str, str]]) -> Iterator[Quantity]:
    """Yield what is wanted, with each metric that is present in the place of one that ends in a star."""
    for quantity in wanted:
        start, star, _ = quantity.metric.partition("*")
        for target, metric in present if star else ():
            if target == quantity.target and metric.startswith(start):
                yield Quantity(target, metric, f"{quantity.label}, {metric.removeprefix(start)}")
        if not star:
            yield quantity


def is_one_of(rows: pd.DataFrame, quantities: Iterable[Quantity]) -> pd.Series:
    """Whether each row is of one of some quantities."""
    wanted = pd.MultiIndex.from_tuples([(quantity.target, quantity.metric) for quantity in quantities])
    return pd.Series(pd.MultiIndex.from_frame(rows[["target", "metric"]]).isin(wanted), rows.index)


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows by their values of some keys, in the order of the first of each."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def with_absolute_barrier_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the size of each signed barrier error: errors of different sign must not cancel in a mean."""
    signed = rows[(rows["target"] == BARRIER.target) & (rows["metric"] == "barrier_error")]
    sizes = signed.assign(metric=BARRIER.metric, value=signed["value"].abs())
    return pd.concat([rows, sizes], ignore_index=True) if len(sizes) else rows


def convert_units(frame: pd.DataFrame, units: str) -> pd.DataFrame:
    """Give the frame with energies and forces in ``eV`` or ``kcal/mol``; unitless metrics stay as they are.

    A negative log likelihood has unit 1 and keeps its value, which refers to eV and eV/Å. Raises ValueError for other
    units.
    """
    if units not in ("eV", "kcal/mol"):
        raise ValueError(f"units: expected eV or kcal/mol, got {units!r}")
    if units == "eV":
        return frame
    frame = frame.copy()
    energetic = frame["unit"].isin(["eV", "eV/Å", "eV/atom"])
    frame.loc[energetic, list(NUMBERS)] *= EV_IN_KCAL_MOL
    frame.loc[energetic, "unit"] = frame.loc[energetic, "unit"].str.replace("eV", "kcal/mol", regex=False)
    return frame


def badness(metric: str, values: ArrayLike) -> NDArray[np.float64] | None:
    """Turn values of a metric into numbers that are small where it is good; None for a metric that says nothing of it.

    Coverage counts by its distance from the level, the mean squared z-score by that of its logarithm from zero, the
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
