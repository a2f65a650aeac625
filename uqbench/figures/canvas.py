"""What all figures share: their size and style, and how they become PNG files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from uqbench.text import printable

WIDTH, HEIGHT, DPI = 6.4, 4.8, 150
STYLE = {
    "font.size": 11,
    "axes.titlesize": 9,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Okabe and Ito's colours, which all kinds of colour vision tell apart; line styles and markers should differ as well.
BLUE, VERMILLION, GREEN, SKY, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#000000", "#767676"
ORANGE, PURPLE = "#E69F00", "#CC79A7"
LOOKS = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (SKY, "P"), (BLACK, "X"))
LONGEST = 100  # characters of a name: a figure may grow with it, and has an end

Drawing = tuple[str, str, Callable[[Axes], None]]
"""Heading, the line below it that names run and split, and what draws on the axes."""


def render(drawings: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Draw figures of one pair of axes each and give them as PNG files by name.

    The same drawings give the same bytes under the same version of matplotlib, whatever its user has configured.
    """
    with style.context(STYLE, after_reset=True):
        return {name: png(draw(*drawing)) for name, drawing in drawings.items()}


def plain(text: str) -> str:
    """Return a name from a table or a config as matplotlib draws it literally: no mathematics, one line, not too long.

    Matplotlib would also leave a name that begins with an underscore out of legends.
    """
    text = printable(text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def draw(heading: str, line: str, drawing: Callable[[Axes], None]) -> Figure:
    """Draw one pair of axes under a heading and a line, without any state outside of the figure."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    drawing(axes)
    figure.suptitle(plain(heading), fontsize=13)
    axes.set_title(textwrap.fill(printable(line), 75), color="#444444", parse_math=False)
    return figure


def panels(
    shape: tuple[int, int],
    size: tuple[float, float],
    *,
    spacing: tuple[float, float],
    margins: tuple[float, float, float, float],
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """Give a figure with panels in a grid, and the panels (rows, columns), with everything at its place in inches.

    size: width and height of a panel. spacing: between columns and between rows. margins: left, right, bottom, top.
    options: of `Figure.subplots`. A layout engine would draw each panel once more only to find out how large it is.
    """
    (rows, columns), (width, height), (left, right, bottom, top) = shape, size, margins
    across = left + columns * width + (columns - 1) * spacing[0] + right
    up = bottom + rows * height + (rows - 1) * spacing[1] + top
    figure = Figure(figsize=(across, up), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    ends = left / across, bottom / up, 1 - right / across, 1 - top / up
    figure.subplots_adjust(*ends, wspace=spacing[0] / width, hspace=spacing[1] / height)
    return figure, grid


def text_width(texts: Iterable[str], size: float) -> float:
    """Width in inches of the widest of some lines of text of a size in points."""
    renderer, font = RendererAgg(1, 1, DPI), FontProperties(size=size)
    return max(renderer.get_text_width_height_descent(text, font, ismath=False)[0] for text in texts) / DPI


def png(figure: Figure) -> bytes:
    """Give a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    # Without the version of matplotlib, the only thing in the file that is not drawn.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
