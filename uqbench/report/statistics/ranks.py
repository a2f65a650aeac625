"""Mean ranks of methods over blocks of data set, split and metric: they describe, and are not tested.

Metrics of one prediction, and splits of one data set, are not independent blocks. Tests that take them for independent
(Friedman, Nemenyi) find differences between equal methods far more often than their level says.
"""

from __future__ import annotations

import pandas as pd

from uqbench.report.statistics.contrasts import IN, OUT, Study, worth
from uqbench.report.statistics.metrics import PRINCIPAL, is_one_of


def rankings(study: Study) -> pd.DataFrame:
    """Rank the methods within the blocks of each domain where at least two methods share one.

    Returns one row per domain and method, the best first: domain, method, mean_rank (1 the best), blocks that were
    ranked, and those left_out, which lack a method. Empty where there is nothing to rank.
    """
    records = []
    for domain in (IN, OUT):
        rows = study.rows[study.rows["domain"] == domain]
        rows = rows[is_one_of(rows, PRINCIPAL)].assign(worth=0.0)
        if not len(rows):
            continue
        for metric, values in rows.groupby("metric")["value"]:
            rows.loc[values.index, "worth"] = worth(str(metric), values.to_numpy(float))
        # Seeds repeat an experiment: their mean is what is ranked, one value per block and method.
        keys = ["block", "target", "metric"]
        table = rows.pivot_table(index=keys, columns="method", values="worth", aggfunc=_mean, dropna=False)
        table = table.dropna(how="all").dropna(axis="columns", how="all")
        complete = table.dropna()
        if complete.shape[1] > 1 and len(complete):
            numbers = {"blocks": len(complete), "left_out": len(table) - len(complete)}
            for method, value in mean_ranks(complete).items():
                records.append({"domain": domain, "method": str(method), "mean_rank": value} | numbers)
    return pd.DataFrame(records)


def mean_ranks(table: pd.DataFrame) -> pd.Series:
    """Mean ranks of the columns (methods) within each row (block), best first: small is good, nothing is missing.

    Ties share the mean of their ranks.
    """
    return table.rank(axis=1).mean().sort_values(kind="stable")


def _mean(values: pd.Series) -> float:
    return values.mean(skipna=False)
