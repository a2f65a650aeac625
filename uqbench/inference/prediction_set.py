"""What a model predicts for a set of structures: energies, forces and their uncertainties, as arrays and files."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures, Systems
from uqbench.errors import DataError, OutOfMemory, TrainingError
from uqbench.inference import formats
from uqbench.inference.calibration import Calibration
from uqbench.runs import memory
from uqbench.training.memory import prediction_batch
from uqbench.uq.base import Prediction, UQMethod

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

VALUES = ("energy", "forces", "energy_variance", "force_variance", "score", "energy_score")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PredictionSet:
    """Energies and forces of S frames with N atoms in all, and how sure the model is of them; numpy, float64.

    Variances are the method's own; standard deviations and radii are what the validation frames make of the scores,
    where there is a calibration.

    Attributes:
        structures: the frames, with labels or without; of `Systems` only, without geometry, where they were read from
            a file that has none.
        energy: (S,) eV.
        forces: (N, 3) eV/Å.
        energy_variance: (S,) eV², or None where the method has none.
        force_variance: (N,) (eV/Å)², per Cartesian component, or None where the method has none.
        energy_score, score: (S,) and (N,), what the method ranks frames and atoms by: bigger = less sure, any unit.
        seconds: wall time of the predictions, neighbour lists excluded; None where it was not taken. Files do not keep
            it: they are a function of the predictions alone.
        calibration: fitted on validation frames, or None.
    """

    structures: Systems
    energy: Array
    forces: Array
    energy_variance: Array | None
    force_variance: Array | None
    score: Array
    energy_score: Array
    seconds: float | None = None
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        parts: Sequence[Prediction],
        structures: Systems,
        *,
        seconds: float | None = None,
        calibration: Calibration | None = None,
    ) -> PredictionSet:
        """Join the predictions of consecutive batches; raises TrainingError when one is not finite."""
        joined: dict[str, Array | None] = {}
        for name in VALUES:
            values = [getattr(part, name) for part in parts]
            if values[0] is None:
                joined[name] = None
                continue
            joined[name] = array = to_numpy(torch.cat(values))
            if not np.isfinite(array).all():
                raise TrainingError(
                    f"the model predicts non-finite values ({name}) on {structures.origin}; it has diverged, or they "
                    "are far from its data"
                )
        return cls(structures=structures, **joined, seconds=seconds, calibration=calibration)

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def ptr(self) -> NDArray[np.int64]:
        """Frame s owns the atoms ptr[s]:ptr[s + 1], (S + 1,)."""
        return self.structures.ptr

    @property
    def calibrated(self) -> bool:
        """Whether the standard deviations are calibrated."""
        return self.calibration is not None

    @property
    def energy_std(self) -> Array | None:
        """Standard deviation of the energy of each frame, (S,) eV: sqrt(a U + b) of the score U, or the method's own.

        The numbers a and b are fitted to validation frames. None where there is neither calibration nor variance.
        """
        if self.calibration is None:
            return None if self.energy_variance is None else np.sqrt(self.energy_variance)
        return np.sqrt(self.calibration.energy.variance(self.energy_score))

    @property
    def forces_std(self) -> Array | None:
        """Standard deviation of each Cartesian component of the force on an atom, (N,) eV/Å; as `energy_std`.

        The root mean square length of the force error is sqrt(3) times that.
        """
        if self.calibration is None:
            return None if self.force_variance is None else np.sqrt(self.force_variance)
        return np.sqrt(self.calibration.forces.variance(self.score))

    @property
    def energy_radii(self) -> dict[float, Array]:
        """By level, (S,) eV: split-conformal radii that hold the error of the energy with at least that probability.

        Empty without a calibration.
        """
        return {} if self.calibration is None else self.calibration.energy.radii(self.energy_score)

    @property
    def forces_radii(self) -> dict[float, Array]:
        """By level, (N,) eV/Å: the same for the length of the error of a force."""
        return {} if self.calibration is None else self.calibration.forces.radii(self.score)

    def frame(self) -> pd.DataFrame:
        """Return one row per structure; per-atom values are lists, vectors flattened as x1 y1 z1 x2 ..."""
        return formats.table(self._columns())

    def write(self, path: str | os.PathLike) -> None:
        """Write a file that `read` reads, by suffix .parquet, .extxyz or .csv; what is in them says `formats`.

        Raises DataError for another suffix, for a file that cannot be written, and for extended XYZ without geometry.

        Example:
            >>> from uqbench.inference.prediction_set import PredictionSet
            >>> run = "outputs/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305"
            >>> predictions = PredictionSet.read(f"{run}/predictions_test.parquet")
            >>> predictions.write("test.csv")
            >>> bool((PredictionSet.read("test.csv").forces == predictions.forces).all())
            True
        """
        formats.write(Path(path), self._columns(derived=True), self._calibration())

    def encoded(self, suffix: str) -> bytes:
        """Return what `write` would write, so that it can be put elsewhere."""
        return formats.encoded(suffix, self._columns(derived=True), self._calibration(), f"predictions{suffix}")

    @classmethod
    def read(cls, path: str | os.PathLike) -> PredictionSet:
        """Read predictions by suffix .parquet, .extxyz or .csv: what `write` wrote, or others in one of these forms.

        Needed are elements, energies and forces, and scores or, for want of them, variances, which then rank too.
        Raises DataError, in one line, for a file that is missing, truncated, damaged, or that lacks a column.

        Example:
            >>> from pathlib import Path
            >>> from uqbench.inference.prediction_set import PredictionSet
            >>> _ = Path("mine.csv").write_text(
            ...     "frame,n_atoms,atom,element,energy,energy_std,forces_x,forces_y,forces_z,force_std\\n"
            ...     "0,2,0,H,-31.7,0.5,0.0,0.0,0.1,0.2\\n"
            ...     "0,2,1,H,-31.7,0.5,0.0,0.0,-0.1,0.3\\n"
            ... )
            >>> predictions = PredictionSet.read("mine.csv")
            >>> predictions.forces_std.round(6).tolist(), predictions.calibrated
            ([0.2, 0.3], False)
        """
        path = Path(path)
        columns, calibration = formats.read(path)
        if calibration is not None:
            try:
                calibration = Calibration.from_dict(calibration)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise DataError(f"{path}: the calibration is damaged or of another version of uqbench") from None
        else:
            for name, std in (("energy_variance", "energy_std"), ("force_variance", "force_std")):
                if name not in columns and std in columns:
                    columns[name] = columns[std] ** 2
        for name, variance in (("energy_score", "energy_variance"), ("score", "force_variance")):
            if name not in columns and variance in columns:
                columns[name] = columns[variance]
        missing = [name for name in ("energy", "forces", "energy_score", "score") if name not in columns]
        if missing:
            raise DataError(f"{path} has no {', '.join(missing)} (there are {', '.join(columns)})")
        values = {name: columns.get(name) for name in VALUES}
        for name, array in values.items():
            if array is not None and not np.isfinite(array).all():
                raise DataError(f"{path}: {name} holds values that are not finite, or cells that are empty")
            if name.endswith("variance") and array is not None and array.min() < 0:
                raise DataError(f"{path}: {name} holds negative values")
        return cls(structures=_systems(columns, str(path)), **values, calibration=calibration)

    def _columns(self, *, derived: bool = False) -> formats.Columns:
        """Return flat arrays as files hold them; with those that follow from others, if `derived`."""
        s = self.structures
        columns: dict[str, NDArray | None] = {name: getattr(self, name) for name in VALUES}
        columns |= {"id": s.ids, "n_atoms": s.n_atoms, "numbers": s.numbers}
        columns["energy_reference"] = s.energies if s.has_energies.any() else None
        columns["forces_reference"] = s.forces if s.has_forces.any() else None
        if isinstance(s, Structures):
            columns |= {"positions": s.positions, "cell": s.cells.reshape(-1, 9), "pbc": s.pbc}
        if derived:
            columns |= {"energy_std": self.energy_std, "force_std": self.forces_std}
        return {name: array for name, array in columns.items() if array is not None}

    def _calibration(self) -> Mapping[str, Any] | None:
        return None if self.calibration is None else self.calibration.to_dict()


def _systems(columns: formats.Columns, origin: str) -> Systems:
    """Return the frames of a file, without geometry where there is none; raises DataError for impossible ones."""
    n_atoms = columns["n_atoms"]
    common = {"numbers": columns["numbers"], "ptr": np.concatenate([[0], np.cumsum(n_atoms)]), "origin": origin}
    common["ids"] = columns.get("id", np.arange(len(n_atoms)))
    for name, column in (("energies", "energy_reference"), ("forces", "forces_reference")):
        labels = columns.get(column)
        common[name] = None if labels is None or np.isnan(labels).all() else labels
    if "positions" not in columns:
        return Systems(**common).check(partial=True)
    cells = columns["cell"].reshape(-1, 3, 3) if "cell" in columns else None
    geometry = {"positions": columns["positions"], "cells": cells, "pbc": columns.get("pbc")}
    return Structures.from_arrays(**common, **geometry, partial=True)


def predict(
    method: UQMethod,
    structures: Structures,
    *,
    batch_size: int,
    device: str | torch.device,
    calibration: Calibration | None = None,
    timed: bool = True,
) -> PredictionSet:
    """Predict all structures in batches; raises TrainingError when a prediction is not finite.

    Batches are smaller than asked for where these are predicted not to fit into memory, or did not; it is logged, and
    the predictions are the same to rounding. Raises OutOfMemory where there is none for a single frame. `timed` takes
    the time of it, for which the first batch is computed twice.
    """
    method = method.to(device).eval()
    graphs = GraphSet(structures, method.potential.backbone.cutoff, dtype=method.potential.scale.dtype, device=device)
    size = prediction_batch(method, graphs, structures, batch_size, device)
    if size < batch_size:
        log.warning("memory is scarce: predicting %d frames a time", size)
    while True:
        try:
            parts, seconds = _predict(method, graphs, size, device, timed)
            break
        except (RuntimeError, MemoryError) as error:
            if not memory.exhausted(error):
                raise
            # What was computed hangs on the error: it is to make room.
            traceback.clear_frames(error.__traceback__)
            if min(size, len(graphs)) == 1:
                raise OutOfMemory(
                    f"{structures.origin}: predicting ran out of memory with one frame a time; free some and repeat "
                    "the command, or take a smaller model or smaller frames"
                ) from error
        size = min(size, len(graphs)) // 2
        log.warning("predicting ran out of memory; going on with %d frames a time", size)
    return PredictionSet.of(parts, structures, seconds=seconds, calibration=calibration)


def _predict(
    method: UQMethod, graphs: GraphSet, batch_size: int, device: str | torch.device, timed: bool
) -> tuple[list[Prediction], float | None]:
    """Return the predictions of all batches, and the seconds that they took if they are timed."""
    batches, seconds = graphs.batches(batch_size), None
    with torch.no_grad():
        if timed:
            method.predict(batches[0])  # warms up caches and kernels, so that the time below is that of the work
            _synchronise(device)
        start = time.perf_counter()
        parts = [method.predict(batch) for batch in batches]
        if timed:
            _synchronise(device)
            seconds = time.perf_counter() - start
    return parts, seconds


def _synchronise(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return tensor.detach().double().cpu().numpy()
