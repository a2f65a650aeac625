"""Uncertain frames of molecular dynamics: the baseline of an attack that needs no gradient of the uncertainty."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import PositiveFloat

from uqbench.active.acquisition.base import Acquisition, Proposals, repeats, unlabelled
from uqbench.active.acquisition.objective import Uncertainty, structure_score
from uqbench.data.structures import Structures
from uqbench.md.driver import ForceField, simulate
from uqbench.md.protocol import Protocol
from uqbench.md.state import State
from uqbench.uq.base import Prediction, UQMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class MolecularDynamics(Acquisition):
    """Simulates from each training frame on the model and proposes the least certain frame of each trajectory.

    Langevin dynamics at constant temperature, see `md.langevin.BAOAB`. A trajectory ends when it explodes (see
    `md.limits.Limits`); what was recorded before counts. One that explodes before its first record has no score. The
    networks compute in float64, so that a trajectory does not depend on which others are simulated beside it.
    History: proposal, step, score, energy (eV) and displacement (root mean square over the atoms, Å) of every record.

    Attributes:
        uncertainty: score of a structure: `mean` or `max` of the scores of its atoms, or the `energy` score.
        temperature: K.
        protocol: of the simulations; its records after equilibration may be proposed.
    """

    uncertainty: Uncertainty
    temperature: PositiveFloat
    protocol: Protocol

    def from_frames(self, method: UQMethod, training: Structures, frames: NDArray[np.int64], *, seed: int) -> Proposals:
        """Simulate from these training frames (P,)."""
        frames = np.asarray(frames, np.int64)
        start = training[frames]
        least_certain = _LeastCertain(start, self.uncertainty, self.protocol)
        simulate(
            start,
            np.full(len(frames), self.temperature),
            list(zip(frames.tolist(), repeats(frames).tolist(), strict=True)),
            force_field=ForceField.of(copy.deepcopy(method).double().eval()),
            protocol=self.protocol,
            seed=seed,
            observer=least_certain,
            purposes=(("md acquisition", "velocities"), ("md acquisition", "thermostat")),
        )
        return Proposals(
            structures=unlabelled(start, least_certain.positions),
            frames=frames,
            score=least_certain.score,
            energy=least_certain.energy,
            stopped=least_certain.stopped.astype(str),
            history=least_certain.history(),
        )


class _LeastCertain:
    """Keeps the record with the highest score of each trajectory; the start is no candidate."""

    def __init__(self, start: Structures, uncertainty: Uncertainty, protocol: Protocol) -> None:
        self._start, self._uncertainty, self._protocol = start, uncertainty, protocol
        self.positions = start.positions.copy()
        self.score, self.energy = np.full(len(start), np.nan), np.full(len(start), np.nan)
        self.stopped = np.full(len(start), "", dtype=object)
        self._records: list[pd.DataFrame] = []

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        if not self._protocol.analyses(step):
            return
        ids, positions = state.ids.cpu().numpy(), state.positions.cpu().numpy()
        score = structure_score(prediction, state, self._uncertainty).cpu().numpy()
        energy = prediction.energy.double().cpu().numpy()
        rows = self._start.atoms_of(ids)
        square = np.add.reduceat(
            ((positions - self._start.positions[rows]) ** 2).sum(axis=1), state.start.cpu().numpy()
        )
        columns = {"step": step, "score": score, "energy": energy}
        columns["displacement"] = np.sqrt(square / state.n_atoms.cpu().numpy())
        self._records.append(pd.DataFrame({"proposal": ids, **columns}))
        # A NaN, where nothing was recorded yet, is smaller than everything; a new NaN is larger than nothing.
        better = score > np.nan_to_num(self.score[ids], nan=-np.inf)
        self.score[ids[better]], self.energy[ids[better]] = score[better], energy[better]
        atoms = np.repeat(better, state.n_atoms.cpu().numpy())
        self.positions[rows[atoms]] = positions[atoms]

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        self.stopped[int(state.ids[0])] = f"{reason} at step {step}"

    def history(self) -> pd.DataFrame:
        """All records by proposal and step."""
        if not self._records:
            return pd.DataFrame(columns=["proposal", "step"])
        return pd.concat(self._records).sort_values(["proposal", "step"], ignore_index=True)
