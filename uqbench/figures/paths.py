"""The drawing of a reaction path: energies of model and oracle along it, with the model's uncertainty."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from uqbench.figures.canvas import BLACK, BLUE, VERMILLION, Drawing

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Energies along a path of n images.

    Attributes:
        coordinate: (n,) share of the way. energy: (n,) eV from that of the first image.
        curve: coordinate and energy of the fit between the images.
        std: (n,) eV, or None.
        barrier: eV. converged: whether the path is to be trusted.
    """

    coordinate: Array
    energy: Array
    curve: tuple[Array, Array]
    std: Array | None
    barrier: float
    converged: bool


def drawing(name: str, title: str, model: Profile | None, oracle: Profile | None, on_model: Array) -> Drawing:
    """Lay out the figure of a reaction; on_model: (n,) the oracle's energies on the images of the model's path."""
    panel = functools.partial(profiles, model=model, oracle=oracle, on_model=on_model)
    return f"Minimum energy path: {name}", title, panel


def profiles(axes: Axes, *, model: Profile | None, oracle: Profile | None, on_model: Array) -> None:
    """Draw both profiles, each over its own path, and what the oracle says of the model's."""
    if model is None and oracle is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No path was found.", ha="center", va="center", transform=axes.transAxes)
        return
    if model is not None:
        if model.std is not None:
            coordinate, energy = model.curve
            std = np.interp(coordinate, model.coordinate, model.std)
            band = {"color": BLUE, "alpha": 0.18, "linewidth": 0, "zorder": 1, "label": "model ± σ of the energy"}
            axes.fill_between(coordinate, energy - std, energy + std, **band)
        _draw(axes, model, "model", color=BLUE, linestyle="-", marker="o")
        single = {"color": BLACK, "marker": "x", "markersize": 6, "linestyle": "none", "zorder": 4}
        axes.plot(model.coordinate, on_model, label="oracle on the model's path", **single)
    if oracle is not None:
        _draw(axes, oracle, "oracle", color=VERMILLION, linestyle="--", marker="s")
    axes.set(
        xlim=(-0.02, 1.02), xlabel="reaction coordinate, share of the path", ylabel="energy from the first image (eV)"
    )
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.3 * (top - bottom))  # room for the legend
    axes.legend(loc="upper center", ncols=2, frameon=False, handlelength=2.0, columnspacing=1.0, fontsize=9)


def _draw(axes: Axes, profile: Profile, who: str, *, color: str, linestyle: str, marker: str) -> None:
    state = "" if profile.converged else " (not converged)"
    label = f"{who}, barrier {profile.barrier:.3f} eV{state}"
    axes.plot(*profile.curve, color=color, linestyle=linestyle, linewidth=1.8, zorder=2)
    points = {"color": color, "marker": marker, "markersize": 5, "linestyle": "none", "zorder": 3, "fillstyle": "none"}
    axes.plot(profile.coordinate, profile.energy, **points)
    # One entry of the legend for line and markers.
    axes.plot([], [], color=color, linestyle=linestyle, marker=marker, markersize=5, fillstyle="none", label=label)
