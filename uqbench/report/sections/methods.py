"""The part of a report on one place: a figure, a table of all methods, and their differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import pandas as pd

from uqbench.report.figures.methods import Panel, Point, methods_figure
from uqbench.report.load.run import OUTER
from uqbench.report.load.runs import Collected
from uqbench.report.places import METHOD, PLACE
from uqbench.report.render.markdown import (
    NOTHING,
    Markdown,
    difference,
    escape,
    estimate,
    heading,
    image,
    name,
    slug,
    table,
    with_unit,
)
from uqbench.report.sections.generations import Section
from uqbench.report.sections.survival import Drawing, survival
from uqbench.report.statistics.comparison import Comparison
from uqbench.report.statistics.metrics import HIGH_IS_GOOD, MAIN, SIMULATED, SIMULATIONS, Row, metrics_of
from uqbench.runs.tables import number

DRAWN = (
    *(("forces", "mae"), ("energy", "mae"), ("forces", "spearman"), ("forces", "roc_auc_80")),
    *(("forces", "miscalibration_area"), ("forces", "calibrated_miscalibration_area"), ("forces", "cnll")),
    *(("forces", "conformal_radius_90"), ("neb", "barrier_abs_error"), ("md", "survival")),
)


def sections(collected: Collected, comparison: Comparison) -> Iterator[Section]:
    """Yield one section for each place where methods were run, but not of active learning."""
    gaps = _by_place(comparison.differences)
    raw = _by_place(collected.rows)
    for place, rows in _by_place(comparison.summary).items():
        if place[0] != OUTER:
            parts = [str(part) for part in place if part != ""]
            # Simulations from a split stand beside the metrics of the same split.
            kinds = [SIMULATIONS[target] for target in SIMULATIONS if {target} == set(rows["target"]) - {"cost"}]
            title = ", ".join([*parts[1:], *kinds])
            yield _section(title, slug("-".join(parts)), rows, gaps.get(place), raw[place])


def _by_place(rows: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    if not len(rows):
        return {}
    groups = rows.groupby(PLACE, sort=False, dropna=False)
    return {tuple("" if pd.isna(part) else part for part in place): own for place, own in groups}


def _section(title: str, file: str, rows: pd.DataFrame, gaps: pd.DataFrame | None, raw: pd.DataFrame) -> Section:
    methods = list(rows[METHOD].drop_duplicates().itertuples(index=False, name=None))
    panels = _panels(rows, methods)
    figures: dict[str, Drawing] = {}
    if panels:
        drawing = functools.partial(methods_figure, [name(method) for method in methods], panels, title=title)
        figures[f"methods_{file}.png"] = drawing
    survived, problems = survival(raw, title)
    figures |= {f"survival_{file}.png": drawing for drawing in survived.values()}
    runs = rows.groupby(METHOD)["runs"].max()
    lines = [heading(2, title), ""]
    for path in figures:
        lines += [image(f"{'survival' if path.startswith('survival') else 'methods'}, {title}", path), ""]
    cells = []
    for (_, _, _, label), found in metrics_of(rows, (*MAIN, *SIMULATED)):
        own = _by_method(found)
        cells.append([with_unit(label, found[0]["unit"]), *(_cell(own.get(method)) for method in methods)])
    lines += table(["metric (runs)", *(f"{name(method)} ({runs[method]})" for method in methods)], cells)
    if gaps is not None:
        lines += _differences(gaps, methods)
    return Section(lines, figures, problems)


def _differences(gaps: pd.DataFrame, methods: list[tuple]) -> list[str]:
    compared = set(gaps[METHOD].itertuples(index=False, name=None))
    others = [method for method in methods if method in compared]
    cells = []
    for (_, _, _, label), found in metrics_of(gaps, (*MAIN, *SIMULATED)):
        own = _by_method(found)
        cells.append([with_unit(label, found[0]["unit"]), *(difference(own.get(method)) for method in others)])
    lines = [
        f"Paired difference to {escape(gaps['against'].iloc[0])} (negative: the method has the smaller value).",
        "**Bold**: the interval leaves out zero, and covers seeds.",
    ]
    return lines + table(["metric", *map(name, others)], cells)


def _panels(rows: pd.DataFrame, methods: list[tuple[str, str]]) -> list[Panel]:
    """The main metrics of one place."""
    panels = []
    for (target, metric, _, label), found in metrics_of(rows, (*MAIN, *SIMULATED)):
        if (target, metric) not in DRAWN:
            continue
        own = _by_method(found)
        points = [
            Point(*(row[key] for key in ("mean", "ci_low", "ci_high", "ideal", "values"))) if row else None
            for row in map(own.get, methods)
        ]
        unit = found[0]["unit"]
        better = "higher" if metric.startswith(HIGH_IS_GOOD) else "lower"
        panels.append(Panel(label, "" if unit == "1" else unit, better, points))
    return panels


def _by_method(rows: list[Row]) -> dict[tuple, Row]:
    return {(row["uq"], row["variant"]): row for row in rows}


def _cell(row: Row | None) -> Markdown:
    if row is None or math.isnan(row["mean"]):
        return NOTHING
    text = estimate(row, bold=row["best"])
    return text if math.isnan(row["ideal"]) else Markdown(f"{text} [{number(row['ideal'])}]")
