"""Figures of simulations: which replicas survive, and what their uncertainty does meanwhile."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from uqbench.figures.canvas import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, Drawing
from uqbench.metrics.survival import kaplan_meier

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
STYLES = ("-", "--", "-.", ":")
DRAWN = 12  # exploded replicas drawn per temperature: more would hide one another
BAND = (0.05, 0.95)  # quantiles of the survivors' scores


def drawings(frames: pd.DataFrame, fates: pd.DataFrame, title: str) -> dict[str, Drawing]:
    """Lay out the figures of some simulations: file names, headings and what to draw.

    frames as from `md.outcome.marked`, fates as from `md.recording.Recorder`; title names run and split.
    """
    return {
        "md_survival.png": ("MD: survival", title, functools.partial(survival, fates=fates)),
        "md_uncertainty.png": ("MD: uncertainty", title, functools.partial(uncertainty, frames=frames, fates=fates)),
    }


def _looks(fates: pd.DataFrame) -> dict[float, dict[str, str]]:
    temperatures = sorted(fates.temperature.unique())
    return {
        temperature: {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)]}
        for k, temperature in enumerate(temperatures)
    }


def survival(axes: Axes, fates: pd.DataFrame) -> None:
    """Draw the Kaplan-Meier curve of every temperature with its pointwise 95 % band."""
    end = fates.time_ps.max()
    for temperature, look in _looks(fates).items():
        replicas = fates[fates.temperature == temperature]
        curve = kaplan_meier(replicas.time_ps, replicas.exploded)
        times = np.concatenate([[0.0], curve.times, [max(end, curve.times[-1])]])
        share, low, high = (
            100 * np.concatenate([[first], values, values[-1:]])
            for first, values in ((1.0, curve.share), (curve.start[0], curve.low), (curve.start[1], curve.high))
        )
        axes.fill_between(times, low, high, step="post", color=look["color"], alpha=0.15, linewidth=0)
        left = len(replicas) - int(replicas.exploded.sum())
        label = f"{temperature:g} K: {left} of {len(replicas)} left"
        axes.step(times, share, where="post", linewidth=1.8, label=label, **look)
    axes.set(xlim=(0, end), ylim=(-2, 104))
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("replicas not exploded (%), with 95 % interval")
    axes.legend(loc="best", framealpha=0.85)


def uncertainty(axes: Axes, frames: pd.DataFrame, fates: pd.DataFrame) -> None:
    """Draw the score of each frame's least sure atom against time.

    Survivors of a temperature are drawn as median and band, exploded replicas as lines that end in a cross where they
    were last recorded; of many, those with the lowest numbers.
    """
    for temperature, look in _looks(fates).items():
        steps = frames[frames.temperature == temperature]
        stable = steps[steps.phase == "survivor"].groupby("time_ps").score_max
        if len(stable):
            count = steps[steps.phase == "survivor"].replica.nunique()
            low, median, high = (stable.quantile(share) for share in (BAND[0], 0.5, BAND[1]))
            axes.fill_between(median.index, low, high, color=look["color"], alpha=0.2, linewidth=0)
            label = f"{temperature:g} K, {count} survivors: median, 5–95 %"
            axes.plot(median.index, median, linewidth=1.8, label=label, **look)
        lost = steps[steps.exploded]
        shown = sorted(lost.replica.unique())[:DRAWN]
        for number, replica in enumerate(shown):
            one = lost[lost.replica == replica]
            label = f"{temperature:g} K, exploded: {len(shown)} of {lost.replica.nunique()} drawn"
            axes.plot(one.time_ps, one.score_max, color=look["color"], linewidth=0.6, alpha=0.6)
            mark = {"color": look["color"], "marker": "x", "markersize": 7, "linestyle": "none"}
            axes.plot(one.time_ps.iloc[-1:], one.score_max.iloc[-1:], label=None if number else label, **mark)
    if frames.score_max.min() > 0 and frames.score_max.max() > 10 * frames.score_max.min():
        axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("score of the least sure atom (unit of the method)")
    axes.legend(loc="best", framealpha=0.85)
