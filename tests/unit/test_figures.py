"""Figures: the numbers handed to the axes are those of the metrics, and no method or data makes them fail."""

import dataclasses
import functools
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from uqbench.data.structures import Structures
from uqbench.evaluations.samples import samples
from uqbench.figures import canvas, panels
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import PredictionSet
from uqbench.metrics import bootstrap, confidence, reliability
from uqbench.seeding import numpy_generator
from uqbench.uq.calibration import ConformalCalibration, LinearCalibration, ScoreCalibration

pytestmark = pytest.mark.filterwarnings("error")

FORCES = {f"forces_{name}.png" for name in panels.PANELS}
ENERGY = {f"energy_{name}.png" for name in panels.FEW}
LEVELS = (0.5, 0.9)
BINS = 20


def calibration_of(linear):
    """The same linear map for forces and energies, with no conformal part, which is not drawn."""
    one = ScoreCalibration(linear, ConformalCalibration({}))
    return Calibration(forces=one, energy=one)


IDENTITY = calibration_of(LinearCalibration(a=1.0, b=0.0, floor=1e-12))


def synthetic(structures=100, atoms=6, raw=1.0, sigma=0.5, seed=0):
    """Predictions with errors drawn from their calibrated variance; the raw one is `raw` times that."""
    generator = np.random.default_rng(seed)
    n = structures * atoms
    variance = (sigma * np.exp(0.5 * generator.standard_normal(n))) ** 2
    energy_variance = (sigma * np.exp(0.5 * generator.standard_normal(structures))) ** 2
    frames = Structures(
        numbers=np.full(n, 6),
        positions=np.zeros((n, 3)),
        cells=np.zeros((structures, 3, 3)),
        pbc=np.zeros((structures, 3), dtype=bool),
        ptr=atoms * np.arange(structures + 1),
        energies=generator.standard_normal(structures),
        forces=generator.standard_normal((n, 3)),
        ids=np.arange(structures),
        origin="synthetic",
    )
    return PredictionSet(
        structures=frames,
        energy=frames.energies + np.sqrt(energy_variance) * generator.standard_normal(structures),
        forces=frames.forces + np.sqrt(variance)[:, None] * generator.standard_normal((n, 3)),
        energy_variance=raw * energy_variance,
        force_variance=raw * variance,
        score=variance,
        energy_score=energy_variance,
        seconds=1.0,
    )


def constant(predictions):
    """The same with a constant score and no variances, as `uq=deterministic` gives them."""
    s = predictions.structures
    nothing = {"energy_variance": None, "force_variance": None}
    ones = {"score": np.ones(len(s.numbers)), "energy_score": np.ones(len(s))}
    return dataclasses.replace(predictions, **nothing, **ones)


def sample(predictions, target="forces"):
    return samples(predictions, IDENTITY, BINS)[target]


def drawn(predictions, panel, target="forces"):
    """The axes after drawing one panel."""
    axes = Figure().add_subplot()
    panels.PANELS[panel][1](axes, sample(predictions, target))
    return axes


def lines(axes):
    return {line.get_label(): np.array(line.get_data()) for line in axes.get_lines()}


def draw_all(predictions, title="run"):
    """All files of a run, with the calibration of the predictions themselves."""
    drawn = samples(predictions, Calibration.fit(predictions, LEVELS), BINS)
    return canvas.render(panels.drawings(drawn, title))


def labelled(found, start):
    return next(data for label, data in found.items() if label.startswith(start))


def words(axes):
    legend = axes.get_legend()
    return " ".join(text.get_text() for text in [*axes.texts, *(legend.get_texts() if legend else [])])


def draw_everything(predictions):
    """Draw every panel of both targets up to its layout, with the calibration of the predictions themselves."""
    for one in samples(predictions, Calibration.fit(predictions, LEVELS), BINS).values():
        for panel in panels.PANELS:
            drawing = functools.partial(panels.PANELS[panel][1], sample=one)
            canvas.draw("heading", "title", drawing).draw_without_rendering()


def test_all_figures_are_png_files_of_one_size():
    predictions = synthetic()
    content = draw_all(predictions, title=r"not $\mathematics$")
    assert set(content) == FORCES | ENERGY
    for data in content.values():
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) < 300_000
        image = Image.open(io.BytesIO(data))
        assert image.size == (960, 720)
        assert image.info.get("Software") is None
        assert np.asarray(image.convert("L")).std() > 10


def test_the_same_bytes_twice_whatever_the_user_configured(monkeypatch):
    # Two of them suffice, one with random numbers: drawing takes long.
    monkeypatch.setattr(panels, "PANELS", {name: panels.PANELS[name] for name in ("error_uncertainty", "rmse_rmv")})
    monkeypatch.setattr(panels, "FEW", ())
    predictions = synthetic(structures=20)
    first = draw_all(predictions)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "lines.linewidth": 5}):
        second = draw_all(predictions)
        assert matplotlib.rcParams["font.size"] == 20
    assert first == second
    assert first["forces_error_uncertainty.png"] != first["forces_rmse_rmv.png"]


