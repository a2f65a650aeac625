"""What is kept of a simulation: a table of frames, the fate of each replica, and the last moments of those lost."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from typing import Any

import ase.io
import numpy as np
import pandas as pd
import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from uqbench.md.state import State
from uqbench.uq.base import Prediction

Variance = Callable[[np.ndarray], np.ndarray]


class Recorder:
    """Records every replica every few steps, and the explosions.

    Args:
        starts: one row per replica, by its id: temperature in K, replica (its number at that temperature), frame.
        timestep: fs.
        every: steps between records.
        keep: recorded frames kept of each replica, for the trajectories of those that explode.
        variance: calibrated variance of a force component by score, (eV/Å)².
        tick: called with the step just taken and the number of running replicas.
    """

    def __init__(
        self,
        starts: pd.DataFrame,
        *,
        timestep: float,
        every: int,
        keep: int,
        variance: Variance,
        tick: Callable[[int, int], None],
    ) -> None:
        self._starts, self._variance, self._tick = starts, variance, tick
        self._picosecond, self._every = 1e-3 * timestep, every
        self._rows: list[pd.DataFrame] = []
        self._recent: deque[tuple[dict[int, int], float, State, Prediction]] = deque(maxlen=keep)
        self._fates: dict[int, tuple[float, str]] = {}
        self._lost: dict[int, list[Atoms]] = {}

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        self._tick(step, len(state))
        if step % self._every:
            return
        time, ids = self._time(step), state.ids.cpu().numpy()
        score = prediction.score.double()
        most = torch.full_like(state.kT, -np.inf).scatter_reduce(0, state.system, score, "amax").cpu().numpy()
        counts = state.n_atoms.double()
        # NumPy's sums: the calibration is a function of arrays.
        atoms = self._variance(score.cpu().numpy())
        mean_variance = np.add.reduceat(atoms, state.start.cpu().numpy()) / counts.cpu().numpy()
        energy = prediction.energy.double()
        total = energy + state.kinetic_energy(state.velocities) - state.heat
        columns = {
            "time_ps": time,
            "energy": energy.cpu().numpy(),
            "conserved_energy": total.cpu().numpy(),
            "kinetic_temperature": (state.kinetic / (1.5 * units.kB * counts)).cpu().numpy(),
            "score_max": most,
            "score_mean": (state.sums(score) / counts).cpu().numpy(),
            "force_std_max": np.sqrt(self._variance(most)),
            "force_std_mean": np.sqrt(mean_variance),
        }
        self._rows.append(self._starts.loc[ids].reset_index(drop=True).assign(**columns))
        # The state is replaced, never written into, by the next step; only the object itself goes on.
        places = {int(number): place for place, number in enumerate(ids)}
        self._recent.append((places, time, state.select(torch.ones_like(state.ids, dtype=torch.bool)), prediction))

    def _time(self, step: int) -> float:
        return round(step * self._picosecond, 9)  # as one would write it

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        number, time = int(state.ids[0]), self._time(step)
        self._fates[number] = time, reason
        frames = [
            self._atoms(number, then, earlier, places[number], found, {"exploded": False})
            for places, then, earlier, found in self._recent
            if number in places
        ]
        if prediction is not None and bool(prediction.forces.isfinite().all()):
            frames.append(self._atoms(number, time, state, 0, prediction, {"exploded": True, "reason": reason}))
        self._lost[number] = frames

    def _atoms(
        self, number: int, time: float, state: State, place: int, prediction: Prediction, more: dict[str, Any]
    ) -> Atoms:
        atoms_of = slice(int(state.ptr[place]), int(state.ptr[place + 1]))
        start = self._starts.loc[number]
        atoms = Atoms(
            state.numbers[atoms_of].cpu().numpy(),
            state.positions[atoms_of].cpu().numpy(),
            cell=state.cells[place].cpu().numpy(),
            pbc=state.pbc[place].cpu().numpy(),
            info={
                "temperature_K": float(start.temperature),
                "replica": int(start.replica),
                "frame": int(start.frame),
                "time_ps": time,
                **more,
            },
        )
        score = prediction.score[atoms_of].double().cpu().numpy()
        atoms.arrays["score"] = score
        atoms.arrays["force_std"] = np.sqrt(self._variance(score))
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=float(prediction.energy[place]),
            forces=prediction.forces[atoms_of].double().cpu().numpy(),
        )
        return atoms

    def frames(self) -> pd.DataFrame:
        """All records, one row per recorded frame and replica; eV, K, eV/Å, ps; by replica, then time."""
        return pd.concat(self._rows).sort_values(["temperature", "replica", "time_ps"], ignore_index=True)

    def fates(self, duration: float) -> pd.DataFrame:
        """One row per replica: its start, how long it was sound in ps (at most `duration`), and why no longer."""
        ends = [self._fates.get(number, (duration, "")) for number in self._starts.index]
        times, reasons = zip(*ends, strict=True)
        return self._starts.assign(
            time_ps=times, exploded=[reason != "" for reason in reasons], reason=reasons
        ).reset_index(drop=True)

    def trajectories(self) -> bytes | None:
        """The last frames of all exploded replicas as extended XYZ, replica after replica; None if there are none."""
        frames = [atoms for number in sorted(self._lost) for atoms in self._lost[number]]
        if not frames:
            return None
        buffer = io.StringIO()
        ase.io.write(buffer, frames, format="extxyz")
        return buffer.getvalue().encode()
