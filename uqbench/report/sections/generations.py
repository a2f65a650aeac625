"""Active learning in a report: metrics by generation, what acquisitions did, survival before and after."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from uqbench.report.figures.curves import Curve, CurvePanel, curves_figure
from uqbench.report.load.run import ACQUISITION, OUTER
from uqbench.report.load.runs import Collected
from uqbench.report.places import METHOD
from uqbench.report.render import markdown
from uqbench.report.render.markdown import heading, image, name, slug, with_unit
from uqbench.report.sections.survival import Drawing, survival
from uqbench.report.statistics.comparison import Comparison
from uqbench.report.statistics.metrics import HIGH_IS_GOOD, LEARNING, NEUTRAL, SIGNED, Metric, Row, grouped, metrics_of

HERE = ["dataset", "subset", "backbone", "setting"]  # where methods are compared, over all splits and generations


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """A part of a report: lines of Markdown, what draws its figures by file name, and what could not be used."""

    lines: list[str]
    figures: dict[str, Drawing]
    problems: list[str]


def sections(collected: Collected, comparison: Comparison) -> Iterator[Section]:
    """Yield one section for each data set, backbone and oracle of active learning."""
    learned = comparison.summary[comparison.summary["command"] == OUTER]
    for place, rows in learned.groupby(HERE, sort=False, dropna=False):
        parts = [str(part) for part in place if not pd.isna(part)]
        within = [_here(table, rows) for table in (comparison.differences, comparison.acquisitions, collected.rows)]
        yield _section(", ".join(parts), slug("-".join(parts)), rows, *within)


def _section(
    title: str, file: str, rows: pd.DataFrame, differences: pd.DataFrame, acquisitions: pd.DataFrame, raw: pd.DataFrame
) -> Section:
    whole = f"Active learning: {title}"
    curves = functools.partial(curves_figure, _panels(rows), xlabel="generation", title=whole)
    figures: dict[str, Drawing] = {f"learning_{file}.png": curves}
    survived, problems = survival(raw, title)
    figures |= {f"survival_{slug(split)}_{file}.png": drawing for split, drawing in survived.items()}
    runs = raw.groupby(METHOD, sort=False)["path"].nunique()
    counted = ", ".join(f"{name(method)} {count}" for method, count in runs.items())
    lines = [heading(2, whole), "", f"Runs: {markdown.escape(counted)}.", ""]
    for path in figures:
        lines += [image(path.rpartition(".")[0], path), ""]
    for title, chosen, note in _groups(rows):
        lines += [heading(3, title), "", *note, *_by_generation(chosen)]
    if len(acquisitions):
        lines += _against_acquisitions(_last(acquisitions))
    if len(differences):
        lines += _against_method(_last(differences))
    return Section(lines, figures, problems)


def _groups(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
    """Yield heading, rows and a remark for each group of metrics."""
    for split, found in rows[rows["target"].isin(["forces", "energy"])].groupby("split", sort=False):
        yield f"Errors and uncertainties: {split}", found, []
    remark = "Model minus oracle; the absolute error does not let errors of different sign cancel between seeds."
    for (split, population), found in rows[rows["target"] == "neb"].groupby(["split", "population"], sort=False):
        yield f"Barrier: {population} ({split})", found, [remark]
    remark = [
        "Share of the replicas of all runs that end sound, with a binomial interval in which runs count as clusters",
        "(Korn and Graubard); of a single run, the interval of this run. Mean survival time up to the end of the",
        "simulations, mean over runs.",
    ]
    for split, found in rows[rows["target"] == "md"].groupby("split", sort=False):
        yield f"Molecular dynamics: {split}", found, remark
    found = rows[rows["target"] == ACQUISITION]
    if len(found):
        yield "Acquisition", found, ["Scores are in the unit of the method: compare within a row, not between methods."]


def _by_generation(rows: pd.DataFrame) -> list[str]:
    generations = sorted(rows["generation"].unique())
    head = ["metric", "method", *(f"generation {int(g)}" for g in generations)]
    cells = []
    for metric, found in metrics_of(rows, LEARNING):
        for number, (method, own) in enumerate(grouped(found, *METHOD).items()):
            by = {row["generation"]: row for row in own}
            label = with_unit(metric[3], own[0]["unit"]) if number == 0 else ""
            values = [by.get(generation) for generation in generations]
            cells.append([label, name(method), *(markdown.estimate(row, bold=_best(row)) for row in values)])
    return markdown.table(head, cells)


def _best(row: Row | None) -> bool:
    return row is not None and bool(row["best"])


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each split and target, the rows of the last generation that has any."""
    latest = rows.groupby(["split", "target"])["generation"].transform("max")
    return rows[rows["generation"] == latest]


