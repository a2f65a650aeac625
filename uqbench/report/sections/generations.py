"""Active learning: metrics by generation, what acquisitions did, survival before and after."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from uqbench.report.figures.curves import Curve, CurvePanel, curves_figure
from uqbench.report.load.run import ACQUISITION, ACTIVE_LEARNING
from uqbench.report.load.runs import METHOD, METRIC, Runs, by_task
from uqbench.report.load.variants import method_name
from uqbench.report.render import markdown
from uqbench.report.render.files import Drawing, Section
from uqbench.report.sections.methods import lines_by_method
from uqbench.report.sections.survival import survival
from uqbench.report.statistics.comparison import Comparison
from uqbench.report.statistics.metrics import (
    BY_GENERATION,
    HIGH_IS_GOOD,
    NEUTRAL,
    SIGNED,
    Quantity,
    Row,
    grouped,
    metrics_of,
)

ALL_GENERATIONS = ["command", "dataset", "subset", "backbone", "setting"]  # a task over all splits and generations
NOT_DRAWN = ("barrier_abs_error", "converged", "labelled", "displacement", "restricted_mean_survival_time")
SCORE = "score_"  # how metrics begin that are in the methods' own units


def sections(runs: Runs, comparison: Comparison) -> Iterator[Section]:
    """Yield one section for each data set, backbone and oracle of active learning."""
    tables = (comparison.summary, comparison.differences, comparison.acquisitions, runs.rows)
    summary, *others = (by_task(table, ALL_GENERATIONS) for table in tables)
    for task, rows in summary.items():
        if task[0] == ACTIVE_LEARNING:
            parts = [str(part) for part in task[1:] if part != ""]
            file = markdown.slug("-".join(parts))
            yield _section(", ".join(parts), file, rows, *(groups.get(task) for groups in others))


def _section(
    task: str,
    file: str,
    rows: pd.DataFrame,
    differences: pd.DataFrame | None,
    acquisitions: pd.DataFrame | None,
    raw: pd.DataFrame,
) -> Section:
    title = f"Active learning: {task}"
    curves = functools.partial(curves_figure, _panels(rows), xlabel="generation", title=title)
    figures: dict[str, Drawing] = {f"learning_{file}.png": curves}
    survived, problems = survival(raw, task)
    figures |= {f"survival_{markdown.slug(split)}_{file}.png": drawing for split, drawing in survived.items()}
    counts = raw.groupby(METHOD, sort=False)["path"].nunique()
    counted = ", ".join(f"{method_name(*method)} {count}" for method, count in counts.items())
    lines = [markdown.heading(2, title), "", f"Runs: {markdown.escape(counted)}.", ""]
    for path in figures:
        lines += [markdown.image(path.rpartition(".")[0], path), ""]
    for topic, of_topic, remark in _topics(rows):
        lines += [markdown.heading(3, topic), "", *remark, *_by_generation(of_topic)]
    if acquisitions is not None:
        lines += _against_acquisitions(_last(acquisitions))
    if differences is not None:
        lines += _against_method(_last(differences))
    return Section(lines, figures, problems)


def _topics(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
    """Yield heading, rows and a remark for each group of metrics."""
    for split, scores in rows[rows["target"].isin(["forces", "energy"])].groupby("split", sort=False):
        yield f"Errors and uncertainties: {split}", scores, []
    remark = ["Model minus oracle; the absolute error does not let errors of different sign cancel between seeds."]
    for (split, reaction), barriers in rows[rows["target"] == "neb"].groupby(["split", "population"], sort=False):
        yield f"Barrier: {reaction} ({split})", barriers, remark
    remark = [
        "Share of the replicas of all runs that end sound, with a binomial interval in which runs count as clusters",
        "(Korn and Graubard); of a single run, the interval of this run. Mean survival time up to the end of the",
        "simulations, mean over runs.",
    ]
    for split, dynamics in rows[rows["target"] == "md"].groupby("split", sort=False):
        yield f"Molecular dynamics: {split}", dynamics, remark
    proposals = rows[rows["target"] == ACQUISITION]
    if len(proposals):
        remark = ["Scores are in the unit of the method: compare within a row, not between methods."]
        yield "Acquisition", proposals, remark


def _by_generation(rows: pd.DataFrame) -> list[str]:
    generations = sorted(rows["generation"].unique())
    head = ["metric", "method", *(f"generation {int(g)}" for g in generations)]
    lines = []
    for quantity, of_metric in metrics_of(rows, BY_GENERATION):
        label = markdown.with_unit(quantity.label, of_metric[0]["unit"])
        lines += lines_by_method(label, of_metric, "generation", generations, _estimate)
    return markdown.table(head, lines)


def _estimate(row: Row | None) -> markdown.Markdown:
    return markdown.estimate(row, bold=row is not None and bool(row["best"]))


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each split and target, the rows of the last generation that has any."""
    latest = rows.groupby(["split", "target"])["generation"].transform("max")
    return rows[rows["generation"] == latest]


