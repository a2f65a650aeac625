"""Training structures with random displacements: the baseline of an attack."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from uqbench.active.acquisition.base import Acquisition, Proposals
from uqbench.active.acquisition.displacement import random_displacements
from uqbench.active.acquisition.objective import Uncertainty, score_and_energy
from uqbench.data.structures import Structures
from uqbench.uq.base import UQMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomDisplacement(Acquisition):
    """Displaces training structures isotropically by a given length, see `random_displacements`.

    History: proposal, step (always 0), score, energy (eV) and displacement (root mean square over the atoms, Å).

    Attributes:
        displacement: root mean square over the atoms, Å.
        uncertainty: score of a structure: `mean` or `max` of the scores of its atoms, or the `energy` score.
        batch_size: structures scored at a time.
    """

    displacement: PositiveFloat
    uncertainty: Uncertainty
    batch_size: PositiveInt

    def from_frames(self, method: UQMethod, training: Structures, frames: NDArray[np.int64], *, seed: int) -> Proposals:
        """Displace these training frames (P,)."""
        structures, _ = random_displacements(training, frames, self.displacement, seed)
        score, energy = score_and_energy(method, structures, self.uncertainty, self.batch_size)
        history = {"step": 0, "score": score, "energy": energy, "displacement": self.displacement}
        return Proposals(
            structures=structures,
            frames=np.asarray(frames, np.int64),
            score=score,
            energy=energy,
            stopped=np.where(np.isfinite(score), "", "not finite"),
            history=pd.DataFrame({"proposal": np.arange(len(structures)), **history}),
        )
