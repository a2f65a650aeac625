"""Curves against the generation: of many runs a panel per metric, of one run a figure per metric."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from uqbench.figures.canvas import BLACK, DPI, GREY, LOOKS, STYLE, Drawing, plain, png, render

if TYPE_CHECKING:  # what draws in a process of its own need not import it
    import pandas as pd

COLUMNS = 3
DASHES = ["-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1))]
APART, SPREAD = 0.035, 0.4  # generations between lines and over all, so that intervals do not hide one another


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One line: its method and its acquisition; x, mean, low and high (n,), NaN where unknown."""

    method: str
    kind: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class CurvePanel:
    """One metric: heading, where it was measured, unit, what is good: `lower is better`, `zero is best`, or nothing."""

    heading: str
    where: str
    unit: str
    good: str
    curves: Sequence[Curve]


def curves_figure(panels: Sequence[CurvePanel], *, xlabel: str, title: str) -> bytes:
    """Draw the panels in a grid, every method in one colour and marker, every kind in one line style, as a PNG file."""
    methods = list(dict.fromkeys(curve.method for panel in panels for curve in panel.curves))
    kinds = list(dict.fromkeys(curve.kind for panel in panels for curve in panel.curves))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(3.5 * columns + 0.4, 2.6 * rows + 1.1), dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, methods, kinds)
            axes.set_xlabel(xlabel, fontsize=9)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.suptitle(f"{plain(title)}\nmeans over runs, 95 % intervals as far as there is room", fontsize=11)
        figure.legend(handles=_legend(methods, kinds), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
        return png(figure)


def _look(method: int, kind: int) -> dict:
    color, marker = LOOKS[method % len(LOOKS)]
    return {"color": color, "marker": marker, "linestyle": DASHES[kind % len(DASHES)], "markersize": 4.5}


def _draw(axes: Axes, panel: CurvePanel, methods: list[str], kinds: list[str]) -> None:
    drawn = [curve for curve in panel.curves if np.isfinite(curve.mean).any()]
    for k, curve in enumerate(drawn):
        look = _look(methods.index(curve.method), kinds.index(curve.kind))
        x = curve.x + min(APART, SPREAD / len(drawn)) * (k - (len(drawn) - 1) / 2)
        reach = np.nan_to_num([curve.mean - curve.low, curve.high - curve.mean]).clip(min=0)
        axes.errorbar(x, curve.mean, yerr=reach, linewidth=1.4, elinewidth=0.8, capsize=2, **look)
    if not drawn:
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", va="center", fontsize=9, color=GREY)
    _limit(axes, drawn)
    if panel.good == "zero is best":
        axes.axhline(0, color=BLACK, linewidth=0.6, zorder=0.5)
    ticks = sorted({x for curve in panel.curves for x in curve.x})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xlim(ticks[0] - 0.5, ticks[-1] + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(f"{plain(panel.heading)}\n({plain(panel.where)})", fontsize=10)
    axes.set_ylabel("; ".join(filter(None, [plain(panel.unit), panel.good])), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _limit(axes: Axes, curves: Sequence[Curve]) -> None:
    """Show all means, and intervals as far as they do not squeeze the means: those of two runs reach very far."""
    means = np.concatenate([curve.mean for curve in curves]) if curves else np.zeros(0)
    means = means[np.isfinite(means)]
    if not len(means):
        return
    width = max(np.ptp(means), 0.1 * np.abs(means).max(), 1e-12)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, means.min() - width), min(high, means.max() + width))


def _legend(methods: list[str], kinds: list[str]) -> list[Line2D]:
    handles = [Line2D([], [], **_look(k, 0), label=plain(method)) for k, method in enumerate(methods)]
    for k, kind in enumerate(kinds if len(kinds) > 1 else ()):
        handles.append(Line2D([], [], color=GREY, linestyle=DASHES[k % len(DASHES)], label=plain(kind)))
    return handles


def learning_figures(rows: pd.DataFrame, title: str) -> dict[str, bytes]:
    """Draw force error and ranking against the generation, for every split that was scored, as PNG files by name.

    rows: metric rows of a run, in kcal/mol.
    """
    drawings: dict[str, Drawing] = {}
    for metric, label in (("mae", "force MAE (kcal/mol/Å)"), ("spearman", "Spearman ρ of score and squared error")):
        chosen = rows[(rows["target"] == "forces") & (rows["population"] == "all") & (rows["metric"] == metric)]
        if chosen["value"].notna().any():
            drawing = functools.partial(_draw_splits, rows=chosen, label=label)
            drawings[f"learning_{metric}.png"] = "Active learning", title, drawing
    return render(drawings)


def _draw_splits(axes: Axes, *, rows: pd.DataFrame, label: str) -> None:
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
