"""Critical-difference diagram: mean ranks on a line, methods that cannot be told apart joined by bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from uqbench.figures.canvas import BLACK, DPI, GREY, STYLE, plain, png

ROW, BAR = 0.30, 0.14  # inches between names, and between bars


def critical_figure(methods: Sequence[str], ranks: np.ndarray, critical: float, *, title: str) -> bytes:
    """Draw methods, in order of their mean ranks (k,), as a PNG file; critical: difference beyond which two differ.

    Source: Demsar, J. Mach. Learn. Res. 7, 1 (2006), figure 1.
    """
    k = len(methods)
    bars = cliques(ranks, critical)
    half = -(-k // 2)
    height = 1.15 + BAR * len(bars) + ROW * half
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(7.2, height), dpi=DPI)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_xlim(-0.95, k + 1.95)
        axes.set_ylim(-height, 0)
        axes.set_axis_off()
        line = -0.85
        axes.text((k + 1) / 2, -0.06, plain(title), ha="center", va="top", fontsize=10)
        axes.plot([1, k], [line, line], color=BLACK, linewidth=1)
        for tick in range(1, k + 1):
            axes.plot([tick, tick], [line, line + 0.08], color=BLACK, linewidth=1)
            axes.text(tick, line + 0.11, str(tick), ha="center", va="bottom", fontsize=9)
        axes.plot([1, min(1 + critical, k)], [line + 0.33] * 2, color=GREY, linewidth=2.5, solid_capstyle="butt")
        axes.text(min(1 + critical, k) + 0.08, line + 0.33, "critical difference", va="center", fontsize=8, color=GREY)
        for place, (first, last) in enumerate(bars):
            y = line - BAR * (place + 0.7)
            ends = [ranks[first] - 0.04, ranks[last] + 0.04]
            axes.plot(ends, [y, y], color=BLACK, linewidth=4, solid_capstyle="butt")
        below = line - BAR * (len(bars) + 0.5)
        for place, (method, value) in enumerate(zip(methods, ranks, strict=True)):
            left = place < half
            y = below - ROW * ((place if left else k - 1 - place) + 0.5)
            end = 0.75 if left else k + 0.25
            axes.plot([value, value, end], [line, y, y], color=GREY, linewidth=0.9, zorder=0)
            text = f"{plain(method)}  {value:.2f}" if left else f"{value:.2f}  {plain(method)}"
            side = -0.08 if left else 0.08
            axes.text(end + side, y, text, ha="right" if left else "left", va="center", fontsize=9)
        return png(figure)


def cliques(ranks: np.ndarray, critical: float) -> list[tuple[int, int]]:
    """First and last place of each longest row of methods (ranks ascending) that lie within the critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + critical, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
