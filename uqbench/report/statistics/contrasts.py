"""What all runs together say of two methods: differences of a metric, pooled over data sets, splits and conditions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import LEVEL
from uqbench.report.load.runs import TASK, Samples, read_samples
from uqbench.report.load.variants import method_name
from uqbench.report.statistics import metrics
from uqbench.report.statistics.intervals import Estimate, Values, difference, stratified
from uqbench.report.statistics.metrics import MD_SURVIVAL, PRINCIPAL, Quantity
from uqbench.runs.tables import NUMBERS

COMPARED = (*PRINCIPAL, metrics.MISCALIBRATION_RAW, MD_SURVIVAL, metrics.BARRIER)
IN, OUT, SIMULATION = "in domain", "out of domain", "simulation"
TALL = 999  # per cent, above which a number says nothing more
MANY = 5  # blocks from which on their differences show how sure a mean over blocks is
RELATIVE = ("mae", "rmse", "barrier_abs_error")  # compared by their ratios: data sets differ in scale
# What a score that is the same everywhere is worth.
UNINFORMED = {"spearman": 0.0, "roc_auc_80": 0.5}
BLOCK = [*TASK, "shared", "frames"]

Where = tuple[str, Quantity]
"""Domain and quantity."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """How much worse one method is than another: logarithm of a ratio, or difference, of badness, with its interval.

    level: of the interval. blocks: data sets, splits and conditions that both have; of: that either has.
    """

    one: str
    other: str
    domain: str
    quantity: Quantity
    excess: Estimate
    level: float
    blocks: int
    of: int

    @property
    def where(self) -> Where:
        """Domain and quantity."""
        return self.domain, self.quantity

    @property
    def worse(self) -> bool:
        """Whether the interval says that the first is worse."""
        return bool(self.excess.low > 0)

    @property
    def better(self) -> bool:
        """Whether the interval says that the first is better."""
        return bool(self.excess.high < 0)

    @property
    def winner(self) -> str | None:
        """The method that the interval says is better."""
        return self.one if self.better else self.other if self.worse else None

    @property
    def loser(self) -> str | None:
        """The method that the interval says is worse."""
        return self.one if self.worse else self.other if self.better else None

    def __str__(self) -> str:
        ends = np.array([self.excess.mean, self.excess.low, self.excess.high])
        if self.quantity == MD_SURVIVAL:
            ends = ends.clip(-1, 1)
        relative = self.quantity.metric in RELATIVE
        mean, low, high = (_percent(end) if relative else f"{end:+.3g}" for end in ends)
        verb = "worse than" if self.worse else "better than" if self.better else "not told from"
        text = f"{self.quantity.label}, {self.domain}: {self.one} {verb} {self.other}, {mean}"
        if np.isnan(ends).any():
            return f"{text} (no interval)"
        blocks = f"{self.blocks} of {self.of}" if self.blocks < self.of else f"{self.blocks}"
        return f"{text} ({low} … {high} at {100 * self.level:.4g} %; blocks: {blocks})"


class Study:
    """All runs as one design: methods in blocks, with values of the compared metrics, turned so that bigger is worse.

    Attributes:
        rows: those of the compared metrics, with `method`, `block`, and `domain` as one of IN, OUT and SIMULATION.
        methods: ensembles first.
        uq: of each method, its name without settings.
        ensembles, others: methods of the family `ensemble`, and of any other; of an unknown family are in neither.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        rows = _last_generation(_compared(rows))
        rows = rows.assign(method=list(map(method_name, rows["uq"], rows["uq_settings"])))
        rows["block"] = rows.groupby(BLOCK, sort=False, dropna=False).ngroup()
        self.rows = rows
        families = _families(rows)
        self.ensembles = [method for method, family in families.items() if family == "ensemble"]
        self.others = [method for method, family in families.items() if family not in ("ensemble", None)]
        self.methods = sorted(families, key=lambda method: (method not in self.ensembles, method))
        self.uq = dict(zip(rows["method"], rows["uq"], strict=True))
        self._values: dict[tuple, dict[str, Values]] = {}
        read = functools.cache(_samples)
        for key, group in rows.groupby(["domain", "target", "metric"], sort=False):
            # Of many blocks, the chance of the structures shows between them.
            samples_of = read if group["block"].nunique() < MANY else lambda source: {}
            by_method = group.groupby("method", sort=False)
            self._values[key] = {str(method): _values(cells, samples_of) for method, cells in by_method}

    def contrasts(self, pairs: Iterable[tuple[str, str]], wheres: Iterable[Where]) -> list[Contrast]:
        """Compare pairs of methods, where both have values, at a level at which all of it holds together at LEVEL."""
        wheres = list(wheres)
        comparisons = [
            (*pair, *where)
            for pair, where in itertools.product(pairs, wheres)
            if all(self._of(method, *where).values for method in pair)
        ]
        level = 1 - (1 - LEVEL) / max(len(comparisons), 1)  # Bonferroni's
        contrasts = [self.contrast(*comparison, level) for comparison in comparisons]
        return [contrast for contrast in contrasts if contrast is not None]

    def contrast(self, one: str, other: str, domain: str, quantity: Quantity, level: float) -> Contrast | None:
        """How much worse `one` is than `other`; None where they have no block in common."""
        values, subtracted = self._of(one, domain, quantity), self._of(other, domain, quantity)
        blocks, others = set(values.frames), set(subtracted.frames)
        shared = len(blocks & others)
        if not shared:
            return None
        excess = (difference if shared >= MANY else stratified)(values, subtracted, level)
        return Contrast(one, other, domain, quantity, excess, level, shared, len(blocks | others))

    def _of(self, method: str, domain: str, quantity: Quantity) -> Values:
        cells = self._values.get((domain, quantity.target, quantity.metric), {})
        return cells.get(method, Values([], [], []))


