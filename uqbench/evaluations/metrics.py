"""Every metric of a model's predictions on a split, and its calibration on the validation split."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from ase.data import chemical_symbols
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from uqbench.config.annotations import Different, Fraction
from uqbench.data.structures import Structures
from uqbench.evaluations.base import Evaluation, Rows, cost_rows
from uqbench.evaluations.samples import samples
from uqbench.figures.canvas import render
from uqbench.figures.panels import drawings
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import PredictionSet, predict
from uqbench.inference.trained_model import TrainedModel
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.metrics.populations import by_element, by_force_magnitude
from uqbench.metrics.summary import IDEAL, MetricSettings, Summary, energy_summary, force_summary
from uqbench.runs.provenance import peak_memory_mb
from uqbench.runs.run_dir import RunDir
from uqbench.seeding import numpy_generator
from uqbench.uq.base import UQMethod
from uqbench.uq.calibration import Calibrator


class Metrics(Evaluation):
    """Scores predictions against labels: every metric of forces per atom and of energies per structure.

    Args:
        quantiles: of the squared error, above which an atom counts as badly predicted (ROC-AUC).
        levels: of the central intervals, Gaussian and split-conformal.
        bins: of RMSE against root mean variance (ENCE).
        bootstrap: resamples of structures behind each confidence interval; 0 for none.
        ideal_items, ideal_draws: how much is simulated for the values of a perfect model, see `MetricSettings`.
        per_element: also score the forces of each element.
        force_ranges: also score the forces by the length of the reference force: edges in eV/Å, from 0; or None.
        batch_size: structures per prediction batch.
    """

    def __init__(
        self,
        *,
        quantiles: Different[Fraction],
        levels: Different[Fraction],
        bins: PositiveInt,
        bootstrap: NonNegativeInt,
        ideal_items: PositiveInt,
        ideal_draws: PositiveInt,
        per_element: bool,
        force_ranges: list[NonNegativeFloat] | None,
        batch_size: PositiveInt,
    ) -> None:
        given = {"bins": bins, "bootstrap": bootstrap, "ideal_items": ideal_items, "ideal_draws": ideal_draws}
        self.settings = MetricSettings(quantiles=tuple(quantiles), levels=tuple(levels), **given)
        self.per_element, self.force_ranges, self.batch_size = per_element, force_ranges, batch_size

    @staticmethod
    def contradictions(*, force_ranges: list[float] | None, **_: Any) -> Iterator[str]:
        """Yield what is wrong with arguments beyond the range of each number."""
        if force_ranges is not None and (force_ranges[:1] != [0] or sorted(set(force_ranges)) != force_ranges):
            yield f"force_ranges: expected ascending numbers that begin with 0, got {force_ranges}"

    def calibrate(
        self,
        run: RunDir,
        method: UQMethod,
        validation: Structures,
        device: str | torch.device,
        calibrator: Calibrator | None = None,
    ) -> Calibration:
        """Fit the calibration on the validation split, and keep it and its predictions in the run."""
        predictions = predict(method, validation, batch_size=self.batch_size, device=device)
        calibration = Calibration.fit(predictions, self.settings.levels, calibrator)
        calibrated = dataclasses.replace(predictions, calibration=calibration)
        run.write_bytes("predictions_validation.parquet", calibrated.encoded(".parquet"))
        calibration.save(run)
        return calibration

    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Predict a split, keep the predictions and their figures, and return metric and cost rows.

        The run also keeps the bootstrap values of every metric, by which runs are compared in pairs.
        """
        given = {"batch_size": self.batch_size, "device": trained.device, "calibration": trained.calibration}
        predictions = predict(trained.method, structures, **given)
        run.write_bytes(f"predictions_{split}.parquet", predictions.encoded(".parquet"))
        run.update(scored_sha256=structures.sha256())
        summaries = self.summaries(predictions, trained.calibration)
        run.write_parquet(RESAMPLES, resamples_frame(summaries))
        drawn = samples(predictions, trained.calibration, self.settings.bins)
        for name, content in render(drawings(drawn, title)).items():
            run.write_bytes(name, content)
        costs = cost_rows(
            inference_time=(1e3 * predictions.seconds / len(structures), "ms/structure"),
            peak_memory=(max(peak_memory_mb().values(), default=float("nan")), "MB"),
        )
        return [row for summary in summaries for row in summary.rows()] + costs

    def summaries(self, predictions: PredictionSet, calibration: Calibration) -> list[Summary]:
        """Return the metrics of every population that is not empty.

        All draw the same resamples of the structures, whatever the method and the population: so they can be paired.
        """
        s = predictions.structures.require_labels()
        forces = functools.partial(
            force_summary,
            s.forces,
            predictions.forces,
            predictions.score,
            predictions.force_variance,
            calibration.forces.variance(predictions.score),
            s.ptr,
            settings=self.settings,
            radii=calibration.forces.radii(predictions.score),
        )
        energy = energy_summary(
            s.energies,
            predictions.energy,
            predictions.energy_score,
            predictions.energy_variance,
            calibration.energy.variance(predictions.energy_score),
            s.n_atoms,
            settings=self.settings,
            radii=calibration.energy.radii(predictions.energy_score),
            generator=_resampling(),
        )
        masks = by_element(s.numbers, chemical_symbols) if self.per_element else {}
        if self.force_ranges is not None:
            masks |= by_force_magnitude(s.forces, self.force_ranges)
        strata = [forces(generator=_resampling(), population=name, mask=mask) for name, mask in masks.items()]
        return [one for one in (forces(generator=_resampling()), energy, *strata) if one is not None]


def resamples_frame(summaries: Sequence[Summary]) -> pd.DataFrame:
    """Return one row per target, population and metric, with the list of its bootstrap values."""
    rows = [
        {"target": one.target, "population": one.population, "metric": name, "values": values}
        for one in summaries
        for name, values in one.samples.items()
        if not name.endswith(IDEAL)
    ]
    return pd.DataFrame(rows, columns=["target", "population", "metric", "values"])


def _resampling() -> np.random.Generator:
    # Not the run's seed: runs of all seeds are compared on the same resamples.
    return numpy_generator(0, "bootstrap-intervals")
