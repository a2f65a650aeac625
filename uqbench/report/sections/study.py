"""What all runs say together: what was read, the claims, ranks, domains side by side, cost."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from uqbench.report.claims import PROVISIONAL, SHARED_RULE, Verdict
from uqbench.report.figures.costs import Trade, costs_figure, pareto
from uqbench.report.figures.methods import ranks_figure
from uqbench.report.load.runs import TASK, Runs, describe
from uqbench.report.load.variants import method_name
from uqbench.report.render.files import Section
from uqbench.report.render.markdown import Markdown, escape, estimate, heading, image, item, slug, table, with_unit
from uqbench.report.sections.methods import lines_by_method
from uqbench.report.statistics import metrics
from uqbench.report.statistics.comparison import Comparison
from uqbench.report.statistics.metrics import PRINCIPAL, Quantity, Row

COSTS = (metrics.TRAINING, metrics.INFERENCE)
QUALITIES = (metrics.FORCE_MAE, metrics.SPEARMAN, metrics.NLL)
MODEL = ["trained_on", "backbone", "setting", "shared"]  # what models have in common that are compared across domains
SHOWN = 6  # numbers of a claim; the others are in its table


def opening(runs: Runs, comparison: Comparison, problems: Sequence[str]) -> Section:
    """What was read and what was not. problems: of the sections that follow."""
    lines = [f"{runs.rows['path'].nunique()} finished runs."]
    damaged = [*comparison.problems, *problems]
    for title, items in (("Left out", runs.problems), ("Damaged", damaged), ("Missing", comparison.missing)):
        if items:
            lines += ["", f"**{title}**", "", *map(item, items)]
    text = """
Means over runs with 95 % intervals, which cover the structures scored (bootstrap) and the seeds (Welch and
Satterthwaite; wide for few seeds). **Bold**: no method is better beyond chance. In brackets:
the value of a perfectly calibrated model with the same variances.
"""
    return Section([*lines, *text.splitlines(), ""])


def claims(verdicts: Sequence[Verdict]) -> Section:
    """The claims with their verdicts, then rule and numbers of each."""
    shown = [Markdown(f"**{one.verdict}**{', provisionally' if one.caveat else ''}") for one in verdicts]
    rows = [[one.claim.number, one.claim.text, text, one.reason] for one, text in zip(verdicts, shown, strict=True)]
    lines = ["## Claims of the study", "", "What these runs say, by rules that are fixed in the program."]
    lines += table(["claim", "", "verdict", "because"], rows)
    if any(one.caveat for one in verdicts):
        lines += [*PROVISIONAL.splitlines(), ""]
    lines += ["### How claims are decided", "", *SHARED_RULE.splitlines(), ""]
    for one in verdicts:
        lines += [f"**{one.claim.number}.** {one.claim.rule}", ""]
        if one.caveat:
            lines += [f"*Provisional*, besides: {one.caveat}.", ""]
        lines += [item(str(contrast)) for contrast in one.contrasts[:SHOWN]]
        if len(one.contrasts) > SHOWN:
            lines += [f"- and {len(one.contrasts) - SHOWN} more in claims.csv"]
        lines.append("")
    return Section(lines)


def ranks(ranked: pd.DataFrame) -> Section:
    """Mean ranks, as from `rankings`, and a figure of them, for each domain."""
    if not len(ranked):
        return Section()
    labels = ", ".join(quantity.label for quantity in PRINCIPAL)
    text = f"""\
## Ranks

