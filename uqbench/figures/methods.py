"""Methods side by side: one small panel per metric, a point with its interval per method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uqbench.figures.canvas import BLACK, BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILLION, png

COLUMNS = 4
LOOKS = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (SKY, "P"), (BLACK, "X")]


@dataclasses.dataclass(frozen=True)
class Point:
    """One method in one panel: mean, ends of its interval, value of a perfect model, values of the single runs.

    NaN stands for what is not known.
    """

    mean: float
    low: float
    high: float
    ideal: float
    runs: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One metric: heading, unit, the direction in which it is better, and the point of each method, or None."""

    heading: str
    unit: str
    better: Literal["lower", "higher"]
    points: Sequence[Point | None]


def methods_figure(methods: Sequence[str], panels: Sequence[Panel], *, title: str) -> bytes:
    """Draw the panels in a grid, with the methods in the same order, colour and marker in each, as a PNG file."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style.context(STYLE, after_reset=True):
        size = (2.6 * columns + 1.2, rows * (0.9 + 0.28 * len(methods)) + 0.9)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, methods, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.suptitle(title, fontsize=12)
        legend = "means over runs, 95 % intervals; dots: single runs"
        legend += "; grey: a perfectly calibrated model with these variances"
        figure.supxlabel(legend, fontsize=9, color=GREY)
        return png(figure)


def _draw(axes: Axes, methods: Sequence[str], panel: Panel) -> None:
    for place, point in enumerate(panel.points):
        color, marker = LOOKS[place % len(LOOKS)]
        if point is None or not np.isfinite(point.mean):
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": GREY}
            axes.text(0.5, place, "undefined", transform=axes.get_yaxis_transform(), **text)
            continue
        if np.isfinite(point.ideal):
            axes.plot([point.ideal] * 2, [place - 0.32, place + 0.32], color=GREY, linewidth=2.5, zorder=1)
        reach = np.nan_to_num([[point.mean - point.low], [point.high - point.mean]]).clip(min=0)
        look = {"color": color, "marker": marker, "markersize": 6, "capsize": 3, "elinewidth": 1.5}
        axes.errorbar(point.mean, place, xerr=reach, linestyle="none", zorder=2, **look)
        if len(point.runs) > 1:
            dots = {"marker": "o", "markersize": 3, "markeredgewidth": 0, "linestyle": "none", "color": color}
            axes.plot(point.runs, [place + 0.27] * len(point.runs), zorder=3, **dots)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_title(panel.heading, fontsize=10)
    unit = f"{panel.unit}; " if panel.unit else ""
    axes.set_xlabel(f"{unit}{panel.better} is better", fontsize=9)
    axes.tick_params(axis="x", labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
