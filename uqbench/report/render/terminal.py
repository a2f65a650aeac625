"""How a model gets better from generation to generation: a table and figures."""

from __future__ import annotations

import functools
import io

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uqbench.figures.canvas import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, Drawing, plain, render
from uqbench.report.units import convert_units
from uqbench.runs.metrics_table import METRICS
from uqbench.runs.run_dir import Run
from uqbench.runs.tables import number
from uqbench.text import printable

# Split (None: every split that has it), target, metric, and what it is called.
SHOWN = (
    (None, "forces", "mae", "force MAE"),
    (None, "energy", "mae", "energy MAE"),
    (None, "forces", "spearman", "Spearman ρ"),
    (None, "forces", "roc_auc_80", "ROC-AUC, worst 20 %"),
    (None, "forces", "cnll", "NLL, calibrated"),
    (None, "neb", "barrier_error", "barrier error"),
    (None, "md", "survival", "MD survival"),
    ("test", "acquisition", "labelled", "labelled"),
    ("test", "acquisition", "score_seeds", "score of seeds"),
    ("test", "acquisition", "score_random", "score, random"),
    ("test", "acquisition", "score_proposals", "score, proposals"),
    ("test", "acquisition", "force_rmse", "force RMSE, proposals"),
)
LOOKS = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (SKY, "P"), (BLACK, "X")]


def show(run: Run) -> None:
    """Print the main metrics of every generation, in kcal/mol, and where the run is."""
    print(table(convert_units(run.read_csv(METRICS), "kcal/mol")))
    print(f"run: {printable(run.path)}")


def table(rows: pd.DataFrame) -> str:
    """Draw the main metrics with one column for each generation, as plain text."""
    generations = sorted(rows["generation"].unique())
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, header_style="")
    for name in ("metric", "where", *(f"generation {int(g)}" for g in generations), "unit"):
        drawn.add_column(name, justify="right" if name.startswith("generation") else "left", no_wrap=True)
    for split, target, metric, label in SHOWN:
        found = rows[(rows["target"] == target) & (rows["metric"] == metric)]
        found = found[found["population"].isin(["all", "run"]) | (target in ("neb", "md"))]
        for (where, population), group in found.groupby(["split", "population"], sort=False):
            place = "proposals" if split else where if population in ("all", "run") else f"{where}, {population}"
            values = group.set_index("generation")["value"]
            cells = [number(values[g]) if g in values and not np.isnan(values[g]) else "" for g in generations]
            unit = group["unit"].iloc[0]
            drawn.add_row(label, printable(place), *cells, "" if unit == "1" else printable(unit))
    plain_text = {"color_system": None, "force_terminal": False, "markup": False, "emoji": False}
    console = Console(file=io.StringIO(), width=140, **plain_text)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def figures(rows: pd.DataFrame, title: str) -> dict[str, bytes]:
    """Draw force error and ranking against the generation, for every split that was scored, as PNG files by name."""
    rows = convert_units(rows, "kcal/mol")
    drawings: dict[str, Drawing] = {}
    for metric, label in (("mae", "force MAE (kcal/mol/Å)"), ("spearman", "Spearman ρ of score and squared error")):
        chosen = rows[(rows["target"] == "forces") & (rows["population"] == "all") & (rows["metric"] == metric)]
        if chosen["value"].notna().any():
            drawing = functools.partial(_curves, rows=chosen, label=label)
            drawings[f"learning_{metric}.png"] = "Active learning", title, drawing
    return render(drawings)


def _curves(axes: Axes, *, rows: pd.DataFrame, label: str) -> None:
    for (split, group), (color, marker) in zip(rows.groupby("split", sort=False), LOOKS, strict=False):
        group = group.sort_values("generation")
        ends = group[["ci_low", "ci_high"]].to_numpy(float)
        value = group["value"].to_numpy(float)
        reach = np.nan_to_num(np.abs(ends.T - value))
        look = {"color": color, "marker": marker, "capsize": 3, "linewidth": 1.5}
        axes.errorbar(group["generation"], value, yerr=reach, label=plain(split.replace("_", " ")), **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("generation")
    axes.set_ylabel(label)
    axes.legend()
