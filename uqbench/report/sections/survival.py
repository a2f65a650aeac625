"""Survival curves of the simulations of many runs."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from uqbench.report.figures.survival import Replicas, survival_figure
from uqbench.report.load.runs import METHOD
from uqbench.report.load.variants import method_name
from uqbench.report.render.files import Drawing
from uqbench.report.statistics.metrics import SURVIVAL

REPLICAS = "md_replicas.csv"
COLUMNS = {"temperature": float, "time_ps": float, "exploded": bool}


def survival(rows: pd.DataFrame, title: str) -> tuple[dict[str, Drawing], list[str]]:
    """Lay out the survival of all methods of a task, of the first and the last generation where there are several.

    Returns what draws it by the split or evaluation that simulated, and one line for each table that could not be used.
    """
    figures, problems = {}, []
    simulated = rows[(rows["target"] == SURVIVAL.target) & (rows["metric"] == SURVIVAL.metric)]
    for split, runs in simulated.drop_duplicates("source").groupby("split", sort=False):
        panels = []
        for method, runs_of_method in runs.groupby(METHOD, sort=False):
            replicas = _replicas(runs_of_method, problems)
            if replicas:
                panels.append((method_name(*method), replicas))
        if panels:
            heading = f"Survival in molecular dynamics: {title}"
            figures[str(split)] = functools.partial(survival_figure, panels, title=heading)
    return figures, problems


def _replicas(runs: pd.DataFrame, problems: list[str]) -> list[Replicas]:
    """The replicas of a method by generation, the first and the last, and temperature."""
    generations = runs["generation"].fillna(0)
    last = int(generations.max())
    replicas = []
    for generation in sorted({int(generations.min()), last}):
        stage = f"generation {generation} ({'last' if generation == last else 'first'})" if generation else ""
        tables = [_read_replicas(path, problems) for path in runs.loc[generations == generation, "source"]]
        tables = [table for table in tables if table is not None]
        for temperature, group in pd.concat(tables).groupby("temperature") if tables else ():
            times, exploded, run = (group[name].to_numpy() for name in ("time_ps", "exploded", "run"))
            replicas.append(Replicas(temperature, stage, generation == last, times, exploded, run.astype(str)))
    return replicas


def _read_replicas(source: str, problems: list[str]) -> pd.DataFrame | None:
    path = Path(source, REPLICAS)
    try:
        table = pd.read_csv(path, dtype=COLUMNS)
        lacking = [column for column in COLUMNS if column not in table or table[column].isna().any()]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return table.assign(run=source)
    except (OSError, ValueError) as error:
        problems.append(f"{path}: missing or damaged ({str(error).splitlines()[0]}); its replicas are not drawn")
        return None
