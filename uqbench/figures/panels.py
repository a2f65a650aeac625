"""The drawings behind the figures of a run: each puts one view of errors and uncertainties on given axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.special import gammaincinv, ndtr

from uqbench.figures.canvas import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION, Drawing
from uqbench.figures.samples import CALIBRATED, RAW, Sample
from uqbench.metrics.accuracy import rmse, squared_norm
from uqbench.metrics.bootstrap import interval, resampled_counts
from uqbench.metrics.confidence import FRACTIONS, ause, confidence_curve
from uqbench.metrics.kernels import Array, Ordering, Weighting
from uqbench.metrics.reliability import Bins, ence_of_bins, miscalibration_area, reliability_curve, z_quantiles
from uqbench.seeding import numpy_generator

LINES = {RAW: (VERMILLION, "--", "s"), CALIBRATED: (BLUE, "-", "o")}
REFERENCE = {"color": BLACK, "linewidth": 1.0, "linestyle": ":"}

RESAMPLES = 200  # of the structures, behind the intervals of RMSE
CROWD = 1000  # items from which on density is drawn instead of single points
BANDS = (0.5, 0.9)  # shares of the errors that lie inside the reference bands
SMALLEST = 1e-3  # in medians: errors below are outside of the logarithmic axis
HEADROOM = 0.14  # share of the axis kept for the legend where points may lie anywhere
PROBABILITIES = np.linspace(0.0, 1.0, 501)
TAIL = 4.0  # in standard deviations: how far the z-scores are followed; the axis turns logarithmic beyond it


def drawings(samples: Mapping[str, Sample], title: str) -> dict[str, Drawing]:
    """Lay out the figures of some predictions: file names, headings and what to draw.

    samples by target: all five of PANELS for `forces`, per atom, as `forces_<panel>.png`; those of FEW for the others,
    `<target>_<panel>.png`. title names run and split. A figure that would be empty, such as errors against a constant
    uncertainty, says so.
    """
    laid_out = {}
    for target, sample in samples.items():
        count = len(sample.errors)
        line = f"{title} ({count:,} {sample.item}{'s' if count > 1 else ''})"
        for name in PANELS if target == "forces" else FEW:
            heading, panel = PANELS[name]
            laid_out[f"{target}_{name}.png"] = (
                f"{sample.title}: {heading}",
                line,
                functools.partial(panel, sample=sample),
            )
    return laid_out


def error_uncertainty(axes: Axes, sample: Sample) -> None:
    """Draw the size of each error against sigma, and the bands that hold 50 and 90 % of them for a calibrated model.

    Sigma is the calibrated one, or the raw one where calibration made all equal; where that is no better, the axes say
    so. The legend gives the share of the errors inside each band. For a Gaussian of variance v per component,
    |error| / sqrt(v) has a chi distribution of D degrees of freedom.
    """
    varied = [name for name in (CALIBRATED, RAW) if name in sample.variances and not constant(sample.variances[name])]
    sizes = sample.sizes
    if not varied:
        sigma, error = sample.sigma(CALIBRATED)[0], sample.scale * rmse(sample.errors)
        same = (
            f"The uncertainty is the same for every {sample.item}:\nσ of {sample.component} = {sigma:.3g} {sample.unit}"
        )
        return _state(axes, f"{same}\n(RMSE {error:.3g} {sample.unit})")
    if not np.any(sizes > 0):
        return _state(axes, "There are no errors.")
    name = varied[0]
    sigma = sample.sigma(name)
    median = np.median(sizes[sizes > 0])
    drawn = sizes > SMALLEST * median
    x_limits = _limits(sigma)
    y_limits = _limits(sizes[drawn], *(_chi(sample, p) * np.median(sigma) for p in (0.05, 0.95)))
    y_limits = y_limits[0], y_limits[1] * (y_limits[1] / y_limits[0]) ** HEADROOM
    _log_axes(axes, x_limits, y_limits)
    ends = np.array(x_limits)
    for band, alpha, style in zip(BANDS, (0.30, 0.16), ("-", "--"), strict=True):
        low, high = (_chi(sample, 0.5 + sign * band / 2) for sign in (-1, 1))
        inside = np.mean((sizes >= low * sigma) & (sizes <= high * sigma))
        label = f"{100 * band:.0f} % band: holds {100 * inside:.0f} %"
        axes.fill_between(ends, low * ends, high * ends, color=GREY, alpha=alpha, linewidth=0, zorder=0.5)
        for line, text in ((low, label), (high, None)):
            axes.plot(ends, line * ends, color=VERMILLION, linewidth=1.6, linestyle=style, zorder=3, label=text)
    if len(sizes) < CROWD:
        axes.scatter(sigma[drawn], sizes[drawn], s=12, color=BLUE, alpha=0.5, linewidths=0, zorder=2)
    else:
        cells = axes.hexbin(
            sigma[drawn],
            sizes[drawn],
            xscale="log",
            yscale="log",
            extent=(*np.log10(x_limits), *np.log10(y_limits)),
            gridsize=(42, 24),
            mincnt=1,
            norm=LogNorm(vmin=1),
            cmap="viridis_r",
            linewidths=0.1,
            zorder=2,
        )
        cells.norm.vmax = max(cells.get_array().max(), 10)
        axes.figure.colorbar(cells, ax=axes, label=f"{sample.item}s per cell", format="{x:g}")
        _log_axes(axes, x_limits, y_limits)
    remark = "" if name == CALIBRATED else "; calibrated σ is constant"
    axes.set_xlabel(f"{name} σ of {sample.component} ({sample.unit}){remark}")
    axes.set_ylabel(f"error {sample.symbol} ({sample.unit})")
    _legend(axes, loc="upper left")


def reliability(axes: Axes, sample: Sample) -> None:
    """Draw the observed share of errors below each Gaussian quantile; the legend gives the miscalibration areas."""
    axes.plot([0, 1], [0, 1], label="ideal", **REFERENCE)
    for name, variance in sample.variances.items():
        color, style, _ = LINES[name]
        observed = reliability_curve(sample.errors, variance, PROBABILITIES)
        area = miscalibration_area(sample.errors, variance)
        if name == CALIBRATED:
            axes.fill_between(PROBABILITIES, PROBABILITIES, observed, color=color, alpha=0.15, linewidth=0)
        axes.plot(PROBABILITIES, observed, color=color, linestyle=style, label=f"{name}, area {area:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("expected share of errors below the quantile")
    axes.set_ylabel("observed share of errors below the quantile")
    _legend(axes, sample.undefined)


def rmse_rmv(axes: Axes, sample: Sample) -> None:
    """Draw RMSE against root mean variance in bins, with 95 % intervals from a bootstrap over structures.

    There are as many bins as in the table, but no more than items, and one where the variance is constant. The legend
    gives the ENCE.
    """
    values = []
    for name, variance in sample.variances.items():
        color, _, marker = LINES[name]
        bins = 1 if constant(variance) else min(sample.bins, len(variance))
        rmv, root, low, high = binned(sample, variance, bins)
        label = f"{name}, ENCE {ence_of_bins(rmv, root):.2f} ({bins} bin{'s' if bins > 1 else ''})"
        x, y = sample.scale * rmv, sample.scale * root
        # Of few structures, the interval of a bin may leave its own value out; the bar then ends there.
        bars = np.nan_to_num(sample.scale * np.array([root - low, high - root])).clip(min=0)
        style = {"color": color, "marker": marker, "markersize": 5, "linestyle": "none"}
        axes.errorbar(x, y, yerr=bars, elinewidth=1.2, capsize=2.5, label=label, **style)
        # An interval of very few structures may reach down to zero, which no logarithmic axis shows.
        values += [x, np.maximum(y - bars[0], y / 4), y + bars[1]]
    values = np.concatenate(values)
    if not np.any(values > 0):
        return _state(axes, "There are no errors.")
    limits = _limits(values[values > 0])
    axes.plot(limits, limits, label="ideal", zorder=0.5, **REFERENCE)
    _log_axes(axes, limits, limits)
    axes.set_xlabel(f"root mean variance of the bin ({sample.unit})")
    axes.set_ylabel(f"RMSE of the bin ({sample.unit})")
    _legend(axes, sample.undefined)


def confidence(axes: Axes, sample: Sample) -> None:
    """Draw the RMSE left when the most uncertain items are set aside, relative to that of all.

    Beside the score's curve: the oracle's, which sets the largest errors aside; and for each variance the probabilistic
    reference, what errors drawn from it would give. A raw variance that ranks differently from the score has a curve of
    its own. The legend gives the AUSE.
    """
    squared = squared_norm(sample.errors)
    if not np.any(squared > 0):
        return _state(axes, "There are no errors.")
    share = 100 * FRACTIONS
    area = ause(sample.score, squared)
    label = "score is constant" if np.isnan(area) else f"by score, AUSE {area:.3f}"
    axes.plot(share, confidence_curve(sample.score, squared), color=BLUE, linewidth=2.2, label=label)
    raw = sample.variances.get(RAW)
    if raw is not None and not Ordering(sample.score).fits(raw):
        axes.plot(share, confidence_curve(raw, squared), color=SKY, linewidth=1.8, label="by raw variance")
    for name, variance in sample.variances.items():
        color, style = (VERMILLION, "--") if name == RAW else (GREEN, "-.")
        expected = confidence_curve(variance, variance)
        axes.plot(share, expected, color=color, linestyle=style, label=f"expected from {name} variance")
    axes.plot(share, confidence_curve(squared, squared), color=BLACK, linewidth=1.2, label="oracle")
    axes.axhline(1.0, label="random", **REFERENCE)
    axes.set(xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{sample.item}s set aside, most uncertain first (%)")
    axes.set_ylabel("RMSE of those left, relative to all")
    _legend(axes, sample.undefined)


def z_scores(axes: Axes, sample: Sample) -> None:
    """Draw the quantiles of error over sigma against those of the standard Gaussian."""
    # No further out than the data reach: half an item lies beyond the last quantile.
    rarest = float(np.clip(0.5 / sample.errors.size, ndtr(-TAIL), 0.25))
    bound = float(np.sqrt(2 * gammaincinv(0.5, 1 - 2 * rarest)))
    probabilities = ndtr(np.linspace(-bound, bound, 101))
    axes.plot([-bound, bound], [-bound, bound], label="ideal", **REFERENCE)
    reach = bound
    for name, variance in sample.variances.items():
        color, style, marker = LINES[name]
        expected, observed = z_quantiles(sample.errors, variance, probabilities)
        reach = max(reach, float(np.abs(observed).max()))
        look = {"color": color, "linestyle": style, "marker": marker, "markersize": 4, "markevery": 5}
        axes.plot(expected, observed, label=name, **look)
    if reach > 2.5 * TAIL:
        _compress(axes, reach)
    axes.set(xlim=(-bound, bound))
    axes.set_xlabel("quantile of the standard Gaussian")
    axes.set_ylabel("observed quantile of error / σ")
    _legend(axes, sample.undefined)


PANELS: dict[str, tuple[str, Callable[[Axes, Sample], None]]] = {
    "error_uncertainty": ("error against uncertainty", error_uncertainty),
    "reliability": ("reliability", reliability),
    "rmse_rmv": ("RMSE against root mean variance", rmse_rmv),
    "confidence": ("confidence curve", confidence),
    "z_scores": ("z-scores", z_scores),
}
"""Heading and drawing by the name that the file bears."""
FEW = ("error_uncertainty", "reliability", "rmse_rmv")  # structures are too few for the others


def binned(sample: Sample, variance: Array, bins: int) -> tuple[Array, Array, Array, Array]:
    """Root mean variance, RMSE, and the lower and upper ends of its interval, each (bins,), in eV or eV/Å.

    The intervals are NaN for a single structure.
    """
    ordering = Ordering(variance, sample.owner)
    mean_square = squared_norm(sample.errors) / sample.errors.shape[1]
    kernel = Bins(ordering, mean_square[ordering.order], variance[ordering.order], bins)
    rmv, root = kernel.curve(Weighting(np.ones(sample.structures)))
    several = sample.owner[0] != sample.owner[-1]
    counts = resampled_counts(sample.structures, RESAMPLES if several else 0, numpy_generator(0, "figures"))
    roots = np.reshape([kernel.curve(Weighting(drawn))[1] for drawn in counts], (-1, bins))
    ends = [interval(value, samples, ends=(0.0, np.inf)) for value, samples in zip(root, roots.T, strict=True)]
    return rmv, root, *np.transpose(ends)


def constant(values: Array) -> bool:
    """Whether all values (n,) are the same but for rounding."""
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def _chi(sample: Sample, probability: float) -> float:
    """Quantile of |error| / sigma of a calibrated model."""
    return float(np.sqrt(2 * gammaincinv(sample.errors.shape[1] / 2, probability)))


def _limits(values: Array, *more: float) -> tuple[float, float]:
    """Logarithmic axis limits around positive values, at least a factor of 4 apart."""
    low, high = min(values.min(), *more, values.max()), max(values.max(), *more, values.min())
    margin = max(1.25, 2 / np.sqrt(high / low))
    return float(low / margin), float(high * margin)


def _log_axes(axes: Axes, x_limits: tuple[float, float], y_limits: tuple[float, float]) -> None:
    axes.set(xscale="log", yscale="log", xlim=x_limits, ylim=y_limits)
    for axis, (low, high) in ((axes.xaxis, x_limits), (axes.yaxis, y_limits)):
        decades = np.log10(high / low)
        digits = (1, 2, 3, 4, 6, 8) if decades < 0.9 else (1, 2, 5) if decades < 3 else (1,)
        axis.set_major_locator(LogLocator(subs=digits, numticks=30))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _compress(axes: Axes, reach: float) -> None:
    """Make the y axis logarithmic beyond TAIL, up to `reach`, and say where."""
    axes.set_yscale("symlog", linthresh=TAIL, linscale=2.0)
    outer = [digit * 10.0**power for power in range(1, int(np.log10(reach)) + 1) for digit in (1, 3)]
    outer = [value for value in outer if value <= reach]
    outer = outer[:: 1 + len(outer) // 5]
    inner = TAIL / 2 * np.arange(-2, 3)
    axes.set_yticks([*(-value for value in reversed(outer)), *inner, *outer])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-1.3 * reach, 1.3 * reach)
    # Quantiles ascend: the upper left and the lower right corner are free.
    for edge, side, x, align in ((TAIL, "bottom", 0.01, "left"), (-TAIL, "top", 0.99, "right")):
        axes.axhline(edge, color=GREY, linewidth=0.6)
        anchor = {"ha": align, "va": side, "transform": axes.get_yaxis_transform()}
        axes.text(x, edge, "logarithmic beyond", color=GREY, fontsize=10, **anchor)


def _legend(axes: Axes, undefined: dict[str, int] | None = None, loc: str = "best") -> None:
    for name, count in (undefined or {}).items():
        axes.plot([], [], linestyle="none", label=f"{name}: left out, {count} variances are zero")
    axes.legend(loc=loc, framealpha=0.85)


def _state(axes: Axes, text: str) -> None:
    """Say why there is nothing to see."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=13, transform=axes.transAxes)
