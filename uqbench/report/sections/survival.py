"""Survival curves of the simulations of many runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from uqbench.report.figures.survival import Replicas, survivals_figure
from uqbench.report.places import METHOD
from uqbench.report.render.markdown import name

REPLICAS = "md_replicas.csv"

Drawing = Callable[[], bytes]
"""Draws a figure as a PNG file, here or in another process."""


def survival(rows: pd.DataFrame, title: str) -> tuple[dict[str, Drawing], list[str]]:
    """Lay out the survival of all methods of a place, of the first and the last generation where there are several.

    Returns what draws it by the split or evaluation that simulated, and one line for each table that could not be used.
    """
    figures, problems = {}, []
    simulated = rows[(rows["target"] == "md") & (rows["metric"] == "survival")].drop_duplicates(["source"])
    for split, found in simulated.groupby("split", sort=False):
        panels = []
        for method, own in found.groupby(METHOD, sort=False):
            generations = own["generation"].fillna(0)
            ends = sorted({int(generations.min()), int(generations.max())})
            replicas = []
            for generation in ends:
                tables = [_fates(path, problems) for path in own.loc[generations == generation, "source"]]
                tables = [table for table in tables if table is not None]
                if tables:
                    replicas += _replicas(pd.concat(tables), generation, last=generation == ends[-1])
            if replicas:
                panels.append((name(method), replicas))
        if panels:
            heading = f"Survival in molecular dynamics: {title}"
            figures[str(split)] = functools.partial(survivals_figure, panels, title=heading)
    return figures, problems


def _fates(source: str, problems: list[str]) -> pd.DataFrame | None:
    path = Path(source, REPLICAS)
    try:
        return pd.read_csv(path)[["temperature", "time_ps", "exploded"]].assign(run=source)
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"{path}: missing or damaged ({str(error).splitlines()[0]}); its replicas are not drawn")
        return None


def _replicas(fates: pd.DataFrame, generation: int, *, last: bool) -> list[Replicas]:
    return [
        Replicas(
            temperature=float(temperature),
            stage=f"generation {generation} ({'last' if last else 'first'})" if generation else "",
            last=last,
            times=own["time_ps"].to_numpy(float),
            exploded=own["exploded"].to_numpy(bool),
            runs=own["run"].to_numpy(str),
        )
        for temperature, own in fates.groupby("temperature")
    ]
