"""What all runs together say of two methods: differences of a metric, pooled over data sets, splits and conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd

from uqbench.errors import DataError
from uqbench.report.load.runs import samples
from uqbench.report.places import PLACE
from uqbench.report.render.markdown import name
from uqbench.report.statistics.intervals import Estimate, Values, difference, stratified
from uqbench.report.statistics.metrics import PROPOSED, badness

# Target, metric and label of what claims and ranks are judged by: errors, ranking, calibration.
JUDGED = (
    ("forces", "mae", "force MAE"),
    ("energy", "mae", "energy MAE"),
    ("forces", "spearman", "Spearman ρ"),
    ("forces", "roc_auc_80", "ROC-AUC, worst 20 %"),
    ("forces", "calibrated_miscalibration_area", "miscalibration area, calibrated"),
    ("forces", "cnll", "NLL, calibrated"),
)
RAW = ("forces", "miscalibration_area", "miscalibration area, raw")
SURVIVAL = ("md", "survival", "share of MD replicas that survive")
BARRIER = ("neb", "barrier_abs_error", "barrier error, absolute")
IN, OUT, SIMULATION = "in domain", "out of domain", "simulation"
EVERYTHING = (*JUDGED, RAW, SURVIVAL, BARRIER)
TALL = 999  # per cent, above which a number says nothing more
MANY = 5  # blocks from which on their differences show how sure a mean over blocks is
UNUSED = ("n", "ci_low", "ci_high", "unit")
RELATIVE = ("mae", "rmse", "barrier_abs_error")  # compared by their ratios: data sets differ in scale
# What a score that is the same everywhere is worth.
UNINFORMED = {"spearman": 0.0, "roc_auc_80": 0.5}
BLOCK = [*PLACE, "shared", "frames"]

Quantity = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """How much worse one method is than another: logarithm of a ratio, or difference, of badness, with its interval.

    level: of the interval. blocks: data sets, splits and conditions that both have; of: that either has.
    """

    one: str
    other: str
    domain: str
    label: str
    relative: bool
    gap: Estimate
    level: float
    blocks: int
    of: int

    @property
    def worse(self) -> bool:
        """Whether the interval says that the first is worse."""
        return bool(self.gap.low > 0)

    @property
    def better(self) -> bool:
        """Whether the interval says that the first is better."""
        return bool(self.gap.high < 0)

    def __str__(self) -> str:
        ends = np.array([self.gap.mean, self.gap.low, self.gap.high])
        if self.label == SURVIVAL[2]:
            ends = ends.clip(-1, 1)
        shown = [_percent(end) if self.relative else f"{end:+.3g}" for end in ends]
        text = f"{self.label}, {self.domain}: {self.one} {_word(self)} {self.other}, {shown[0]}"
        if np.isnan(ends).any():
            return f"{text} (no interval)"
        blocks = f"{self.blocks} of {self.of}" if self.blocks < self.of else f"{self.blocks}"
        level = f"{100 * self.level:.4g} %"
        return f"{text} ({shown[1]} … {shown[2]} at {level}; blocks: {blocks})"


class Evidence:
    """Values of all judged metrics by domain, metric, method and block, in one direction: bigger is worse."""

    def __init__(self, rows: pd.DataFrame) -> None:
        rows = _at_the_end(_judged(rows))
        self.problems: list[str] = []
        self._values: dict[tuple[str, str, str], dict[str, Values]] = {}
        rows = rows.assign(method=[name(pair) for pair in zip(rows["uq"], rows["own"], strict=True)])
        rows["block"] = rows.groupby(BLOCK, sort=False, dropna=False).ngroup()
        self._families = _families(rows)
        self.methods: list[str] = sorted(rows["method"].unique(), key=lambda name: (name not in self.ensembles, name))
        for (domain, target, metric), found in rows.groupby(["domain", "target", "metric"], sort=False):
            blocks = found["block"].nunique()
            self._values[domain, target, metric] = {
                method: self._of(own, metric, blocks < MANY) for method, own in found.groupby("method", sort=False)
            }
        self.rows = rows

    @property
    def ensembles(self) -> list[str]:
        """Methods of the family `ensemble`."""
        return [method for method, family in self._families.items() if family == "ensemble"]

    @property
    def others(self) -> list[str]:
        """Methods of any other family; those of an unknown one are in neither list."""
        return [method for method, family in self._families.items() if family not in ("ensemble", None)]

    def _of(self, rows: pd.DataFrame, metric: str, few: bool) -> Values:
        values = worth(metric, rows["value"].to_numpy(float))
        chances = [None] * len(rows)
        if few:  # of many, the chance of the structures shows between blocks
            keys = zip(rows["source"], rows["target"], rows["population"], strict=True)
            chances = [self._samples(source, (target, population, metric)) for source, target, population in keys]
        keep = np.flatnonzero(np.isfinite(values))
        blocks = rows["block"].to_numpy()
        return Values(values[keep].tolist(), [str(blocks[k]) for k in keep], [chances[k] for k in keep])

    def _samples(self, source: str, key: tuple[str, str, str]) -> np.ndarray | None:
        try:
            found = samples(source).get(key)
        except DataError:
            return None  # named where methods are compared
        return None if found is None else worth(key[2], found)

    def has(self, domain: str, quantity: Quantity, method: str) -> bool:
        """Whether there is a defined value."""
        return bool(self._get(domain, quantity).get(method, Values([], [], [])).values)

    def with_values(self, domain: str, quantity: Quantity) -> list[str]:
        """Methods that have a defined value."""
        return [method for method in self.methods if self.has(domain, quantity, method)]

    def contrast(self, one: str, other: str, domain: str, quantity: Quantity, level: float) -> Contrast | None:
        """How much worse `one` is than `other`; None where they have no block in common."""
        values = self._get(domain, quantity)
        mine, theirs = values.get(one), values.get(other)
        if mine is None or theirs is None or not set(mine.frames) & set(theirs.frames):
            return None
        blocks = len(set(mine.frames) & set(theirs.frames)), len(set(mine.frames) | set(theirs.frames))
        gap = (difference if blocks[0] >= MANY else stratified)(mine, theirs, level)
        return Contrast(one, other, domain, quantity[2], quantity[1] in RELATIVE, gap, level, *blocks)

    def _get(self, domain: str, quantity: Quantity) -> dict[str, Values]:
        return self._values.get((domain, *quantity[:2]), {})


def worth(metric: str, values: np.ndarray) -> np.ndarray:
    """Values of a metric turned so that bigger is worse and differences between data sets can be averaged."""
    values = np.asarray(values, float)
    if metric in RELATIVE:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values)
    if metric in UNINFORMED:
        values = np.where(np.isnan(values), UNINFORMED[metric], values)
    return badness(metric, values)


def _families(rows: pd.DataFrame) -> dict[str, str | None]:
    """Family of each method; None where its runs say none, or not the same."""
    found = {}
    for method, own in rows.groupby("method")["family"]:
        families = own.unique()
        found[str(method)] = None if len(families) > 1 or pd.isna(families[0]) else str(families[0])
    return found


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of EVERYTHING; of simulations, means over temperatures or reactions of a run, which share a model."""
    wanted = pd.MultiIndex.from_tuples([quantity[:2] for quantity in EVERYTHING])
    signed = rows[(rows["target"] == "neb") & (rows["metric"] == "barrier_error")]
    rows = pd.concat([rows, signed.assign(metric="barrier_abs_error", value=signed["value"].abs())])
    rows = rows[pd.MultiIndex.from_frame(rows[["target", "metric"]]).isin(wanted)]
    simulated = rows["target"].isin(["md", "neb"])
    scored = rows[~simulated & rows["population"].isin(["all", "run"])]
    # Of a finished model, the test split is scored already by the run itself.
    scored = scored[(scored["command"] != "evaluate") | (scored["domain"] == "out")]
    scored = scored.assign(domain=np.where(scored["domain"] == "in", IN, OUT))
    keys = [column for column in rows.columns if column not in ("value", "population", *UNUSED)]
    pooled = rows[simulated].groupby(keys, sort=False, dropna=False, observed=True)["value"].mean().reset_index()
    return pd.concat([scored, pooled.assign(population="all", domain=SIMULATION)], ignore_index=True)


def _at_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Of active learning, the last generation, after attacks where they were made: other acquisitions are baselines."""
    last = rows.groupby("path", observed=True)["generation"].transform("max")
    rows = rows[rows["generation"].isna() | (rows["generation"] == last)]
    attacked = rows["acquisition"] == PROPOSED
    place = [rows[key].fillna("") for key in ("command", "dataset", "subset", "backbone", "setting")]
    return rows[attacked | ~attacked.groupby(place).transform("any")]


def _percent(logarithm: float) -> str:
    percent = 100 * np.expm1(logarithm)
    return f"{percent:+.3g} %" if percent < TALL else f"over +{TALL} %"


def _word(one: Contrast) -> str:
    return "worse than" if one.worse else "better than" if one.better else "not told from"


def bonferroni(comparisons: Iterable, level: float = 0.95) -> float:
    """Level of each interval at which all of them together keep `level`."""
    count = max(len(list(comparisons)), 1)
    return 1 - (1 - level) / count