def worth(metric: str, values: np.ndarray) -> np.ndarray:
    """Values of a metric turned so that bigger is worse and differences between data sets can be averaged."""
    values = np.asarray(values, float)
    if metric in RELATIVE:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values)
    if metric in UNINFORMED:
        values = np.where(np.isnan(values), UNINFORMED[metric], values)
    return metrics.badness(metric, values)


def _values(rows: pd.DataFrame, samples_of: Callable[[str], Samples]) -> Values:
    """Values of one metric and method by block."""
    target, metric = rows[["target", "metric"]].iloc[0]
    values = worth(metric, rows["value"].to_numpy(float))
    keep = np.flatnonzero(np.isfinite(values))
    blocks, sources, populations = (rows[name].to_numpy(object)[keep] for name in ("block", "source", "population"))
    keys = [(target, population, metric) for population in populations]
    samples = [samples_of(source).get(key) for source, key in zip(sources, keys, strict=True)]
    return Values(values[keep].tolist(), list(map(str, blocks)), samples)


def _samples(source: str) -> Samples:
    """Bootstrap values of the compared metrics of a run, turned as its values; none where they are damaged."""
    try:
        stored = read_samples(source)
    except DataError:
        return {}  # named where methods are compared
    wanted = {(quantity.target, quantity.metric) for quantity in COMPARED}
    return {key: worth(key[2], sample) for key, sample in stored.items() if (key[0], key[2]) in wanted}


def _families(rows: pd.DataFrame) -> dict[str, str | None]:
    """Family of each method; None where its runs say none, or not the same."""
    families = {}
    for method, declared in rows.groupby("method")["family"].unique().items():
        families[str(method)] = None if len(declared) > 1 or pd.isna(declared[0]) else str(declared[0])
    return families


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of COMPARED; of simulations, means over temperatures or reactions of a run, which share a model."""
    rows = metrics.with_absolute_barrier_errors(rows)
    rows = rows[metrics.is_one_of(rows, COMPARED)]
    simulated = rows["target"].isin([MD_SURVIVAL.target, metrics.BARRIER.target])
    scored = rows[~simulated & rows["population"].isin(metrics.UNNAMED)]
    # Of a finished model, the test split is scored already by the run itself.
    scored = scored[(scored["command"] != "evaluate") | (scored["domain"] == "out")]
    scored = scored.assign(domain=np.where(scored["domain"] == "in", IN, OUT))
    keys = [column for column in rows.columns if column not in ("population", "unit", "n", *NUMBERS)]
    pooled = rows[simulated].groupby(keys, sort=False, dropna=False, observed=True)["value"].mean().reset_index()
    return pd.concat([scored, pooled.assign(population="all", domain=SIMULATION)], ignore_index=True)


def _last_generation(rows: pd.DataFrame) -> pd.DataFrame:
    """Of active learning, the last generation, after attacks where they were made: other acquisitions are baselines."""
    last = rows.groupby("path", observed=True)["generation"].transform("max")
    rows = rows[rows["generation"].isna() | (rows["generation"] == last)]
    attacked = rows["acquisition"] == metrics.PROPOSED
    task = [rows[key].fillna("") for key in ("command", "dataset", "subset", "backbone", "setting")]
    return rows[attacked | ~attacked.groupby(task).transform("any")]


def _percent(logarithm: float) -> str:
    percent = 100 * np.expm1(logarithm)
    return f"{percent:+.3g} %" if percent < TALL else f"over +{TALL} %"
