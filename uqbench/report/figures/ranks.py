"""Mean ranks of methods on a line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from uqbench.figures.canvas import BLACK, DPI, GREY, STYLE, plain, png

ROW = 0.30  # inches between names


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
        for place, (method, value) in enumerate(zip(methods, ranks, strict=True)):
            left = place < half
            y = line - ROW * ((place if left else k - 1 - place) + 0.5)
            end = 0.75 if left else k + 0.25
            axes.plot([value, value, end], [line, y, y], color=GREY, linewidth=0.9, zorder=0)
            text = f"{plain(method)}  {value:.2f}" if left else f"{value:.2f}  {plain(method)}"
            side = -0.08 if left else 0.08
            axes.text(end + side, y, text, ha="right" if left else "left", va="center", fontsize=9)
        return png(figure)
