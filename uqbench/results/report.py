"""Writes a comparison as Markdown, as tables for further work, and as figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from uqbench.figures.methods import Panel, Point, methods_figure
from uqbench.files import atomic_write
from uqbench.results.catalogue import HIGH_IS_GOOD, MAIN
from uqbench.results.collect import Collected
from uqbench.results.comparison import METHOD, PLACE, Comparison
from uqbench.results.generations import sections
from uqbench.results.markdown import NOTHING, difference, estimate, name, slug, table, with_unit
from uqbench.results.reading import OUTER
from uqbench.results.tables import number

DRAWN = (
    *(("forces", "mae"), ("energy", "mae"), ("forces", "spearman"), ("forces", "roc_auc_80")),
    *(("forces", "miscalibration_area"), ("forces", "calibrated_miscalibration_area"), ("forces", "cnll")),
    ("forces", "conformal_radius_90"),
)
SUMMARY, DIFFERENCES, RUNS, REPORT = "summary.csv", "differences.csv", "metrics.parquet", "report.md"


def write_report(folder: Path, collected: Collected, comparison: Comparison) -> list[str]:
    """Write all files of a report into a folder and return their names.

    `metrics.parquet` holds the rows of all runs, `summary.csv` means with intervals, `differences.csv` paired
    differences, `methods_<place>.png` a figure for each place, and `report.md` all of it for people.
    """
    content = {
        SUMMARY: comparison.summary.drop(columns="values").to_csv(index=False).encode(),
        DIFFERENCES: comparison.differences.to_csv(index=False).encode(),
    }
    found, problems = [], []
    for title, file, place in places(comparison.summary):
        figure = f"methods_{file}.png"
        content[figure] = draw(place, title)
        differences = comparison.differences
        if len(differences):
            differences = differences.merge(place[PLACE].drop_duplicates(), on=PLACE)
        found.append(section(title, place, differences, figure))
    for learning in sections(collected, comparison):
        found += learning.lines
        content |= learning.figures
        problems += learning.problems
    content[REPORT] = ("\n".join([*opening(collected, comparison, problems), *found])).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in content.items():
        with atomic_write(folder / file) as temporary:
            temporary.write_bytes(data)
    with atomic_write(folder / RUNS) as temporary:
        collected.rows.to_parquet(temporary, index=False)
    return [*content, RUNS]


def places(summary: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield title, file name and rows of each place where methods were run, but not of active learning."""
    for values, rows in summary[summary["command"] != OUTER].groupby(PLACE, sort=False, dropna=False):
        parts = [str(value) for value in values if not pd.isna(value)]
        yield ", ".join(parts[1:]), slug("-".join(parts)), rows


def opening(collected: Collected, comparison: Comparison, problems: list[str]) -> list[str]:
    """Return what was read and what was not, as lines of Markdown."""
    runs = collected.rows["path"].nunique()
    lines = ["# Comparison of uncertainty methods", "", f"{runs} finished runs."]
    damaged = comparison.problems + problems
    for heading, found in (("Left out", collected.problems), ("Damaged", damaged), ("Missing", comparison.gaps)):
        if found:
            lines += ["", f"**{heading}**", "", *(f"- {line}" for line in found)]
    lines += [
        "",
        "Means over runs with 95 % intervals, which cover the structures scored (bootstrap) and the seeds (Welch and",
        "Satterthwaite; wide for few seeds). **Bold**: no method is better beyond chance. In brackets:",
        "the value of a perfectly calibrated model with the same variances.",
        "",
    ]
    return lines


def section(title: str, rows: pd.DataFrame, differences: pd.DataFrame, figure: str) -> str:
    """Return the tables of one place as Markdown."""
    methods = list(dict.fromkeys(map(tuple, rows[METHOD].to_numpy())))
    runs = rows.groupby(METHOD)["runs"].max()
    head = [f"{name(method)} ({runs[method]})" for method in methods]
    lines = [f"## {title}", "", f"![methods]({figure})"]
    cells = []
    for target, metric, label in MAIN:
        chosen = _chosen(rows, target, metric)
        if len(chosen):
            unit = chosen["unit"].iloc[0]
            cells.append([with_unit(label, unit), *(_cell(_of(chosen, method)) for method in methods)])
    lines += table(["metric (runs)", *head], cells)
    if len(differences):
        against = differences["against"].iloc[0]
        compared = set(map(tuple, differences[METHOD].to_numpy()))
        others = [method for method in methods if method in compared]
        lines += [
            f"Paired difference to {against} (negative: the method has the smaller value); **bold** where the",
        ]
        lines += ["interval leaves out zero:"]
        cells = []
        for target, metric, label in MAIN:
            chosen = _chosen(differences, target, metric)
            if len(chosen):
                cells.append([label, *(difference(_of(chosen, method)) for method in others)])
        lines += table(["metric", *map(name, others)], cells)
    return "\n".join([*lines, ""])


def draw(rows: pd.DataFrame, title: str) -> bytes:
    """Draw the main metrics of one place."""
    methods = list(dict.fromkeys(map(tuple, rows[METHOD].to_numpy())))
    labels = {(target, metric): label for target, metric, label in MAIN}
    panels = []
    for target, metric in DRAWN:
        chosen = _chosen(rows, target, metric)
        if not len(chosen):
            continue
        found = [_of(chosen, method) for method in methods]
        values = [
            Point(*row[["mean", "ci_low", "ci_high", "ideal"]], row["values"]) if row is not None else None
            for row in found
        ]
        unit = chosen["unit"].iloc[0]
        better = "higher" if metric.startswith(HIGH_IS_GOOD) else "lower"
        panels.append(Panel(labels[target, metric], "" if unit == "1" else unit, better, values))
    return methods_figure([name(method) for method in methods], panels, title=title)


def _chosen(rows: pd.DataFrame, target: str, metric: str) -> pd.DataFrame:
    return rows[(rows["target"] == target) & (rows["metric"] == metric) & rows["population"].isin(["all", "run"])]


def _of(rows: pd.DataFrame, method: tuple[str, str]) -> pd.Series | None:
    found = rows[(rows["uq"] == method[0]) & (rows["variant"] == method[1])]
    return None if found.empty else found.iloc[0]


def _cell(row: pd.Series | None) -> str:
    if row is None or np.isnan(row["mean"]):
        return NOTHING
    text = estimate(row, bold=row["best"])
    return text if np.isnan(row["ideal"]) else f"{text} [{number(row['ideal'])}]"
