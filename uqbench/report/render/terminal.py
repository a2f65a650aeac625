"""How a model gets better from generation to generation, as a table on the terminal."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uqbench.report.statistics.metrics import UNNAMED, convert_units
from uqbench.runs.metrics_table import METRICS
from uqbench.runs.run_dir import Run
from uqbench.runs.tables import number
from uqbench.text import printable

# Split (None: every split that has it), target, metric, and what it is called where there is little room.
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
        chosen = rows[(rows["target"] == target) & (rows["metric"] == metric)]
        chosen = chosen[chosen["population"].isin(UNNAMED) | (target in ("neb", "md"))]
        for (scored, population), group in chosen.groupby(["split", "population"], sort=False):
            where = "proposals" if split else scored if population in UNNAMED else f"{scored}, {population}"
            values = group.set_index("generation")["value"]
            cells = [number(values[g]) if g in values and not np.isnan(values[g]) else "" for g in generations]
            unit = group["unit"].iloc[0]
            drawn.add_row(label, printable(where), *cells, "" if unit == "1" else printable(unit))
    plain_text = {"color_system": None, "force_terminal": False, "markup": False, "emoji": False}
    console = Console(file=io.StringIO(), width=140, **plain_text)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
