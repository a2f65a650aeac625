"""Figures of one run and split: pictures of how errors and uncertainties go together, as PNG files."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uqbench.metrics.kernels import Array
from uqbench.results.panels import CALIBRATED, PANELS, RAW, Sample, drawing_unit

if TYPE_CHECKING:
    from uqbench.evaluation import Calibration, Predictions

WIDTH, HEIGHT, DPI = 6.4, 4.8, 150
STYLE = {
    "font.size": 11,
    "axes.titlesize": 9,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
ENERGY_PANELS = ("error_uncertainty", "reliability", "rmse_rmv")  # structures are too few for the others


def figures(predictions: Predictions, calibration: Calibration, *, title: str, bins: int) -> dict[str, bytes]:
    """Draw the figures of some predictions and give them as PNG files by name.

    All five of PANELS for forces per atom, `forces_<panel>.png`; those of ENERGY_PANELS for energies per structure,
    `energy_<panel>.png`. The calibration is that of the validation split; title: a line below the headings that names
    run and split; bins: along the variance. A figure that would be empty, such as errors against a constant
    uncertainty, says so. The same arguments give the same bytes under the same version of matplotlib, whatever its user
    has configured.
    """
    content = {}
    with style.context(STYLE, after_reset=True):
        for target, sample in samples(predictions, calibration, bins).items():
            for name in PANELS if target == "forces" else ENERGY_PANELS:
                content[f"{target}_{name}.png"] = _png(draw(sample, name, title))
    return content


def samples(predictions: Predictions, calibration: Calibration, bins: int) -> dict[str, Sample]:
    """Errors and uncertainties of forces and of energies, as they are drawn."""
    s = predictions.structures
    force_errors, energy_errors = predictions.forces - s.forces, (predictions.energy - s.energies)[:, None]
    unit, scale = drawing_unit(force_errors, "eV/Å")
    raw, calibrated = predictions.force_variance, calibration.forces.variance(predictions.score)
    forces = Sample(
        title="Forces",
        item="atom",
        component="a force component",
        symbol="|ΔF|",
        unit=unit,
        scale=scale,
        errors=force_errors,
        owner=np.repeat(np.arange(len(s)), s.n_atoms),
        structures=len(s),
        score=predictions.score,
        bins=bins,
        **_variances(raw, calibrated),
    )
    unit, scale = drawing_unit(energy_errors, "eV")
    raw, calibrated = predictions.energy_variance, calibration.energy.variance(predictions.energy_score)
    energy = Sample(
        title="Energies",
        item="structure",
        component="the energy",
        symbol="|ΔE|",
        unit=unit,
        scale=scale,
        errors=energy_errors,
        owner=np.arange(len(s)),
        structures=len(s),
        score=predictions.energy_score,
        bins=bins,
        **_variances(raw, calibrated),
    )
    return {"forces": forces, "energy": energy}


def draw(sample: Sample, panel: str, title: str) -> Figure:
    """Draw one panel with its heading, without any state outside of the figure."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    heading, drawing = PANELS[panel]
    drawing(axes, sample)
    figure.suptitle(f"{sample.title}: {heading}", fontsize=13)
    count = len(sample.errors)
    line = f"{title} ({count:,} {sample.item}{'s' if count > 1 else ''})"
    axes.set_title(textwrap.fill(line, 75), color="#444444", parse_math=False)
    return figure


def _variances(raw: Array | None, calibrated: Array) -> dict[str, dict]:
    """Sort the variances into those that can be drawn and those that hold zeros."""
    given = {name: v for name, v in ((RAW, raw), (CALIBRATED, calibrated)) if v is not None}
    zeros = {name: int(np.count_nonzero(v == 0)) for name, v in given.items()}
    return {
        "variances": {name: v for name, v in given.items() if not zeros[name]},
        "undefined": {name: count for name, count in zeros.items() if count},
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib, the only thing in the file that is not drawn.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