def test_pyplot_is_not_imported():
    code = "import sys, uqbench.figures.panels; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


@pytest.mark.parametrize("raw", [1.0, 0.1])
def test_the_reliability_curve_has_the_area_of_the_metric(raw):
    predictions = synthetic(raw=raw)
    axes = drawn(predictions, "reliability")
    errors = predictions.forces - predictions.structures.forces
    for name, variance in (("raw", predictions.force_variance), ("calibrated", predictions.score)):
        area = reliability.miscalibration_area(errors, variance)
        expected, observed = labelled(lines(axes), name)
        assert np.trapezoid(np.abs(observed - expected), expected) == pytest.approx(area, abs=2e-3)
        assert f"{name}, area {area:.3f}" in words(axes)
    assert reliability.miscalibration_area(errors, predictions.force_variance) > (0.05 if raw < 1 else 0)


def test_the_bins_have_the_ence_of_the_metric_and_the_unit_of_the_label():
    predictions = synthetic(sigma=0.02)
    axes = drawn(predictions, "rmse_rmv")
    assert "meV/Å" in axes.get_xlabel() and "meV/Å" in axes.get_ylabel()
    errors = predictions.forces - predictions.structures.forces
    bars = next(c for c in axes.containers if c.get_label().startswith("calibrated"))
    rmv, root = bars.lines[0].get_data()
    np.testing.assert_allclose([rmv, root], 1e3 * np.array(reliability.rmse_rmv(errors, predictions.score, bins=BINS)))
    assert f"ENCE {reliability.ence(errors, predictions.score, bins=BINS):.2f} (20 bins)" in bars.get_label()
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    assert np.all((ends[:, 0] < root) & (root < ends[:, 1]))
    assert np.mean((ends[:, 0] < rmv) & (rmv < ends[:, 1])) > 0.7


@pytest.mark.parametrize(("structures", "raw"), [(5, 1.0), (1, 1e-6), (1, 1e6)])
def test_bins_and_intervals_lie_within_the_axes(structures, raw):
    axes = drawn(synthetic(structures=structures, raw=raw), "rmse_rmv")
    for bars in axes.containers:
        x, y = bars.lines[0].get_data()
        ends = np.array(bars.lines[2][0].get_segments())[..., 1]
        for values, (low, high) in ((x, axes.get_xlim()), (np.maximum(ends, y[:, None] / 4), axes.get_ylim())):
            assert low < values.min() and values.max() < high


def test_an_interval_that_leaves_its_value_out_is_drawn(monkeypatch):
    """As a quantile of few resampled structures can; matplotlib refuses a negative length."""
    whole = panels.binned

    def above(*arguments):
        rmv, root, _, _ = whole(*arguments)
        return rmv, root, 1.1 * root, 1.2 * root

    monkeypatch.setattr(panels, "binned", above)
    axes = Figure().add_subplot()
    panels.rmse_rmv(axes, sample(synthetic()))
    (_, _, (bars,)) = axes.containers[0].lines
    for low, high in np.array(bars.get_segments())[..., 1]:
        assert high > 1.1 * low > 0


def test_the_intervals_resample_structures_not_atoms():
    """Atoms of one structure that all err alike give wider intervals than independent ones."""
    independent = sample(synthetic(structures=40, atoms=10))
    size = np.repeat(np.exp(np.random.default_rng(1).standard_normal(40)), 10)
    errors, variance = independent.errors, np.ones(400)
    alike = dataclasses.replace(independent, errors=errors * size[:, None])
    mixed = dataclasses.replace(independent, errors=errors * np.random.default_rng(2).permutation(size)[:, None])
    width = {}
    for name, one in (("alike", alike), ("mixed", mixed)):
        _, _, low, high = panels.binned(one, variance, 1)
        width[name] = float(high[0] - low[0])
    assert width["alike"] > 1.5 * width["mixed"]
    counts = bootstrap.resampled_counts(40, panels.RESAMPLES, numpy_generator(0, "figures"))
    square = (mixed.errors**2).mean(1).reshape(40, 10).mean(1)
    roots = [np.sqrt(np.average(square, weights=drawn_counts)) for drawn_counts in counts]
    high, middle, low = np.quantile(roots, [0.975, 0.5, 0.025])
    # Shifted as logarithms, so that the median is the value itself.
    assert width["mixed"] == pytest.approx((high - low) * np.sqrt(square.mean()) / middle, rel=1e-6)


