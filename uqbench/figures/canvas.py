"""What all figures share: their size and style, and how they become PNG files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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

Drawing = tuple[str, str, Callable[[Axes], None]]
"""Heading, the line below it that names run and split, and what draws on the axes."""


def render(drawings: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Draw figures of one pair of axes each and give them as PNG files by name.

    The same drawings give the same bytes under the same version of matplotlib, whatever its user has configured.
    """
    with style.context(STYLE, after_reset=True):
        return {name: png(draw(*drawing)) for name, drawing in drawings.items()}


def draw(heading: str, line: str, drawing: Callable[[Axes], None]) -> Figure:
    """Draw one pair of axes under a heading and a line, without any state outside of the figure."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    drawing(axes)
    figure.suptitle(heading, fontsize=13)
    axes.set_title(textwrap.fill(line, 75), color="#444444", parse_math=False)
    return figure


def png(figure: Figure) -> bytes:
    """Give a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    # Without the version of matplotlib, the only thing in the file that is not drawn.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
