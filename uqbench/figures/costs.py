"""Quality against cost: one panel per quality and cost, with the front of methods that nothing cheaper beats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from uqbench.figures.canvas import DPI, GREY, STYLE, png
from uqbench.figures.methods import LOOKS


@dataclasses.dataclass(frozen=True, eq=False)
class Trade:
    """One panel: cost, and quality with its interval, of each of k methods (k,), NaN where unknown.

    badness (k,) is small where the quality is good.
    """

    cost: str
    quality: str
    costs: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    badness: np.ndarray


def pareto(costs: np.ndarray, badness: np.ndarray) -> np.ndarray:
    """Whether nothing else is at most as costly and at most as bad, and better in one of them; (k,), NaN never is."""
    known = np.isfinite(costs) & np.isfinite(badness)
    front = known.copy()
    for k in np.flatnonzero(known):
        as_good = known & (costs <= costs[k]) & (badness <= badness[k])
        front[k] = not np.any(as_good & ((costs < costs[k]) | (badness < badness[k])))
    return front


def costs_figure(methods: Sequence[str], rows: Sequence[Sequence[Trade]], *, title: str) -> bytes:
    """Draw panels in a grid, a row per cost, as a PNG file."""
    columns = max(map(len, rows))
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(3.4 * columns + 0.3, 2.6 * len(rows) + 1.1), dpi=DPI, layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, trades in zip(grid, rows, strict=True):
            for axes, trade in zip(line, trades, strict=False):
                _draw(axes, methods, trade)
            for axes in line[len(trades) :]:
                axes.set_axis_off()
        figure.suptitle(f"{title}\nring and line: nothing cheaper is as good, by the means", fontsize=11)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
        return png(figure)


def _draw(axes: Axes, methods: Sequence[str], trade: Trade) -> None:
    for place, method in enumerate(methods):
        color, marker = LOOKS[place % len(LOOKS)]
        reach = np.nan_to_num([[trade.values[place] - trade.low[place]], [trade.high[place] - trade.values[place]]])
        look = {"color": color, "marker": marker, "markersize": 6, "elinewidth": 1.0, "capsize": 2}
        x, y = trade.costs[place], trade.values[place]
        axes.errorbar([x], [y], yerr=reach.clip(min=0), linestyle="none", label=method, **look)
    front = np.flatnonzero(pareto(trade.costs, trade.badness))
    front = front[np.argsort(trade.costs[front])]
    ring = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": GREY}
    axes.plot(trade.costs[front], trade.values[front], color=GREY, linewidth=1, zorder=0, **ring)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_xlabel(trade.cost, fontsize=9)
    axes.set_ylabel(trade.quality, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