def test_the_confidence_curves_are_those_of_the_metric():
    predictions = synthetic()
    predictions = dataclasses.replace(predictions, score=predictions.score[::-1].copy())
    axes = drawn(predictions, "confidence")
    squared = ((predictions.forces - predictions.structures.forces) ** 2).sum(1)
    found = lines(axes)
    raw, score = predictions.force_variance, predictions.score
    area = confidence.ause(score, squared)
    (share, model), oracle = labelled(found, f"by score, AUSE {area:.3f}"), found["oracle"][1]
    assert np.trapezoid(model - oracle, share / 100) == pytest.approx(area)
    np.testing.assert_allclose(found["by raw variance"][1], confidence.confidence_curve(raw, squared))
    for name, variance in (("raw", raw), ("calibrated", score)):
        reference = confidence.confidence_curve(variance, variance)
        np.testing.assert_allclose(found[f"expected from {name} variance"][1], reference)
    assert "by raw variance" not in lines(drawn(synthetic(), "confidence"))


def test_the_bands_are_chi_quantiles_and_hold_what_they_say():
    predictions = synthetic(structures=400)
    axes = drawn(predictions, "error_uncertainty")
    bounds = [line.get_ydata()[0] / line.get_xdata()[0] for line in axes.get_lines()]
    np.testing.assert_allclose(bounds, stats.chi(3).ppf([0.25, 0.75, 0.05, 0.95]))
    z = np.sqrt(((predictions.forces - predictions.structures.forces) ** 2).sum(1) / predictions.score)
    for band, (low, high) in ((50, bounds[:2]), (90, bounds[2:])):
        inside = 100 * np.mean((z >= low) & (z <= high))
        assert f"{band} % band: holds {inside:.0f} %" in words(axes)
        assert inside == pytest.approx(band, abs=4)
    counted = sum(c.get_array().sum() for c in axes.collections if c.get_array() is not None)
    assert counted == len(predictions.score)
    energy = drawn(predictions, "error_uncertainty", "energy")
    bounds = [line.get_ydata()[0] / line.get_xdata()[0] for line in energy.get_lines()]
    np.testing.assert_allclose(bounds, stats.chi(1).ppf([0.25, 0.75, 0.05, 0.95]))


def test_errors_are_drawn_against_the_raw_sigma_where_the_calibrated_one_is_constant():
    predictions = synthetic()
    flat = LinearCalibration(a=0.0, b=0.25, floor=0.25)
    one = samples(predictions, calibration_of(flat), BINS)["forces"]
    axes = Figure().add_subplot()
    panels.error_uncertainty(axes, one)
    assert axes.get_xlabel() == "raw σ of a force component (eV/Å); calibrated σ is constant"


@pytest.mark.parametrize("raw", [1.0, 1e-4])
def test_the_z_scores_are_the_quantiles_of_the_metric(raw):
    predictions = synthetic(raw=raw)
    axes = drawn(predictions, "z_scores")
    expected, observed = lines(axes)["raw"]
    z = (predictions.forces - predictions.structures.forces) / np.sqrt(predictions.force_variance)[:, None]
    np.testing.assert_allclose(observed, np.quantile(z, stats.norm.cdf(expected)), rtol=1e-6)
    assert expected[-1] == pytest.approx(stats.norm.isf(0.5 / z.size))
    assert axes.get_yscale() == ("symlog" if raw < 1 else "linear")
    assert axes.get_ylim()[1] > observed.max()
    assert ("logarithmic" in words(axes)) == (raw < 1)


def test_a_constant_score_without_variances_is_said_plainly():
    predictions = constant(synthetic(structures=30))
    draw_everything(predictions)
    assert "same for every atom" in words(drawn(predictions, "error_uncertainty"))
    axes = drawn(predictions, "confidence")
    np.testing.assert_allclose(lines(axes)["score is constant"][1], 1.0)
    axes = drawn(predictions, "rmse_rmv")
    assert "calibrated" in words(axes) and "raw" not in words(axes) and "(1 bin)" in words(axes)


def test_variances_of_zero_are_left_out_and_counted():
    predictions = synthetic()
    variance = predictions.force_variance.copy()
    variance[:7] = 0.0
    predictions = dataclasses.replace(predictions, force_variance=variance)
    assert set(sample(predictions).variances) == {"calibrated"}
    for panel in ("reliability", "rmse_rmv", "confidence", "z_scores"):
        assert "raw: left out, 7 variances are zero" in words(drawn(predictions, panel))


@pytest.mark.parametrize(("structures", "atoms"), [(1, 1), (1, 3), (2, 1)])
def test_very_little_data_can_be_drawn(structures, atoms):
    draw_everything(synthetic(structures=structures, atoms=atoms, raw=1e-3))


@pytest.mark.parametrize("panel", panels.PANELS)
def test_predictions_without_error_are_drawn_or_say_so(panel):
    predictions = synthetic(structures=5)
    perfect = dataclasses.replace(predictions, forces=predictions.structures.forces)
    axes = drawn(perfect, panel)
    if panel in ("error_uncertainty", "confidence"):
        assert words(axes) == "There are no errors."
    else:
        axes.figure.draw_without_rendering()
