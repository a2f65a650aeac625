"""Mean ranks of methods over blocks of data set, split and metric, with the tests of Friedman and Nemenyi."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from uqbench.report.evidence import IN, JUDGED, OUT, Evidence, worth

LEVEL = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Methods ranked within blocks.

    Attributes:
        domain: in domain, or out of it.
        methods: k names, best first.
        ranks: (k,) mean rank, 1 the best; ties share the mean of their ranks.
        blocks: N that were ranked; left_out: that lack a method.
        statistic, p: of Friedman's test that all methods are alike; NaN for fewer than three methods or two blocks.
        critical: difference of mean ranks beyond which two methods differ (Nemenyi).
    """

    domain: str
    methods: list[str]
    ranks: np.ndarray
    blocks: int
    left_out: int
    statistic: float
    p: float
    critical: float


def rankings(evidence: Evidence) -> Iterator[Ranking]:
    """Yield a ranking for each domain where at least two methods share a block."""
    quantities = pd.MultiIndex.from_tuples([quantity[:2] for quantity in JUDGED])
    for domain in (IN, OUT):
        rows = evidence.rows[evidence.rows["domain"] == domain]
        rows = rows[pd.MultiIndex.from_frame(rows[["target", "metric"]]).isin(quantities)]
        if not len(rows):
            continue
        rows = rows.assign(worth=0.0)
        for metric, own in rows.groupby("metric"):
            rows.loc[own.index, "worth"] = worth(str(metric), own["value"].to_numpy(float))
        # Seeds repeat an experiment: their mean is what is ranked, one value per block and method.
        keys = ["block", "target", "metric"]
        table = rows.pivot_table(index=keys, columns="method", values="worth", aggfunc=_mean, dropna=False)
        table = table.dropna(how="all").dropna(axis="columns", how="all")
        complete = table.dropna()
        if complete.shape[1] > 1 and len(complete):
            yield rank(complete, domain, left_out=len(table) - len(complete))


def _mean(values: pd.Series) -> float:
    return values.mean(skipna=False)


def rank(table: pd.DataFrame, domain: str, *, left_out: int = 0) -> Ranking:
    """Rank the columns (methods) within each row (block): small is good, nothing is missing.

    Sources: Friedman, J. Am. Stat. Assoc. 32, 675 (1937); Demsar, J. Mach. Learn. Res. 7, 1 (2006), section 3.2.2.
    """
    blocks, k = table.shape
    ranks = stats.rankdata(table.to_numpy(), axis=1).mean(axis=0)
    statistic = p = float("nan")
    if k > 2 and blocks > 1:
        statistic, p = map(float, stats.friedmanchisquare(*table.to_numpy().T))
    order = np.argsort(ranks, kind="stable")
    names = [str(table.columns[place]) for place in order]
    return Ranking(domain, names, ranks[order], blocks, left_out, statistic, p, critical_difference(k, blocks))


def critical_difference(k: int, blocks: int) -> float:
    """Nemenyi's difference of mean ranks of k methods over N blocks at 95 %: q sqrt(k (k + 1) / (6 N))."""
    q = float(stats.studentized_range.ppf(LEVEL, k, np.inf)) / np.sqrt(2)
    return q * float(np.sqrt(k * (k + 1) / (6 * blocks)))
