"""The parts of a report that look across data sets: claims, ranks, domains side by side, cost."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from uqbench.report.claims import PROVISIONAL, SHARED_RULE, Verdict
from uqbench.report.figures.costs import Trade, costs_figure, pareto
from uqbench.report.figures.ranks import ranks_figure
from uqbench.report.places import METHOD, PLACE, describe
from uqbench.report.render import markdown
from uqbench.report.render.markdown import Markdown, escape, heading, image, item, name, slug, table, with_unit
from uqbench.report.sections.survival import Drawing
from uqbench.report.statistics.contrasts import JUDGED, Quantity
from uqbench.report.statistics.metrics import Row, badness, grouped
from uqbench.report.statistics.ranks import Ranking

COSTS = (("training_time", "training"), ("inference_time", "inference"))
CONDITIONS = ["trained_on", "backbone", "setting", "shared"]
QUALITIES = (JUDGED[0], JUDGED[2], JUDGED[5])
PART = 6  # numbers of a claim that are shown at once; the others are folded away

Part = tuple[list[str], dict[str, Drawing]]
"""Lines of Markdown, and what draws the figures by file name."""


def claims(verdicts: Iterable[Verdict]) -> list[str]:
    """The claims with their verdicts, then rule and numbers of each."""
    verdicts = list(verdicts)
    rows = [[one.claim, one.text, _verdict(one), one.reason] for one in verdicts]
    lines = ["## Claims of the study", "", "What these runs say, by rules that are fixed in the program."]
    lines += table(["claim", "", "verdict", "because"], rows)
    if any(one.caveat for one in verdicts):
        lines += [*PROVISIONAL.splitlines(), ""]
    lines += ["### How claims are decided", "", *SHARED_RULE.splitlines(), ""]
    for one in verdicts:
        lines += [f"**{one.claim}.** {one.rule}", ""]
        if one.caveat:
            lines += [f"*Provisional*, besides: {one.caveat}.", ""]
        lines += map(item, one.numbers[:PART])
        if len(one.numbers) > PART:
            lines += [f"- and {len(one.numbers) - PART} more in claims.csv"]
        lines.append("")
    return lines


def _verdict(one: Verdict) -> Markdown:
    return Markdown(f"**{one.verdict}**, provisionally" if one.caveat else f"**{one.verdict}**")


def ranks(rankings: Iterable[Ranking]) -> Part:
    """Mean ranks and a figure of them, for each domain."""
    lines, figures = [], {}
    for one in rankings:
        file = f"ranks_{slug(one.domain)}.png"
        title = f"{one.domain}: mean ranks over {one.blocks} blocks (1 is best)"
        figures[file] = functools.partial(ranks_figure, one.methods, one.ranks, title=title)
        listed = ", ".join(f"{method} {value:.2f}" for method, value in zip(one.methods, one.ranks, strict=True))
        lines += [heading(3, f"Ranks {one.domain}"), "", image(f"mean ranks {one.domain}", file), ""]
        lines += [f"Mean ranks over {one.blocks} blocks: {escape(listed)}.", ""]
        if one.left_out:
            lines += [f"{one.left_out} further blocks lack a method and are left out.", ""]
    if not lines:
        return [], {}
    metrics = ", ".join(label for *_, label in JUDGED)
    opening = [
        "## Ranks",
        "",
        f"Blocks are data set × split × metric ({metrics}); of seeds, the mean is ranked.",
        "Mean ranks describe these runs. There is no p-value and no critical difference beside them: metrics of one",
        "prediction, and splits of one data set, are not independent, and a test that takes them for independent finds",
        "differences between equal methods. The unit that could be tested is the data set.",
        "",
    ]
    return opening + lines, figures


def domains(summary: pd.DataFrame) -> list[str]:
    """Scores of the same models in domain and out of it, side by side."""
    scored = summary[summary["target"].isin(["forces", "energy"]) & (summary["population"] == "all")]
    last = scored.groupby(["command", *CONDITIONS], dropna=False)["generation"].transform("max")
    scored = scored[scored["generation"].isna() | (scored["generation"] == last)]
    lines = []
    for place, rows in scored.groupby(CONDITIONS, sort=False, dropna=False):
        if set(rows["domain"]) != {"in", "out"}:
            continue
        rows = rows.assign(where=[_where(row) for row in rows.itertuples()])
        columns = rows.sort_values("domain")[["where", "domain"]].drop_duplicates("where")
        head = [f"{where} ({domain})" for where, domain in columns.itertuples(index=False, name=None)]
        cells = []
        for target, metric, label in JUDGED:
            found = rows[(rows["target"] == target) & (rows["metric"] == metric)]
            for count, (method, own) in enumerate(found.groupby(METHOD, sort=False)):
                by = {row["where"]: row for row in own.to_dict("records")}
                first = "" if count else with_unit(label, own["unit"].iloc[0])
                cells.append([first, name(method), *(markdown.estimate(by.get(where)) for where in columns["where"])])
        lines += [heading(3, describe(part for part in place if part != "")), ""]
        lines += table(["metric", "method", *head], cells)
    return ["## In domain and out of it", "", *lines] if lines else []


def _where(row: tuple) -> str:
    data = "-".join(str(part) for part in (row.dataset, row.subset) if not pd.isna(part))
    generation = "" if pd.isna(row.generation) else f", generation {int(row.generation)}"
    return f"{row.split}{generation}" if data == row.trained_on else f"{data}, {row.split}"


def costs(summary: pd.DataFrame) -> Part:
    """Quality against the cost of training and inference, for each data set and backbone that was trained on."""
    lines, figures = [], {}
    trained = summary[(summary["command"] == "train") & summary["population"].isin(["all", "run"])]
    wanted = {key[:2] for key in (*QUALITIES, *(("cost", cost) for cost, _ in COSTS))}
    trained = trained[
        np.array([pair in wanted for pair in zip(trained["target"], trained["metric"], strict=True)], bool)
    ]
    for place, rows in trained.groupby(PLACE[1:], sort=False, dropna=False):
        rows = grouped(rows.to_dict("records"), "target", "metric")
        methods = list(grouped(itertools.chain.from_iterable(rows.values()), *METHOD))
        trades = [[_trade(rows, methods, cost, quality) for quality in QUALITIES] for cost in COSTS]
        trades = [[trade for trade in line if trade is not None] for line in trades]
        trades = [line for line in trades if line]
        if len(methods) < 2 or not trades:
            continue
        title, names = describe(place), [name(method) for method in methods]
        file = f"costs_{slug(title)}.png"
        figures[file] = functools.partial(costs_figure, names, trades, title=f"Quality against cost: {title}")
        lines += [heading(3, title), "", image(f"quality against cost, {title}", file), ""]
        cells = []
        for trade in (trade for line in trades for trade in line):
            front = pareto(trade.costs, trade.badness)
            order = sorted(np.flatnonzero(front), key=lambda k: trade.costs[k])
            cells.append([trade.cost, trade.quality, ", ".join(names[k] for k in order)])
        lines += table(["cost", "quality", "front, cheapest first"], cells)
    remark = [
        "Times are means over runs, on machines that may have done other things too. The front holds the methods that",
        "nothing cheaper equals, by the means alone; the intervals in the figure say how sure that is.",
        "",
    ]
    return (["## Quality against cost", "", *remark, *lines], figures) if lines else ([], {})


def _trade(
    rows: dict[tuple, list[Row]], methods: list[tuple], cost: tuple[str, str], quality: Quantity
) -> Trade | None:
    paid, got = rows.get(("cost", cost[0])), rows.get(quality[:2])
    if not paid or not got:
        return None

    def column(found: list[Row], key: str) -> np.ndarray:
        by = {tuple(row[part] for part in METHOD): row[key] for row in found}
        return np.array([by.get(method, np.nan) for method in methods], float)

    spent, (values, low, high) = column(paid, "mean"), (column(got, key) for key in ("mean", "ci_low", "ci_high"))
    cost_label, quality_label = with_unit(cost[1], paid[0]["unit"]), with_unit(quality[2], got[0]["unit"])
    return Trade(cost_label, quality_label, spent, values, low, high, badness(quality[1], values))