Blocks are data set × split × metric ({labels}); of seeds, the mean is ranked.
Mean ranks describe these runs. There is no p-value and no critical difference beside them: metrics of one
prediction, and splits of one data set, are not independent, and a test that takes them for independent finds
differences between equal methods. The unit that could be tested is the data set.
"""
    lines, figures = [*text.splitlines(), ""], {}
    for domain, rows in ranked.groupby("domain", sort=False):
        methods, values = rows["method"].tolist(), rows["mean_rank"].to_numpy()
        blocks, left_out = rows[["blocks", "left_out"]].iloc[0]
        file = f"ranks_{slug(domain)}.png"
        title = f"{domain}: mean ranks over {blocks} blocks (1 is best)"
        figures[file] = functools.partial(ranks_figure, methods, values, title=title)
        listed = ", ".join(f"{method} {value:.2f}" for method, value in zip(methods, values, strict=True))
        lines += [heading(3, f"Ranks {domain}"), "", image(f"mean ranks {domain}", file), ""]
        lines += [f"Mean ranks over {blocks} blocks: {escape(listed)}.", ""]
        if left_out:
            lines += [f"{left_out} further blocks lack a method and are left out.", ""]
    return Section(lines, figures)


def domains(summary: pd.DataFrame) -> Section:
    """Scores of the same models in domain and out of it, side by side."""
    scored = summary[summary["target"].isin(["forces", "energy"]) & (summary["population"] == "all")]
    last = scored.groupby(["command", *MODEL], dropna=False)["generation"].transform("max")
    scored = scored[scored["generation"].isna() | (scored["generation"] == last)]
    lines = []
    for model, rows in scored.groupby(MODEL, sort=False, dropna=False):
        if set(rows["domain"]) != {"in", "out"}:
            continue
        rows = rows.assign(where=[_data(row) for row in rows.itertuples()])
        columns = rows.sort_values("domain")[["where", "domain"]].drop_duplicates("where")
        head = [f"{where} ({domain})" for where, domain in columns.itertuples(index=False, name=None)]
        cells = []
        for target, metric, label in PRINCIPAL:
            chosen = rows[(rows["target"] == target) & (rows["metric"] == metric)]
            if len(chosen):
                label = with_unit(label, chosen["unit"].iloc[0])
                cells += lines_by_method(label, chosen.to_dict("records"), "where", columns["where"], estimate)
        lines += [heading(3, describe(part for part in model if part != "")), ""]
        lines += table(["metric", "method", *head], cells)
    return Section(["## In domain and out of it", "", *lines]) if lines else Section()


def _data(row: tuple) -> str:
    """What a row was scored on: its split, and its data set where that is not the one trained on."""
    data = "-".join(str(part) for part in (row.dataset, row.subset) if not pd.isna(part))
    generation = "" if pd.isna(row.generation) else f", generation {int(row.generation)}"
    return f"{row.split}{generation}" if data == row.trained_on else f"{data}, {row.split}"


def costs(summary: pd.DataFrame) -> Section:
    """Quality against the cost of training and inference, for each data set and backbone that was trained on."""
    text = """\
## Quality against cost

Times are means over runs, on machines that may have done other things too. The front holds the methods that
nothing cheaper equals, by the means alone; the intervals in the figure say how sure that is.
"""
    lines, figures = [*text.splitlines(), ""], {}
    trained = summary[(summary["command"] == "train") & summary["population"].isin(metrics.UNNAMED)]
    trained = trained[metrics.is_one_of(trained, (*COSTS, *QUALITIES))]
    for task, rows in trained.groupby(TASK[1:], sort=False, dropna=False):
        by_quantity: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
        for row in rows.to_dict("records"):
            by_quantity.setdefault((row["target"], row["metric"]), {})[row["uq"], row["variant"]] = row
        methods = list(dict.fromkeys(itertools.chain.from_iterable(by_quantity.values())))
        trades = [[_trade(by_quantity, methods, cost, quality) for quality in QUALITIES] for cost in COSTS]
        trades = [line for line in ([trade for trade in line if trade] for line in trades) if line]
        if len(methods) < 2 or not trades:
            continue
        title, names = describe(task), list(itertools.starmap(method_name, methods))
        file = f"costs_{slug(title)}.png"
        figures[file] = functools.partial(costs_figure, names, trades, title=f"Quality against cost: {title}")
        lines += [heading(3, title), "", image(f"quality against cost, {title}", file), ""]
        cells = []
        for trade in (trade for line in trades for trade in line):
            front = np.flatnonzero(pareto(trade.costs, trade.badness))
            order = sorted(front, key=lambda k, costs=trade.costs: costs[k])
            cells.append([trade.cost, trade.quality, ", ".join(names[k] for k in order)])
        lines += table(["cost", "quality", "front, cheapest first"], cells)
    return Section(lines, figures) if figures else Section()


def _trade(
    by_quantity: dict[tuple[str, str], dict[tuple[str, str], Row]],
    methods: list[tuple[str, str]],
    cost: Quantity,
    quality: Quantity,
) -> Trade | None:
    spent, gained = (by_quantity.get((wanted.target, wanted.metric)) for wanted in (cost, quality))
    if spent is None or gained is None:
        return None
    labels = [with_unit(q.label, next(iter(of.values()))["unit"]) for q, of in ((cost, spent), (quality, gained))]
    costs, values, low, high = (
        np.array([of[method][key] if method in of else np.nan for method in methods], float)
        for of, key in ((spent, "mean"), (gained, "mean"), (gained, "ci_low"), (gained, "ci_high"))
    )
    return Trade(*labels, costs, values, low, high, metrics.badness(quality.metric, values))
