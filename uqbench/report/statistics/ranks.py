"""Mean ranks of methods over blocks of data set, split and metric: they describe, and are not tested.

Metrics of one prediction, and splits of one data set, are not independent blocks. Tests that take them for independent
(Friedman, Nemenyi) find differences between equal methods far more often than their level says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from uqbench.report.statistics.contrasts import IN, JUDGED, OUT, Evidence, worth


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Methods ranked within blocks.

    Attributes:
        domain: in domain, or out of it.
        methods: k names, best first.
        ranks: (k,) mean rank, 1 the best; ties share the mean of their ranks.
        blocks: N that were ranked; left_out: that lack a method.
    """

    domain: str
    methods: list[str]
    ranks: np.ndarray
    blocks: int
    left_out: int


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
    """Rank the columns (methods) within each row (block): small is good, nothing is missing."""
    ranks = stats.rankdata(table.to_numpy(), axis=1).mean(axis=0)
    order = np.argsort(ranks, kind="stable")
    return Ranking(domain, [str(table.columns[place]) for place in order], ranks[order], len(table), left_out)
