"""Quality against cost: one panel per quality and cost, with the front of methods that nothing cheaper beats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from uqbench.figures import canvas
from uqbench.figures.canvas import GREY, LOOKS, STYLE, plain, png

LEGEND = 4  # columns


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
        legend = 0.3 + 0.2 * -(-len(methods) // LEGEND)
        margins = (0.8, 0.2, 0.55 + legend, 0.6)
        figure, grid = canvas.panels((len(rows), columns), (2.6, 2.0), spacing=(0.85, 0.6), margins=margins)
        for line, trades in zip(grid, rows, strict=True):
            for axes, trade in zip(line, trades, strict=False):
                _draw(axes, methods, trade)
            for axes in line[len(trades) :]:
                axes.set_axis_off()
        height = figure.get_size_inches()[1]
        figure.suptitle(
            f"{plain(title)}\nring and line: nothing cheaper is as good, by the means", fontsize=11, y=1 - 0.08 / height
        )
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=LEGEND, fontsize=9, frameon=False)
        return png(figure)


def _draw(axes: Axes, methods: Sequence[str], trade: Trade) -> None:
    colors, markers = zip(*(LOOKS[k % len(LOOKS)] for k in range(len(methods))), strict=True)
    low, high = (np.where(np.isfinite(end), end, trade.values) for end in (trade.low, trade.high))
    axes.vlines(trade.costs, low, high, colors=colors, linewidths=1.0)
    for k, method in enumerate(methods):
        look = {"color": colors[k], "marker": markers[k], "markersize": 6, "linestyle": "none"}
        axes.plot(trade.costs[k], trade.values[k], label=plain(method), **look)
    front = np.flatnonzero(pareto(trade.costs, trade.badness))
    front = front[np.argsort(trade.costs[front])]
    ring = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": GREY}
    axes.plot(trade.costs[front], trade.values[front], color=GREY, linewidth=1, zorder=0, **ring)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15)
    axes.set_xlabel(plain(trade.cost), fontsize=9)
    axes.set_ylabel(plain(trade.quality), fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
