"""Uncertain frames of molecular dynamics: the baseline of an attack that needs no gradient of the uncertainty."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pandas as pd
import torch
from ase import units
from numpy.typing import NDArray

from uqbench.active.acquisition.base import Acquisition, Proposals, repeats, unlabelled
from uqbench.active.acquisition.objective import Uncertainty, structure_score
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError
from uqbench.md.driver import Dynamics
from uqbench.md.langevin import BAOAB, Noise, thermalise
from uqbench.md.limits import Limits
from uqbench.md.state import State
from uqbench.uq.base import Prediction, UQMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class MolecularDynamics(Acquisition):
    """Simulates from each training frame on the model and proposes the least certain frame of each trajectory.

    Langevin dynamics at constant temperature, see `simulate.md.BAOAB`. A trajectory ends when it explodes (see
    `simulate.explosion.Limits`); what was recorded before counts. One that explodes before its first record has no
    score. The networks compute in float64, so that a trajectory does not depend on which others are simulated beside
    it. History: proposal, step, score, energy (eV) and displacement (root mean square over the atoms, Å) of every
    record.

    Attributes:
        uncertainty: score of a structure: `mean` or `max` of the scores of its atoms, or the `energy` score.
        temperature: K.
        duration_ps: ps. timestep_fs: fs. friction_per_ps: 1/ps. record_every: steps.
        min_distance, bond_tolerance, bond_stretch, kinetic_alarm, kinetic_excess: see `Limits`.
        skin: of the neighbour lists, Å.
        batch_size: trajectories side by side.
    """

    uncertainty: Uncertainty
    temperature: float
    duration_ps: float
    timestep_fs: float
    friction_per_ps: float
    record_every: int
    min_distance: float
    bond_tolerance: float
    bond_stretch: float | None
    kinetic_alarm: float
    kinetic_excess: float
    skin: float
    batch_size: int

    def __post_init__(self) -> None:
        positive = ("temperature", "duration_ps", "timestep_fs", "friction_per_ps", "record_every", "skin")
        wrong = [
            f"acquisition.{name}: must be > 0, got {getattr(self, name)}"
            for name in (*positive, "batch_size")
            if not getattr(self, name) > 0
        ]
        if self.uncertainty not in ("mean", "max", "energy"):
            wrong.append(f"acquisition.uncertainty: expected mean, max or energy, got {self.uncertainty!r}")
        if not wrong and self.steps < self.record_every:
            wrong.append(
                f"acquisition.duration_ps: {self.duration_ps} ps are {self.steps} steps of {self.timestep_fs} fs, "
                f"fewer than record_every ({self.record_every})"
            )
        if wrong:
            raise ConfigError("\n".join(wrong))
        self._limits()

    @property
    def steps(self) -> int:
        """Steps of a whole trajectory."""
        return round(1e3 * self.duration_ps / self.timestep_fs)

    def _limits(self) -> Limits:
        distances = self.min_distance, None, self.bond_tolerance, self.bond_stretch
        return Limits(*distances, self.kinetic_alarm, self.kinetic_excess, section="acquisition")

    def from_frames(self, method: UQMethod, training: Structures, frames: NDArray[np.int64], *, seed: int) -> Proposals:
        """Simulate from these training frames (P,)."""
        frames = np.asarray(frames, np.int64)
        model = copy.deepcopy(method).double().eval()
        start = training[frames]
        streams = list(zip(frames.tolist(), repeats(frames).tolist(), strict=True))
        best = _LeastCertain(start, self.uncertainty, self.record_every)
        for first in range(0, len(frames), self.batch_size):
            chosen = np.arange(first, min(first + self.batch_size, len(frames)))
            self._simulate(model, start, chosen, [streams[k] for k in chosen], seed, best)
        return Proposals(
            structures=unlabelled(start, best.positions),
            frames=frames,
            score=best.score,
            energy=best.energy,
            stopped=best.stopped.astype(str),
            history=best.history(),
        )

    def _simulate(
        self,
        model: UQMethod,
        start: Structures,
        chosen: NDArray[np.int64],
        streams: list[tuple[int, int]],
        seed: int,
        best: _LeastCertain,
    ) -> None:
        device = model.potential.scale.device
        kT = np.full(len(chosen), units.kB * self.temperature)
        state = State.at_rest(start[chosen], kT, chosen, device)

        def noise(purpose: str) -> Noise:
            return Noise(seed, [("md acquisition", purpose, *stream) for stream in streams], state.n_atoms, device)

        thermalise(state, noise("velocities")())
        dynamics = Dynamics(
            state,
            predict=model.predict,
            dtype=torch.float64,
            cutoff=model.potential.backbone.cutoff,
            skin=self.skin,
            integrator=BAOAB(timestep=self.timestep_fs, friction=self.friction_per_ps),
            noise=noise("thermostat"),
            limits=self._limits(),
        )
        dynamics.run(self.steps, best)


class _LeastCertain:
    """Remembers the record with the highest score of each trajectory; the start is no candidate."""

    def __init__(self, start: Structures, uncertainty: Uncertainty, every: int) -> None:
        self._start, self._uncertainty, self._every = start, uncertainty, every
        self.positions = start.positions.copy()
        self.score, self.energy = np.full(len(start), np.nan), np.full(len(start), np.nan)
        self.stopped = np.full(len(start), "", dtype=object)
        self._records: list[pd.DataFrame] = []

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        if step == 0 or step % self._every:
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