def _against_acquisitions(rows: pd.DataFrame) -> list[str]:
    # Of variants that the acquisition alone tells apart, the first.
    rows = rows.drop_duplicates(["split", *METRIC, "uq", "unacquired", "against"])
    others = list(dict.fromkeys(rows["against"]))
    sides = [f"{rows['acquisition'].iloc[0]} − {other}" for other in others]
    lines = [
        "### What the acquisition changes",
        "",
        "Difference at the last generation between runs of the same method and seed, which begin alike. **Bold**: the",
        "interval leaves out zero; not of one seed alone, which shows the chance of the structures only.",
    ]
    cells = []
    for split, quantity, of_metric in _by_split(rows[~rows["metric"].str.startswith(SCORE)]):
        label = f"{split}: {markdown.with_unit(quantity.label, of_metric[0]['unit'])}"
        cells += lines_by_method(label, of_metric, "against", others, markdown.difference, method=("uq", "unacquired"))
    return lines + markdown.table(["metric", "method", *sides], cells)


def _against_method(rows: pd.DataFrame) -> list[str]:
    against = rows["against"].iloc[0]
    lines = [
        markdown.heading(3, f"Methods against {against}"),
        "",
        "Difference at the last generation, under the same acquisition where there are several, paired over the",
        "structures. **Bold**: the interval leaves out zero; not where a method has one run.",
    ]
    cells = []
    for split, quantity, of_metric in _by_split(rows[rows["target"] != ACQUISITION]):
        label = f"{split}: {markdown.with_unit(quantity.label, of_metric[0]['unit'])}"
        cells += lines_by_method(label, of_metric, "against", [against], markdown.difference)
    return lines + markdown.table(["metric", "method", f"method − {against}"], cells)


def _by_split(rows: pd.DataFrame) -> Iterator[tuple[str, Quantity, list[Row]]]:
    for split, of_split in rows.groupby("split", sort=False):
        for quantity, of_metric in metrics_of(of_split, BY_GENERATION):
            yield "proposals" if quantity.target == ACQUISITION else str(split), quantity, of_metric


def _panels(rows: pd.DataFrame) -> list[CurvePanel]:
    panels = []
    proposals = rows["target"] == ACQUISITION
    rows = pd.concat([rows[~proposals], rows[proposals].assign(split="~")])  # behind all splits
    for split, (_, metric, label), of_metric in _by_split(rows):
        if metric in NOT_DRAWN or metric.startswith(SCORE):
            continue
        curves = []
        for of_method in grouped(of_metric, *METHOD).values():
            of_method = sorted(of_method, key=lambda row: row["generation"])
            first = of_method[0]
            keys = ("generation", "mean", "ci_low", "ci_high")
            numbers = (np.array([row[key] for row in of_method], float) for key in keys)
            curves.append(Curve(method_name(first["uq"], first["unacquired"]), first["acquisition"], *numbers))
        unit = of_metric[0]["unit"]
        panels.append(CurvePanel(label, split, "" if unit == "1" else unit, _good(metric), curves))
    return panels


def _good(metric: str) -> str:
    if metric in SIGNED:
        return "zero is best"
    if metric.startswith(NEUTRAL):
        return ""
    return "higher is better" if metric.startswith(HIGH_IS_GOOD) else "lower is better"
