"""Langevin dynamics of many replicas at once, each with random numbers of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase import units
from torch import Tensor

from uqbench.md.state import State
from uqbench.seeding import numpy_generator

# Steps whose noise is drawn at once, and numbers held for that: what Python does per replica is shared by many steps.
BLOCK, HELD = 64, 2**22


class BAOAB:
    """The BAOAB splitting of Langevin dynamics: half kick, half drift, friction and noise, half drift, half kick.

    For harmonic forces the positions sample the exact canonical distribution at any stable time step. The velocities at
    the end of a step are too cold by the factor 1 - (ω Δt)²/4, but those in the middle, around the thermostat, are
    exactly Maxwellian: the end's variance kT/m (1 - (ω Δt)²/4) plus that of the uncorrelated half kick,
    (Δt/2)² ω⁴ kT/(m ω²). `State.kinetic` holds the kinetic energy there. Without friction this is velocity Verlet.
    Source: Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34; J. Chem. Phys. 138, 174102 (2013).

    Args:
        timestep: fs.
        friction: 1/ps.
    """

    def __init__(self, *, timestep: float, friction: float) -> None:
        self.dt = timestep * units.fs
        rate = friction * 1e-3 * timestep
        self.decay, self.spread = math.exp(-rate), math.sqrt(-math.expm1(-2 * rate))

    def drift(self, state: State, noise: Tensor) -> None:
        """Take B, A, O and A, which need the forces at the old positions; noise (N, 3) is standard Gaussian."""
        half = 0.5 * self.dt
        velocities = state.velocities + half * state.forces / state.masses
        positions = state.positions + half * velocities
        before = state.kinetic_energy(velocities)
        velocities = self.decay * velocities + self.spread * state.thermal_speed * noise
        state.kinetic = state.kinetic_energy(velocities)
        state.heat = state.heat + (state.kinetic - before)
        state.positions, state.velocities = positions + half * velocities, velocities

    def kick(self, state: State, forces: Tensor) -> None:
        """Take the last B, with the forces (N, 3) in eV/Å at the new positions."""
        state.forces = forces
        state.velocities = state.velocities + 0.5 * self.dt * forces / state.masses


class Noise:
    """Standard Gaussian numbers for the atoms of each replica, from one named stream per replica.

    What a replica receives depends on its stream alone, not on which others there are or when they leave.

    Args:
        streams: (R) names of each replica's stream; with `seed` they determine all of its numbers.
        counts: (R,) atoms.
        device: of the numbers.
    """

    def __init__(
        self, seed: int, streams: Sequence[tuple[str | int, ...]], counts: Tensor, device: str | torch.device
    ) -> None:
        # NumPy's generators: cutting their sequence into blocks does not change it, as it would in torch.
        self._generators = [numpy_generator(seed, *names) for names in streams]
        self._counts, self._device = counts.tolist(), device
        self._block = torch.zeros(0)
        self._next = 0

    def __call__(self) -> Tensor:
        """Return the next numbers, (N, 3) in float64."""
        if self._next == len(self._block):
            steps = max(1, min(BLOCK, HELD // (3 * sum(self._counts))))
            drawn = [
                generator.standard_normal((steps, count, 3))
                for generator, count in zip(self._generators, self._counts, strict=True)
            ]
            self._block, self._next = torch.as_tensor(np.concatenate(drawn, axis=1)).to(self._device), 0
        self._next += 1
        return self._block[self._next - 1]

    def select(self, keep: Tensor) -> None:
        """Go on with the replicas of a mask (R,) only."""
        atoms = torch.repeat_interleave(keep, torch.as_tensor(self._counts, device=keep.device))
        self._block = self._block[:, atoms] if len(self._block) else self._block
        chosen = keep.tolist()
        self._generators = [generator for generator, kept in zip(self._generators, chosen, strict=True) if kept]
        self._counts = [count for count, kept in zip(self._counts, chosen, strict=True) if kept]


def thermalise(state: State, numbers: Tensor) -> None:
    """Set velocities from the Maxwell-Boltzmann distribution at each replica's kT, by Gaussian numbers (N, 3).

    Neither the momentum nor the angular momentum is taken out: the thermostat drives all 3N degrees of freedom.
    """
    state.velocities = state.thermal_speed * numbers
    state.kinetic = state.kinetic_energy(state.velocities)
