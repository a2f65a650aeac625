"""What a method predicts for labelled structures: energies, forces and their uncertainties, as arrays and tables."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import TrainingError
from uqbench.uq.base import UQMethod

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a method predicted for a set of structures, beside the labels; numpy, eV and eV/Å.

    Attributes:
        structures: the labelled frames.
        energy: (S,). forces: (N, 3).
        energy_variance: (S,) or None. force_variance: (N,) per component, or None.
        score: (N,). energy_score: (S,).
        seconds: wall time of the predictions, neighbour lists excluded.
    """

    structures: Structures
    energy: Array
    forces: Array
    energy_variance: Array | None
    force_variance: Array | None
    score: Array
    energy_score: Array
    seconds: float

    def frame(self) -> pd.DataFrame:
        """Return one row per structure; per-atom values are lists, vectors flattened as x1 y1 z1 x2 ..."""
        s = self.structures
        cuts = s.ptr[1:-1]
        columns: dict[str, Any] = {
            "id": s.ids,
            "n_atoms": s.n_atoms,
            "numbers": np.split(s.numbers, cuts),
            "energy_reference": s.energies,
            "energy": self.energy,
            "energy_variance": self.energy_variance,
            "energy_score": self.energy_score,
            "forces_reference": np.split(s.forces.ravel(), 3 * cuts),
            "forces": np.split(self.forces.ravel(), 3 * cuts),
            "force_variance": None if self.force_variance is None else np.split(self.force_variance, cuts),
            "score": np.split(self.score, cuts),
        }
        return pd.DataFrame({name: list(values) for name, values in columns.items() if values is not None})


def predict(method: UQMethod, structures: Structures, *, batch_size: int, device: str | torch.device) -> Predictions:
    """Predict all structures in batches; raises TrainingError when a prediction is not finite."""
    method = method.to(device).eval()
    graphs = GraphSet(structures, method.potential.backbone.cutoff, dtype=method.potential.scale.dtype, device=device)
    batches = graphs.batches(batch_size)
    with torch.no_grad():
        method.predict(batches[0])  # warms up caches and kernels, so that the time below is that of the work
        _synchronise(device)
        start = time.perf_counter()
        parts = [method.predict(batch) for batch in batches]
        _synchronise(device)
        seconds = time.perf_counter() - start

    def join(name: str) -> Array | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        array = torch.cat(values).double().cpu().numpy()
        if not np.isfinite(array).all():
            raise TrainingError(f"the model predicts non-finite values ({name}) on {structures.origin}")
        return array

    names = ("energy", "forces", "energy_variance", "force_variance", "score", "energy_score")
    return Predictions(structures, **{name: join(name) for name in names}, seconds=seconds)


def _synchronise(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return tensor.detach().double().cpu().numpy()