def _against_acquisitions(rows: pd.DataFrame) -> list[str]:
    others = list(dict.fromkeys(rows["against"]))
    sides = [f"{rows['acquisition'].iloc[0]} − {other}" for other in others]
    lines = [
        "### What the acquisition changes",
        "",
        "Difference at the last generation between runs of the same method and seed, which begin alike. **Bold**: the",
        "interval leaves out zero; not of one seed alone, which shows the chance of the structures only.",
    ]
    cells = []
    for (split, metric), found in _by_split(rows[~rows["metric"].str.startswith("score_")]):
        for number, (method, own) in enumerate(grouped(found, "uq", "unacquired").items()):
            by = {row["against"]: row for row in reversed(own)}
            label = "" if number else f"{split}: {with_unit(metric[3], own[0]['unit'])}"
            cells.append([label, name(method), *(markdown.difference(by.get(other)) for other in others)])
    return lines + markdown.table(["metric", "method", *sides], cells)


def _against_method(rows: pd.DataFrame) -> list[str]:
    against = rows["against"].iloc[0]
    lines = [
        heading(3, f"Methods against {against}"),
        "",
        "Difference at the last generation, under the same acquisition where there are several, paired over the",
        "structures. **Bold**: the interval leaves out zero; not where a method has one run.",
    ]
    cells = []
    for (split, metric), found in _by_split(rows[rows["target"] != ACQUISITION]):
        for number, row in enumerate(found):
            label = "" if number else f"{split}: {with_unit(metric[3], row['unit'])}"
            cells.append([label, name((row["uq"], row["variant"])), markdown.difference(row)])
    return lines + markdown.table(["metric", "method", f"method − {against}"], cells)


def _by_split(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, Metric], list[Row]]]:
    for split, found in rows.groupby("split", sort=False):
        for metric, own in metrics_of(found, LEARNING):
            yield ("proposals" if metric[0] == ACQUISITION else str(split), metric), own


def _panels(rows: pd.DataFrame) -> list[CurvePanel]:
    panels = []
    last = rows["target"].isin([ACQUISITION])
    for (split, (_, metric, _, label)), found in _by_split(pd.concat([rows[~last], rows[last].assign(split="~")])):
        if metric in ("barrier_abs_error", "converged", "labelled", "displacement", "restricted_mean_survival_time"):
            continue
        if metric.startswith("score_"):
            continue  # of the methods' own units
        curves = []
        for own in grouped(found, *METHOD).values():
            own = sorted(own, key=lambda row: row["generation"])
            first = own[0]
            keys = ("generation", "mean", "ci_low", "ci_high")
            x, mean, low, high = (np.array([row[key] for row in own], float) for key in keys)
            curves.append(Curve(name((first["uq"], first["unacquired"])), first["acquisition"], x, mean, low, high))
        unit = found[0]["unit"]
        panels.append(CurvePanel(label, str(split), "" if unit == "1" else unit, _good(metric), curves))
    return panels


def _good(metric: str) -> str:
    if metric in SIGNED:
        return "zero is best"
    if metric.startswith(NEUTRAL):
        return ""
    return "higher is better" if metric.startswith(HIGH_IS_GOOD) else "lower is better"


def _here(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table at the place, and of active learning, that some rows belong to."""
    if not len(table):
        return table
    first = rows.iloc[0]
    same = table["command"] == OUTER
    for key in HERE:
        same &= table[key].isna() if pd.isna(first[key]) else table[key] == first[key]
    return table[same]
