"""Methods side by side: one small panel per metric, a point with its interval per method; and their mean ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uqbench.figures import canvas
from uqbench.figures.canvas import BLACK, DPI, GREY, LOOKS, STYLE, plain, png, text_width

COLUMNS = 4
ROW = 0.30  # inches between names beside the line of ranks


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
    methods = list(map(plain, methods))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style.context(STYLE, after_reset=True):
        margins = (text_width(methods, STYLE["font.size"]) + 0.25, 0.25, 0.85, 0.65)
        size = 2.2, 0.1 + 0.28 * len(methods)
        figure, grid = canvas.panels((rows, columns), size, spacing=(0.3, 0.8), margins=margins, sharey=True)
        grid[0, 0].set_yticks(range(len(methods)), methods)
        grid[0, 0].set_ylim(len(methods) - 0.4, -0.6)
        for axes in grid[:, 1:].flat:
            axes.yaxis.set_visible(False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        height = figure.get_size_inches()[1]
        figure.suptitle(plain(title), fontsize=12, y=1 - 0.08 / height)
        legend = "means over runs, 95 % intervals; dots: single runs"
        legend += "; grey: a perfectly calibrated model with these variances"
        figure.supxlabel(legend, fontsize=9, color=GREY, y=0.08 / height, va="bottom")
        return png(figure)


def _upright(axes: Axes, x: list[float], y: list[int], reach: float, colors: list[str], width: float, **look) -> None:
    y = np.asarray(y)
    axes.vlines(x, y - reach, y + reach, colors=colors, linewidths=width, **look)


def _draw(axes: Axes, panel: Panel) -> None:
    known = {k: point for k, point in enumerate(panel.points) if point is not None and np.isfinite(point.mean)}
    colors = {k: LOOKS[k % len(LOOKS)][0] for k in known}
    for k in range(len(panel.points)):
        if k not in known:
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": GREY}
            axes.text(0.5, k, "undefined", transform=axes.get_yaxis_transform(), **text)
    # Few artists of many parts: each costs as much as its parts together.
    perfect = [k for k, point in known.items() if np.isfinite(point.ideal)]
    if perfect:
        _upright(axes, [known[k].ideal for k in perfect], perfect, 0.32, [GREY] * len(perfect), 2.5, zorder=1)
    ends = {end: [np.nan_to_num(getattr(p, end), nan=p.mean) for p in known.values()] for end in ("low", "high")}
    axes.hlines(list(known), *ends.values(), colors=list(colors.values()), linewidths=1.5, zorder=2)
    for values in ends.values():
        _upright(axes, values, list(known), 0.1, list(colors.values()), 1.0, zorder=2)
    for k, point in known.items():
        axes.plot(point.mean, k, color=colors[k], marker=LOOKS[k % len(LOOKS)][1], markersize=6, zorder=3)
    repeated = {k: point.runs for k, point in known.items() if len(point.runs) > 1}
    if repeated:
        counts = list(map(len, repeated.values()))
        heights, dots = (np.repeat(values, counts) for values in (list(repeated), [colors[k] for k in repeated]))
        axes.scatter(np.concatenate(list(repeated.values())), heights + 0.27, s=9, c=dots, linewidths=0, zorder=4)
    axes.set_title(plain(panel.heading), fontsize=10)
    unit = f"{plain(panel.unit)}; " if panel.unit else ""
    axes.set_xlabel(f"{unit}{panel.better} is better", fontsize=9)
    axes.tick_params(axis="x", labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def ranks_figure(methods: Sequence[str], ranks: np.ndarray, *, title: str) -> bytes:
    """Draw methods, in order of their mean ranks (k,), as a PNG file.

    There are no bars that join methods: what they would say, ranks over metrics of the same predictions cannot.
    """
    k = len(methods)
    half = -(-k // 2)
    height = 0.95 + ROW * half
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(7.2, height), dpi=DPI)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_xlim(-0.95, k + 1.95)
        axes.set_ylim(-height, 0)
        axes.set_axis_off()
        line = -0.65
        axes.text((k + 1) / 2, -0.06, plain(title), ha="center", va="top", fontsize=10)
        axes.plot([1, k], [line, line], color=BLACK, linewidth=1)
        for tick in range(1, k + 1):
            axes.plot([tick, tick], [line, line + 0.08], color=BLACK, linewidth=1)
            axes.text(tick, line + 0.11, str(tick), ha="center", va="bottom", fontsize=9)
        for rank, (method, value) in enumerate(zip(methods, ranks, strict=True)):
            left = rank < half
            y = line - ROW * ((rank if left else k - 1 - rank) + 0.5)
            end = 0.75 if left else k + 0.25
            axes.plot([value, value, end], [line, y, y], color=GREY, linewidth=0.9, zorder=0)
            text = f"{plain(method)}  {value:.2f}" if left else f"{value:.2f}  {plain(method)}"
            side = -0.08 if left else 0.08
            axes.text(end + side, y, text, ha="right" if left else "left", va="center", fontsize=9)
        return png(figure)
