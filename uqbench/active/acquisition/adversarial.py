"""Adversarial attack: displace training structures to where the method is unsure and the energy still affordable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from uqbench.active.acquisition.base import Acquisition, Proposals, repeats, unlabelled
from uqbench.active.acquisition.objective import Objective, ScoreScale, Uncertainty, graphs_for
from uqbench.active.physical import closest_contacts
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError
from uqbench.seeding import numpy_generator
from uqbench.uq.base import UQMethod

OVERLAP, NOT_FINITE = "overlap", "not finite"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialAttack(Acquisition):
    """Maximises U(x0 + δ) · p(x0 + δ) over the displacement δ of each structure by itself, with Adam.

    Worked in logarithms (see `objective`), with fresh positions x0 + δ and a fresh neighbour list at every step. U and
    p do not change when a structure moves or turns as a whole, but Adam's step does not conserve its centre: nothing
    is subtracted, and the history tells the drift. A structure that comes to an overlap or a non-finite value stops
    there and keeps its last good displacement. History: proposal, step, score, energy (eV), log_probability,
    objective, displacement (root mean square over the atoms, Å) and drift (length of the mean displacement, Å).
    Source: Schwalbe-Koda, Tan, Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021).

    Attributes:
        uncertainty: U of a structure: `mean` or `max` of the scores of its atoms, or the `energy` score.
        score_scale: how U enters (see `objective.log_score`); `declared` is what the method says of its scores.
        kT: kcal/mol per atom.
        steps: of Adam.
        lr: Adam's learning rate, Å.
        initial_std: of the Gaussian that δ starts from, per component, Å.
        max_displacement: longest displacement of any atom, Å; longer ones are cut back to it, keeping their direction.
        min_distance: a structure stops where two atoms come closer than this times the sum of their covalent radii.
        batch_size: structures that climb side by side; changes nothing but the memory needed.
    """

    uncertainty: Uncertainty
    score_scale: ScoreScale
    kT: PositiveFloat
    steps: PositiveInt
    lr: PositiveFloat
    initial_std: PositiveFloat
    max_displacement: PositiveFloat
    min_distance: PositiveFloat
    batch_size: PositiveInt

    def check(self, method: type[UQMethod]) -> None:
        """Raise ConfigError where the score is the same everywhere."""
        if not method.informed:
            raise ConfigError(
                f"uq: {method.__name__} is equally sure of every structure, so there is nothing to attack; choose "
                "another method or acquisition=random"
            )

    def from_frames(self, method: UQMethod, training: Structures, frames: NDArray[np.int64], *, seed: int) -> Proposals:
        """Attack these training frames (P,); raises ConfigError where the method's score is the same everywhere."""
        self.check(type(method))
        frames = np.asarray(frames, np.int64)
        objective = Objective.fit(
            method,
            training,
            kT=self.kT,
            uncertainty=self.uncertainty,
            score_scale=self.score_scale,
            batch_size=self.batch_size,
        )
        streams = list(zip(frames.tolist(), repeats(frames).tolist(), strict=True))
        parts = []
        for start in range(0, len(frames), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            climb = _Climb(self, method, objective, training[frames[chosen]], streams[chosen], seed)
            parts.append(climb.run(first=start))
        return Proposals(
            structures=unlabelled(training[frames], np.concatenate([part.positions for part in parts])),
            frames=frames,
            score=np.concatenate([part.score for part in parts]),
            energy=np.concatenate([part.energy for part in parts]),
            stopped=np.concatenate([part.stopped for part in parts]),
            history=pd.concat([part.history for part in parts], ignore_index=True),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Summit:
    """Where the structures of one batch ended: positions (N, 3), the others as in `Proposals`."""

    positions: NDArray[np.float64]
    score: NDArray[np.float64]
    energy: NDArray[np.float64]
    stopped: NDArray[np.str_]
    history: pd.DataFrame


class _Climb:
    """The attack on the structures of one batch."""

    def __init__(
        self,
        settings: AdversarialAttack,
        method: UQMethod,
        objective: Objective,
        start: Structures,
        streams: list[tuple[int, int]],
        seed: int,
    ) -> None:
        self.settings, self.method, self.objective, self.start = settings, method, objective, start
        self.log_partition = objective.boltzmann.log_partition_of(start)
        # One stream per structure: its noise does not depend on who else is attacked.
        noise = [
            numpy_generator(seed, "attack", "displacement", frame, repeat).normal(0, settings.initial_std, (n, 3))
            for (frame, repeat), n in zip(streams, start.n_atoms, strict=True)
        ]
        self.initial = np.concatenate(noise)
        self.owner = np.repeat(np.arange(len(start)), start.n_atoms)

    def run(self, first: int) -> _Summit:
        """Climb; `first` is the number of the batch's first proposal."""
        n, settings = len(self.start), self.settings
        delta = torch.tensor(self.initial, requires_grad=True)  # float64: a sum of many small steps
        optimiser = torch.optim.Adam([delta], lr=settings.lr)
        self._clamp(delta)
        good = np.zeros_like(self.initial)
        score, energy = np.full(n, np.nan), np.full(n, np.nan)
        stopped = np.full(n, "", dtype=object)
        history = []
        for step in range(settings.steps + 1):
            moved = unlabelled(self.start, self.start.positions + delta.detach().numpy())
            overlapping = closest_contacts(moved, settings.min_distance) < settings.min_distance
            stopped[overlapping & (stopped == "")] = OVERLAP
            climbing = np.flatnonzero(stopped == "")
            if len(climbing) == 0:
                break
            values, gradient = self._evaluate(moved, climbing)
            finite = np.isfinite(gradient).all(axis=1)
            fine = np.isfinite(values).all(axis=1) & self._all_atoms(finite, climbing)
            stopped[climbing[~fine]] = NOT_FINITE
            rows = climbing[fine]
            score[rows], energy[rows] = values[fine, 0], values[fine, 1]
            atoms = np.isin(self.owner, rows)
            good[atoms] = delta.detach().numpy()[atoms]
            history.append(self._record(first, step, rows, values[fine], good))
            if step < settings.steps:
                uphill = np.zeros_like(self.initial)
                uphill[self.start.atoms_of(climbing)] = gradient
                uphill[~atoms] = 0  # who has stopped does not climb
                delta.grad = torch.from_numpy(-uphill)
                optimiser.step()
                self._clamp(delta)
        table = pd.concat(history, ignore_index=True) if history else pd.DataFrame(columns=["proposal", "step"])
        return _Summit(self.start.positions + good, score, energy, stopped.astype(str), table)

    def _evaluate(self, moved: Structures, rows: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """Return score, energy, ln p and objective (R, 4) of some of the structures, and its gradient (N, 3), 1/Å."""
        graphs = graphs_for(self.method, moved[rows])
        batch = graphs.batch(range(len(rows)))
        positions = batch.positions.clone().requires_grad_(True)
        log_partition = torch.as_tensor(self.log_partition[rows]).to(positions.device)
        at = self.objective.evaluate(self.method, batch.with_positions(positions), log_partition)
        (gradient,) = torch.autograd.grad(at.objective.sum(), positions)
        values = torch.stack([at.score, at.energy, at.log_probability, at.objective], dim=1)
        return values.detach().cpu().numpy(), gradient.double().cpu().numpy()

    def _all_atoms(self, per_atom: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each of the structures whether it holds for all of its atoms."""
        return np.logical_and.reduceat(per_atom, np.concatenate([[0], np.cumsum(self.start.n_atoms[rows])[:-1]]))

    def _clamp(self, delta: torch.Tensor) -> None:
        with torch.no_grad():
            lengths = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
            delta *= (self.settings.max_displacement / lengths.clamp(min=1e-300)).clamp(max=1.0)

    def _record(
        self, first: int, step: int, rows: NDArray[np.int64], values: NDArray, delta: NDArray[np.float64]
    ) -> pd.DataFrame:
        starts, counts = self.start.ptr[:-1], self.start.n_atoms
        square = np.add.reduceat((delta**2).sum(axis=1), starts) / counts
        mean = np.add.reduceat(delta, starts) / counts[:, None]
        names = ("score", "energy", "log_probability", "objective")
        return pd.DataFrame(
            {
                "proposal": first + rows,
                "step": step,
                **dict(zip(names, values.T, strict=True)),
                "displacement": np.sqrt(square[rows]),
                "drift": np.linalg.norm(mean[rows], axis=1),
            }
        )
