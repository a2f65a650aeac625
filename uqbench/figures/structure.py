"""What the structure of frames looks like, split by split: radial distributions, coordination and density."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uqbench.figures.canvas import BLUE, DPI, GREEN, ORANGE, PURPLE, STYLE, VERMILLION, plain, png

COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE)
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
COLUMNS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """g (B,) at the distances r (B,) in Å."""

    r: np.ndarray
    g: np.ndarray


def structure_figure(
    distributions: Mapping[str, Mapping[str, Line]],
    coordinations: Mapping[str, Mapping[str, np.ndarray]],
    densities: Mapping[str, np.ndarray],
    title: str,
) -> bytes:
    """Draw the panels as a PNG file: one for each g(r), one for each kind of coordination, one for the density.

    All are by heading, then by split: lines, coordination numbers of atoms (n,), densities of frames (S,) in g/cm³.
    """
    splits = list(densities)
    drawings = [(heading, _radial, lines) for heading, lines in distributions.items()]
    drawings += [(heading, _coordination, counts) for heading, counts in coordinations.items()]
    drawings.append(("density", _density, densities))
    rows = -(-len(drawings) // COLUMNS)
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(3.5 * COLUMNS, 2.7 * rows + 0.9), dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for axes, (heading, drawing, content) in zip(grid.flat, drawings, strict=False):
            drawing(axes, content, splits)
            axes.set_title(plain(heading), fontsize=10)
            axes.tick_params(labelsize=8)
        for axes in grid.flat[len(drawings) :]:
            axes.set_axis_off()
        figure.suptitle(plain(title), fontsize=12)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(splits), fontsize=9, frameon=False)
        return png(figure)


def _colour(splits: Sequence[str], name: str) -> str:
    return COLOURS[splits.index(name) % len(COLOURS)]


def _radial(axes: Axes, lines: Mapping[str, Line], splits: Sequence[str]) -> None:
    for name, line in lines.items():
        look = {"color": _colour(splits, name), "linestyle": DASHES[splits.index(name) % len(DASHES)]}
        axes.plot(line.r, line.g, linewidth=1.4, label=plain(name), **look)
    axes.axhline(1, color="#BBBBBB", linewidth=0.6, zorder=0.5)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("r (Å)", fontsize=9)
    axes.set_ylabel("g(r)", fontsize=9)


def _coordination(axes: Axes, counts: Mapping[str, np.ndarray], splits: Sequence[str]) -> None:
    numbers = np.unique(np.concatenate(list(counts.values())))
    width = 0.8 / len(counts)
    for bar, (name, neighbours) in enumerate(counts.items()):
        shares = [100 * np.mean(neighbours == count) for count in numbers]
        at = numbers + width * (bar - (len(counts) - 1) / 2)
        axes.bar(at, shares, width, color=_colour(splits, name), label=plain(name))
    axes.set_xticks(numbers)
    axes.set(xlim=(numbers.min() - 1, numbers.max() + 1), ylim=(0, 105))
    axes.set_xlabel("neighbours", fontsize=9)
    axes.set_ylabel("atoms (%)", fontsize=9)


def _density(axes: Axes, densities: Mapping[str, np.ndarray], splits: Sequence[str]) -> None:
    for bar, (name, values) in enumerate(densities.items()):
        # Frames of one cell lie on one spot: a little height keeps them apart.
        heights = bar + 0.3 * np.linspace(-1, 1, len(values))
        axes.plot(values, heights, ".", color=_colour(splits, name), markersize=3)
    axes.set_yticks(range(len(splits)), map(plain, splits))
    axes.invert_yaxis()
    low, high = axes.get_xlim()
    if high - low < 0.2:
        middle = (low + high) / 2
        axes.set_xlim(middle - 0.1, middle + 0.1)
    axes.set_xlabel("g/cm³", fontsize=9)
