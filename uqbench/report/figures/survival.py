"""Survival of simulations, methods side by side: one panel per method, dashed before and solid after learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uqbench.figures.canvas import DPI, GREY, LOOKS, STYLE, plain, png
from uqbench.metrics.survival import kaplan_meier

COLUMNS = 3
FIRST, LAST = (0, (4, 2)), "-"


@dataclasses.dataclass(frozen=True, eq=False)
class Replicas:
    """Replicas of one temperature (K) and stage of learning: times (n,) ps, exploded (n,), and the run (n,) of each."""

    temperature: float
    stage: str
    last: bool
    times: np.ndarray
    exploded: np.ndarray
    runs: np.ndarray


def survival_figure(panels: Sequence[tuple[str, Sequence[Replicas]]], *, title: str) -> bytes:
    """Draw Kaplan-Meier curves of the replicas of all runs, and faintly those of each, as a PNG file.

    panels: heading and replicas of each method.
    """
    temperatures = sorted({one.temperature for _, replicas in panels for one in replicas})
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style.context(STYLE, after_reset=True):
        size = (max(3.5 * columns, 5.0) + 0.4, 2.7 * rows + 1.2)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (heading, replicas) in zip(grid.flat, panels, strict=False):
            for one in replicas:
                _draw(axes, one, LOOKS[temperatures.index(one.temperature) % len(LOOKS)][0])
            axes.set_title(plain(heading), fontsize=9)
            axes.tick_params(labelsize=8)
            axes.set_ylim(-3, 103)
            axes.set_xlim(left=0)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in [*grid[-1], *grid.flat[len(panels) - columns : len(panels)]]:
            axes.set_xlabel("time (ps)", fontsize=9)
            axes.tick_params(labelbottom=True)
        figure.supylabel("replicas that survive (%)", fontsize=10)
        figure.suptitle(f"{plain(title)}\nbold: replicas of all runs together; faint: of each run", fontsize=11)
        handles = {}
        for axes in grid.flat:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor=GREY
        )
        return png(figure)


def _draw(axes: Axes, one: Replicas, color: str) -> None:
    look = {"color": color, "linestyle": LAST if one.last else FIRST, "where": "post"}
    runs = np.unique(one.runs)
    for run in runs if len(runs) > 1 else ():
        of_run = one.runs == run
        axes.step(*_steps(one.times[of_run], one.exploded[of_run]), linewidth=0.7, alpha=0.35, **look)
    label = ", ".join(filter(None, [f"{one.temperature:g} K", one.stage]))
    axes.step(*_steps(one.times, one.exploded), linewidth=2.0, label=label, **look)


def _steps(times: np.ndarray, exploded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    curve = kaplan_meier(times, exploded)
    share = 100 * np.concatenate([[1.0], curve.share, curve.share[-1:]])
    return np.concatenate([[0.0], curve.times, [max(times.max(), curve.times[-1])]]), share
