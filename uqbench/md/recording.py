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

from uqbench.md.protocol import Protocol
from uqbench.md.state import State
from uqbench.uq.base import Prediction

Variance = Callable[[np.ndarray], np.ndarray]


class Recorder:
    """Records every replica every few steps, and the explosions.

    Args:
        starts: one row per replica, by its id: temperature in K, replica (its number at that temperature), frame.
        keep: recorded frames kept of each replica, for the trajectories of those that explode.
        variance: calibrated variance of a force component by score, (eV/Å)².
        tick: called with the step just taken and the number of running replicas.
    """

    def __init__(
        self,
        starts: pd.DataFrame,
        protocol: Protocol,
        *,
        keep: int,
        variance: Variance,
        tick: Callable[[int, int], None] = lambda step, running: None,
    ) -> None:
        self._starts, self._protocol, self._variance, self._tick = starts, protocol, variance, tick
        self._batches: list[list[pd.DataFrame]] = []  # records of the replicas that ran at once
        self._recent: deque[tuple[float, State, Prediction]] = deque(maxlen=keep)
        self._explosions: dict[int, tuple[float, str]] = {}
        self._lost: dict[int, list[Atoms]] = {}

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        self._tick(step, len(state))
        if step == 0:
            self._batches.append([])
        if not self._protocol.records(step):
            return
        score = prediction.score.double()
        highest = torch.full_like(state.kT, -np.inf).scatter_reduce(0, state.system, score, "amax").cpu().numpy()
        counts = state.n_atoms.double()
        # NumPy's sums: the calibration is a function of arrays.
        atoms = self._variance(score.cpu().numpy())
        mean_variance = np.add.reduceat(atoms, state.start.cpu().numpy()) / counts.cpu().numpy()
        energy = prediction.energy.double()
        total = energy + state.kinetic_energy(state.velocities) - state.heat
        columns = {
            "time_ps": self._time(step),
            "energy": energy.cpu().numpy(),
            "conserved_energy": total.cpu().numpy(),
            "kinetic_temperature": (state.kinetic / (1.5 * units.kB * counts)).cpu().numpy(),
            "score_max": highest,
            "score_mean": (state.sums(score) / counts).cpu().numpy(),
            "force_std_max": np.sqrt(self._variance(highest)),
            "force_std_mean": np.sqrt(mean_variance),
        }
        starts = self._starts.loc[state.ids.cpu().numpy()].reset_index(drop=True)
        self._batches[-1].append(starts.assign(**columns))
        # The state is replaced, never written into, by the next step; only the object itself goes on.
        self._recent.append((self._time(step), state.select(torch.ones_like(state.ids, dtype=torch.bool)), prediction))

    def _time(self, step: int) -> float:
        return round(step * 1e-3 * self._protocol.timestep_fs, 9)  # as one would write it

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        replica, time = int(state.ids[0]), self._time(step)
        self._explosions[replica] = time, reason
        frames = [
            self._atoms(int(row), earlier, then, recorded, {"exploded": False})
            for then, earlier, recorded in self._recent
            for row in (earlier.ids == replica).nonzero().flatten()
        ]
        if prediction is not None and bool(prediction.forces.isfinite().all()):
            frames.append(self._atoms(0, state, time, prediction, {"exploded": True, "reason": reason}))
        self._lost[replica] = frames

    def _atoms(self, row: int, state: State, time: float, prediction: Prediction, info: dict[str, Any]) -> Atoms:
        """One replica of a state, with what was predicted of it."""
        chosen = slice(int(state.ptr[row]), int(state.ptr[row + 1]))
        start = self._starts.loc[int(state.ids[row])]
        atoms = Atoms(
            state.numbers[chosen].cpu().numpy(),
            state.positions[chosen].cpu().numpy(),
            cell=state.cells[row].cpu().numpy(),
            pbc=state.pbc[row].cpu().numpy(),
            info={
                "temperature_K": float(start.temperature),
                "replica": int(start.replica),
                "frame": int(start.frame),
                "time_ps": time,
                **info,
            },
        )
        score = prediction.score[chosen].double().cpu().numpy()
        atoms.arrays["score"] = score
        atoms.arrays["force_std"] = np.sqrt(self._variance(score))
        forces = prediction.forces[chosen].double().cpu().numpy()
        atoms.calc = SinglePointCalculator(atoms, energy=float(prediction.energy[row]), forces=forces)
        return atoms

    def frames(self) -> pd.DataFrame:
        """All records, one row per frame and replica; eV, K, eV/Å, ps; of each batch by temperature, replica, time."""
        order = ["temperature", "replica", "time_ps"]
        return pd.concat([pd.concat(records).sort_values(order) for records in self._batches], ignore_index=True)

    def fates(self) -> pd.DataFrame:
        """One row per replica: its start, how long it was sound in ps, and why no longer."""
        ends = [self._explosions.get(replica, (self._protocol.duration, "")) for replica in self._starts.index]
        times, reasons = zip(*ends, strict=True)
        return self._starts.assign(
            time_ps=times, exploded=[reason != "" for reason in reasons], reason=reasons
        ).reset_index(drop=True)

    def trajectories(self) -> bytes | None:
        """The last frames of all exploded replicas as extended XYZ, replica after replica; None if there are none."""
        frames = [atoms for replica in sorted(self._lost) for atoms in self._lost[replica]]
        if not frames:
            return None
        buffer = io.StringIO()
        ase.io.write(buffer, frames, format="extxyz")
        return buffer.getvalue().encode()
