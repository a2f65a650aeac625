"""Drawings of an acquisition: how unsure the model is of the proposals, at what energy, and how they got there."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from ase import units
from matplotlib.axes import Axes
from numpy.typing import NDArray

from uqbench.figures.canvas import BLUE, GREY, ORANGE, VERMILLION, Drawing

Groups = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
KCAL_PER_MOL = units.kcal / units.mol
LOOKS = [(GREY, "o"), (ORANGE, "s"), (VERMILLION, "D")]
LINEAR = 10.0  # nats, on an axis that is logarithmic beyond on both sides


def drawings(groups: Groups, history: pd.DataFrame, scale: str, title: str) -> dict[str, Drawing]:
    """Lay out the figures of one round of proposals by name: `proposals`, and `climb` where they took steps.

    groups: by name, in the order seeds, random, proposals: scores (P,) and predicted energies per atom (P,) in eV.
    history: see `active.base.Proposals`. scale: of the score, `ratio` or `log`.
    """
    figures = {
        "proposals": ("Proposals", title, functools.partial(_scatter, groups=groups, scale=scale)),
    }
    if history["step"].nunique() > 1:
        panel = functools.partial(_climb, groups=groups, history=history, scale=scale)
        figures["climb"] = ("Scores on the way", title, panel)
    return figures


def _scatter(axes: Axes, *, groups: Groups, scale: str) -> None:
    lowest = np.nanmin([np.nanmin(energy) for _, energy in groups.values() if np.isfinite(energy).any()])
    for (name, (score, energy)), (color, marker) in zip(groups.items(), LOOKS, strict=True):
        look = {"color": color, "marker": marker, "linestyle": "none", "markersize": 5, "fillstyle": "none"}
        axes.plot((energy - lowest) / KCAL_PER_MOL, score, label=name, **look)
    _score_axis(axes, np.concatenate([score for score, _ in groups.values()]), scale)
    axes.set_xlabel("predicted energy above the lowest (kcal/mol per atom)")
    axes.legend()


def _climb(axes: Axes, *, groups: Groups, history: pd.DataFrame, scale: str) -> None:
    steps = history.groupby("step")["score"]
    middle = steps.median()
    low, high = steps.quantile(0.25), steps.quantile(0.75)
    axes.fill_between(middle.index, low, high, color=BLUE, alpha=0.2, linewidth=0, label="half of the structures")
    axes.plot(middle.index, middle, color=BLUE, linewidth=1.8, label="median")
    for (name, (score, _)), (color, _), style in zip(groups.items(), LOOKS[:2], ("-", "--"), strict=False):
        if np.isfinite(score).any():
            axes.axhline(np.nanmedian(score), color=color, linestyle=style, label=f"median of {name}")
    _score_axis(axes, history["score"].to_numpy(float), scale)
    axes.set_xlabel("step")
    axes.legend()


def _score_axis(axes: Axes, score: NDArray[np.float64], scale: str) -> None:
    """Scores that are variances or densities span orders of magnitude."""
    finite = score[np.isfinite(score)]
    if scale == "ratio" and len(finite) and (finite > 0).all():
        axes.set_yscale("log")
    elif scale == "log" and len(finite) and np.abs(finite).max() > 10 * LINEAR:
        axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_ylabel("score of a structure")
