"""Barriers: the minimum energy path of a model beside that of an oracle, and how sure the model is along it."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Sequence
from typing import Annotated, Literal

import ase.io
import numpy as np
import pandas as pd
from annotated_types import Ge
from ase import Atoms
from pydantic import PositiveFloat, PositiveInt

from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.evaluations.band import Array, BandSettings, Path, find_path
from uqbench.evaluations.base import Evaluation, Rows
from uqbench.evaluations.reactions import frames_of
from uqbench.figures.canvas import render
from uqbench.figures.paths import Profile, drawing
from uqbench.inference.prediction_set import PredictionSet
from uqbench.inference.trained_model import TrainedModel
from uqbench.oracles.base import Label, Oracle
from uqbench.oracles.calculator import attach
from uqbench.runs.run_dir import RunDir

log = logging.getLogger(__name__)

POINTS = 101  # of the profiles that are compared, along the reaction coordinate


class NudgedElasticBand(Evaluation):
    """Climbing-image nudged elastic band on the model and on an oracle, with the same settings.

    The run keeps `neb.csv` (one row for each image), both paths as extxyz and the figure `neb.png`.

    Args:
        reaction: a built-in one, see `uqbench.evaluations.reactions`; path: a file with two frames or more takes its
            place, the first and the last near minima, any others on the way between them.
        images: of the band, ends included. interpolation: of the first band between two frames.
        spring: constant between images, eV/Å². optimizer: one of ASE's.
        climb_below: force on the band in eV/Å below which its highest image starts to climb; None for never.
        fmax: largest force on an atom of any image when converged, eV/Å, also of the ends. steps: at most; again for
            each end.
        oracle: what the model is compared with.
    """

    def __init__(
        self,
        *,
        reaction: str,
        path: str | None,
        images: Annotated[int, Ge(3)],
        interpolation: Literal["linear", "idpp"],
        spring: PositiveFloat,
        climb_below: PositiveFloat | None,
        optimizer: Literal["BFGS", "FIRE", "LBFGS", "MDMin"],
        fmax: PositiveFloat,
        steps: PositiveInt,
        oracle: Oracle,
    ) -> None:
        self.reaction, self.path, self.oracle = reaction, path, oracle
        self.settings = BandSettings(images, interpolation, spring, climb_below, optimizer, fmax, steps)

    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Find both paths, compare them, and return the rows of target `neb`; the frames of the split are not used.

        Raises DataError for ends that are no reaction or elements that the model has not seen.
        """
        name, frames = frames_of(self.path, self.reaction)
        model = TrainedModel(trained.method.to(trained.device), trained.calibration, str(trained.device))
        unknown = sorted(set(frames[0].get_chemical_symbols()) - set(model.elements))
        if unknown:
            raise DataError(
                f"{name}: the model has not been trained on {', '.join(unknown)}; it knows {', '.join(model.elements)}"
            )

        def attach_model(images: Sequence[Atoms]) -> None:
            for image in images:
                image.calc = model.calculator()

        ours = find_path(frames, attach_model, self.settings)
        with self.oracle:
            theirs = find_path(frames, functools.partial(attach, self.oracle), self.settings)
            on_ours = self._single_points(ours)
        for whose, path in (("model", ours), ("oracle", theirs)):
            for problem in path.problems:
                log.warning("%s, path of the %s: %s", name, whose, problem)
        estimate = model.predict(ours.images) if ours.known else None
        run.write_csv("neb.csv", _table(ours, theirs, on_ours, estimate))
        for whose, path in (("model", ours), ("oracle", theirs)):
            text = io.StringIO()
            ase.io.write(text, path.images, format="extxyz")
            run.write_text(f"neb_{whose}.extxyz", text.getvalue())
        figure = drawing(
            name.replace("_", " "),
            title,
            _profile(ours, None if estimate is None else estimate.energy_std),
            _profile(theirs, None),
            on_ours - on_ours[0],
        )
        for file, content in render({"neb.png": figure}).items():
            run.write_bytes(file, content)
        return _rows(name, ours, theirs, on_ours, estimate)

    def _single_points(self, path: Path) -> Array:
        """Energies of the oracle on the images of a path, (n,) eV, NaN where it fails."""
        if not path.known:
            return np.full(len(path.images), np.nan)
        outcomes = self.oracle.label(path.images).outcomes
        return np.array([outcome.energy if isinstance(outcome, Label) else np.nan for outcome in outcomes])


def _profile(path: Path, std: Array | None) -> Profile | None:
    if not path.known:
        return None
    energies, lengths = path.energies, path.lengths
    return Profile(
        coordinate=lengths / lengths[-1],
        energy=energies - energies[0],
        curve=path.profile(POINTS),
        std=std,
        barrier=path.barriers()[0],
        converged=not path.problems,
    )


def _table(ours: Path, theirs: Path, on_ours: Array, estimate: PredictionSet | None) -> pd.DataFrame:
    """One row for each image: of the model's path with its uncertainties and the oracle's energy, of the oracle's."""
    parts = []
    for whose, path in (("model", ours), ("oracle", theirs)):
        lengths = path.lengths
        columns = {"path": whose, "image": np.arange(len(lengths)), "length": lengths}
        columns |= {"coordinate": lengths / lengths[-1] if lengths[-1] > 0 else np.nan, "energy": path.energies}
        if path is ours:
            columns["energy_oracle"] = on_ours
        if path is ours and estimate is not None:
            per_atom = {"forces_std_max": estimate.forces_std, "score_max": estimate.score}
            columns |= {"energy_std": estimate.energy_std, "energy_score": estimate.energy_score}
            columns |= {key: np.maximum.reduceat(values, estimate.ptr[:-1]) for key, values in per_atom.items()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _rows(name: str, ours: Path, theirs: Path, on_ours: Array, estimate: PredictionSet | None) -> Rows:
    (barrier, back), (barrier_reference, back_reference) = ours.barriers(), theirs.barriers()
    difference = ours.profile(POINTS)[1] - theirs.profile(POINTS)[1]
    pointwise = (ours.energies - ours.energies[0]) - (on_ours - on_ours[0])
    values = {
        "barrier": (barrier, "eV"),
        "barrier_reference": (barrier_reference, "eV"),
        "barrier_error": (barrier - barrier_reference, "eV"),
        "reverse_barrier": (back, "eV"),
        "reverse_barrier_reference": (back_reference, "eV"),
        "reverse_barrier_error": (back - back_reference, "eV"),
        "path_rmse": (_rms(difference), "eV"),  # each on its own path, over the normalised reaction coordinate
        "single_point_rmse": (_rms(pointwise), "eV"),  # both on the model's path, relative to its first image
        "single_point_barrier": (float((on_ours - on_ours[0]).max()), "eV"),  # the oracle's, on the model's path
        "converged": (float(not ours.problems), "1"),
        "converged_reference": (float(not theirs.problems), "1"),
        "fmax": (ours.fmax, "eV/Å"),
        "fmax_reference": (theirs.fmax, "eV/Å"),
    }
    if estimate is not None:
        atoms = slice(*estimate.ptr[ours.saddle : ours.saddle + 2])
        values |= {
            "saddle_energy_std": (float(estimate.energy_std[ours.saddle]), "eV"),
            "saddle_forces_std": (float(estimate.forces_std[atoms].max()), "eV/Å"),  # of the least sure atom
            "saddle_score": (float(estimate.score[atoms].max()), "1"),
        }
    return [
        {"target": "neb", "population": name, "metric": metric, "value": value, "unit": unit}
        | {"n": len(ours.images), "ci_low": None, "ci_high": None}
        for metric, (value, unit) in values.items()
    ]


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
