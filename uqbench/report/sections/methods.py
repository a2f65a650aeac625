"""The methods on one task: a figure, a table of all of them, and their differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from uqbench.report.figures.methods import Panel, Point, methods_figure
from uqbench.report.load.run import ACTIVE_LEARNING
from uqbench.report.load.runs import METHOD, Runs, by_task
from uqbench.report.load.variants import method_name
from uqbench.report.render import markdown
from uqbench.report.render.files import Drawing, Section
from uqbench.report.sections.survival import survival
from uqbench.report.statistics.comparison import Comparison
from uqbench.report.statistics.metrics import HIGH_IS_GOOD, SCORED, SIMULATIONS, Row, grouped, metrics_of
from uqbench.runs.tables import number

DRAWN = (
    *(("forces", "mae"), ("energy", "mae"), ("forces", "spearman"), ("forces", "roc_auc_80")),
    *(("forces", "miscalibration_area"), ("forces", "calibrated_miscalibration_area"), ("forces", "cnll")),
    *(("forces", "conformal_radius_90"), ("neb", "barrier_abs_error"), ("md", "survival")),
)


def sections(runs: Runs, comparison: Comparison) -> Iterator[Section]:
    """Yield one section for each task that methods were run on, but not of active learning."""
    differences, raw = by_task(comparison.differences), by_task(runs.rows)
    for task, rows in by_task(comparison.summary).items():
        command, *parts = (str(part) for part in task if part != "")
        if command != ACTIVE_LEARNING:
            # Simulations from a split stand beside the metrics of the same split.
            kinds = [SIMULATIONS[target] for target in SIMULATIONS if {target} == set(rows["target"]) - {"cost"}]
            file = markdown.slug("-".join([command, *parts]))
            yield _section(", ".join([*parts, *kinds]), file, rows, differences.get(task), raw[task])


def _section(title: str, file: str, rows: pd.DataFrame, differences: pd.DataFrame | None, raw: pd.DataFrame) -> Section:
    methods = list(rows[METHOD].drop_duplicates().itertuples(index=False, name=None))
    names = [method_name(*method) for method in methods]
    figures: dict[str, Drawing] = {}
    panels = _panels(rows, methods)
    if panels:
        figures[f"methods_{file}.png"] = functools.partial(methods_figure, names, panels, title=title)
    survived, problems = survival(raw, title)
    figures |= {f"survival_{file}.png": drawing for drawing in survived.values()}
    lines = [markdown.heading(2, title), ""]
    for path in figures:
        lines += [markdown.image(f"{path.partition('_')[0]}, {title}", path), ""]
    counts = rows.groupby(METHOD)["runs"].max()
    head = ["metric (runs)", *(f"{name} ({counts[method]})" for name, method in zip(names, methods, strict=True))]
    lines += markdown.table(head, _cells(rows, methods, _cell))
    if differences is not None:
        compared = set(differences[METHOD].itertuples(index=False, name=None))
        others = [method for method in methods if method in compared]
        against = markdown.escape(differences["against"].iloc[0])
        lines += [f"Paired difference to {against} (negative: the method has the smaller value)."]
        lines += ["**Bold**: the interval leaves out zero, and covers seeds."]
        head = ["metric", *(method_name(*method) for method in others)]
        lines += markdown.table(head, _cells(differences, others, markdown.difference))
    return Section(lines, figures, problems)


def _cells(
    rows: pd.DataFrame, methods: list[tuple[str, str]], cell: Callable[[Row | None], markdown.Markdown]
) -> Iterator[list[str]]:
    """Yield a line of a table for each metric, with a cell for each method."""
    for quantity, of_metric in metrics_of(rows, SCORED):
        by_method = _by_method(of_metric)
        yield [
            markdown.with_unit(quantity.label, of_metric[0]["unit"]),
            *(cell(by_method.get(method)) for method in methods),
        ]


def lines_by_method(
    label: str,
    rows: list[Row],
    column: str,
    values: Sequence[Any],
    cell: Callable[[Row | None], markdown.Markdown],
    method: Sequence[str] = METHOD,
) -> Iterator[list[str]]:
    """Yield a line of a table for each method, with a cell for each value of a column; the first bears the label."""
    for named, of_method in grouped(rows, *method).items():
        by_value = {row[column]: row for row in of_method}
        yield [label, method_name(*named), *(cell(by_value.get(value)) for value in values)]
        label = ""


def _panels(rows: pd.DataFrame, methods: list[tuple[str, str]]) -> list[Panel]:
    """The main metrics of one task."""
    panels = []
    for (target, metric, label), of_metric in metrics_of(rows, SCORED):
        if (target, metric) not in DRAWN:
            continue
        by_method = _by_method(of_metric)
        points = [
            Point(*(row[key] for key in ("mean", "ci_low", "ci_high", "ideal", "values"))) if row else None
            for row in map(by_method.get, methods)
        ]
        unit = of_metric[0]["unit"]
        better = "higher" if metric.startswith(HIGH_IS_GOOD) else "lower"
        panels.append(Panel(label, "" if unit == "1" else unit, better, points))
    return panels


def _by_method(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(row["uq"], row["variant"]): row for row in rows}


def _cell(row: Row | None) -> markdown.Markdown:
    if row is None or math.isnan(row["mean"]):
        return markdown.NOTHING
    text = markdown.estimate(row, bold=row["best"])
    return text if math.isnan(row["ideal"]) else markdown.Markdown(f"{text} [{number(row['ideal'])}]")
