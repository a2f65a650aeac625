"""Metric rows as a tidy frame, and as a table on the terminal."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uqbench.text import printable

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

COLUMNS = {
    "run_id": "string",
    "command": "string",
    "dataset": "string",
    "subset": "string",
    "split": "string",
    "generation": "Int64",
    "backbone": "string",
    "uq": "string",
    "seed": "Int64",
    "target": "string",
    "population": "string",
    "metric": "string",
    "value": "float64",
    "unit": "string",
    "n": "Int64",
    "ci_low": "float64",
    "ci_high": "float64",
}
"""Columns of metrics.csv in their order, and their pandas types."""

_CELLS = {
    "string": lambda cell: cell or None,
    "Int64": lambda cell: int(cell) if cell else None,
    "float64": lambda cell: float(cell) if cell else math.nan,
}
READERS = {column: _CELLS[kind] for column, kind in COLUMNS.items()}
"""How a cell of metrics.csv is read as part of a row, by column."""

NUMBERS = ("value", "ci_low", "ci_high")
IDENTITY = [name for name in COLUMNS if name not in (*NUMBERS, "unit", "n")]
IDEAL = "_ideal"
PRINCIPAL = {
    *("mae", "mae_per_atom", "rmse", "rmse_per_atom", "spearman", "nll", "cnll"),
    *("miscalibration_area", "miscalibration_area_norm", "calibrated_miscalibration_area"),
}
TITLES = {"forces": "Forces", "energy": "Energies"}
ABBREVIATIONS = {"md", "neb"}


def metric_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Collect metric rows in a frame with exactly the columns COLUMNS, in that order.

    rows: mappings with all of COLUMNS; None stands for what does not apply, NaN for an undefined number. Raises
    ValueError, naming the culprits, for missing or unknown columns, and for two rows of the same metric.
    """
    import pandas as pd  # only here: to show a finished run must not take as long as this import

    rows = list(rows)
    for number, row in enumerate(rows):
        missing, unknown = [c for c in COLUMNS if c not in row], [c for c in row if c not in COLUMNS]
        if missing or unknown:
            raise ValueError(f"metric row {number}: missing columns {missing}, unknown columns {unknown}")
    # None in a number means undefined, which floats call NaN.
    columns = {c: [math.nan if c in NUMBERS and row[c] is None else row[c] for row in rows] for c in COLUMNS}
    frame = pd.DataFrame({c: pd.Series(columns[c], dtype=kind) for c, kind in COLUMNS.items()})
    twice = frame.duplicated(IDENTITY)
    if twice.any():
        first = frame.loc[twice.idxmax()]
        raise ValueError(f"two rows for {first.target}/{first.population}/{first.metric} of run {first.run_id}")
    return frame


def render(rows: Iterable[Row], *, everything: bool = False, width: int | None = None) -> str:
    """Draw metrics as plain text, one section for each run, split, target and population.

    rows: of metrics.csv, as READERS read them; everything: all metrics instead of the principal ones;
    width: columns of text, by default those of the terminal, 80 where there is none. Beside each value stand its 95 %
    interval (where there is room) and the ideal: the value of a perfectly calibrated model with the same variances. No
    colours, so that it can be piped.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    plain_text = {"color_system": None, "force_terminal": False, "markup": False, "emoji": False, "highlight": False}
    console = Console(file=io.StringIO(), width=max(width, 50), **plain_text)
    for run in _groups(rows, [c for c in IDENTITY if c not in ("target", "population", "metric")]):
        console.print(printable(_heading(run[0])))
        groups = _groups(run, ["target", "population"])
        order = [*TITLES, *dict.fromkeys(row["target"] for row in run if row["target"] not in TITLES)]
        for group in sorted(groups, key=lambda group: order.index(group[0]["target"])):
            arguments = group, everything or group[0]["target"] not in TITLES
            table = _table(*arguments, intervals=True)
            if console.measure(table, options=console.options.update(width=1000)).maximum > console.width:
                table = _table(*arguments, intervals=False)
            table.title = printable(_title(group))
            console.print(table, "")
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _groups(rows: Iterable[Row], keys: Sequence[str]) -> list[list[Row]]:
    """The rows that agree in the given columns, in the order of their first ones."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def _heading(labels: Row) -> str:
    parts = [str(labels[c]) for c in ("dataset", "subset", "backbone", "uq") if labels[c]]
    parts += [f"{c} {labels[c]}" for c in ("seed", "split", "generation") if labels[c] is not None]
    return ", ".join(parts)


def _title(group: Sequence[Row]) -> str:
    target, population = group[0]["target"], group[0]["population"]
    items = {"forces": "atoms", "energy": "structures"}.get(target, "")
    sizes = {row["n"] for row in group if row["n"] is not None}
    size = f", {sizes.pop()} {items}" if items and len(sizes) == 1 else ""
    name = target.upper() if target in ABBREVIATIONS else target.capitalize()
    return f"{TITLES.get(target, name)}{'' if population == 'all' else f', {population}'}{size}"


def _table(group: Sequence[Row], everything: bool, intervals: bool) -> Table:
    table = Table(
        box=SIMPLE_HEAD, title_justify="left", title_style="", header_style="", padding=(0, 1, 0, 0), show_edge=False
    )
    ideal = {row["metric"]: row["value"] for row in group if row["metric"].endswith(IDEAL)}
    rows = [row for row in group if row["metric"] not in ideal]
    intervals = intervals and not all(math.isnan(row["ci_low"]) for row in rows)
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    if intervals:
        table.add_column("95 % interval", justify="center", no_wrap=True)
    if ideal:
        table.add_column("ideal", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for row in rows:
        metric = row["metric"]
        if not (everything or metric in PRINCIPAL or metric.startswith("roc_auc")):
            continue
        cells = [printable(metric), number(row["value"])]
        if intervals:
            ends = "" if math.isnan(row["ci_low"]) else f"{number(row['ci_low'])} … {number(row['ci_high'])}"
            cells.append(ends)
        if ideal:
            cells.append(number(ideal[metric + IDEAL]) if metric + IDEAL in ideal else "")
        table.add_row(*cells, "" if row["unit"] == "1" else printable(row["unit"]))
    return table


def number(value: float) -> str:
    """Four significant digits, three below 0.1, thousands written out, "n/a" where undefined."""
    size = abs(value)
    if math.isnan(value):
        return "n/a"
    if value == 0 or size >= 1e4:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.2e}"
    if size < 1e-5:
        return f"{value:.2e}"
    leading = math.floor(math.log10(size))
    return f"{value:.{max(3 - leading, 0) if leading >= -1 else 2 - leading}f}"
