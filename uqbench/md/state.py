"""The state of many replicas at once."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor

from uqbench.data.structures import Structures
from uqbench.data.verlet import Coordinates


@dataclasses.dataclass(eq=False)
class State:
    """R replicas with N atoms in all, packed replica after replica; float64, in ASE's units (eV, Å, amu).

    Time is therefore in Å √(amu/eV), 10.18 fs; `ase.units.fs` converts.

    Attributes:
        ids: (R,) numbers that the replicas keep when others leave.
        numbers: (N,) atomic numbers.
        masses: (N, 1) amu.
        n_atoms: (R,) atoms of each replica.
        cells, pbc: (R, 3, 3) Å and (R, 3), fixed.
        kT: (R,) eV, of each replica's thermostat.
        positions: (N, 3) Å, never wrapped.
        velocities: (N, 3).
        forces: (N, 3) eV/Å, at the positions; None before a model has been asked.
        kinetic: (R,) eV, in the middle of the last step; see `md.langevin.BAOAB`.
        heat: (R,) eV that the thermostat has brought in so far.
    """

    ids: Tensor
    numbers: Tensor
    masses: Tensor
    n_atoms: Tensor
    cells: Tensor
    pbc: Tensor
    kT: Tensor
    positions: Tensor
    velocities: Tensor
    forces: Tensor | None
    kinetic: Tensor
    heat: Tensor

    def __post_init__(self) -> None:
        self.system = torch.repeat_interleave(self.n_atoms)
        self.ptr = torch.cat([self.n_atoms.new_zeros(1), self.n_atoms.cumsum(0)])
        self.start = self.ptr[:-1]
        self.thermal_speed = (self.kT[self.system].unsqueeze(-1) / self.masses).sqrt()

    @classmethod
    def at_rest(cls, structures: Structures, kT: np.ndarray, ids: np.ndarray, device: str | torch.device) -> Self:
        """Put one replica at each frame (R) of `structures`, with its kT (R,) in eV; forces are not known yet."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.tensor(array, device=device)

        per_atom, per_replica = np.zeros((len(structures.numbers), 3)), np.zeros(len(structures))
        return cls(
            ids=tensor(ids),
            numbers=tensor(structures.numbers),
            masses=tensor(atomic_masses[structures.numbers][:, None]),
            n_atoms=tensor(structures.n_atoms),
            cells=tensor(structures.cells),
            pbc=tensor(structures.pbc),
            kT=tensor(np.asarray(kT, np.float64)),
            positions=tensor(structures.positions),
            velocities=tensor(per_atom),
            forces=None,
            kinetic=tensor(per_replica),
            heat=tensor(per_replica),
        )

    @property
    def coordinates(self) -> Coordinates:
        """Where the atoms are."""
        return Coordinates(self.positions, self.cells, self.pbc, self.ptr)

    def __len__(self) -> int:
        return len(self.n_atoms)

    def select(self, keep: Tensor) -> Self:
        """Return the replicas of a mask (R,), bit for bit."""
        atoms = keep[self.system]
        per_atom = {"numbers", "masses", "positions", "velocities", "forces"}
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(
            **{
                name: None if tensor is None else tensor[atoms if name in per_atom else keep]
                for name, tensor in tensors.items()
            }
        )

    def sums(self, values: Tensor) -> Tensor:
        """Sum per-atom values (N,) over each replica, (R,)."""
        return values.new_zeros(len(self)).index_add(0, self.system, values)

    def kinetic_energy(self, velocities: Tensor) -> Tensor:
        """Kinetic energies (R,) in eV at some velocities (N, 3)."""
        return self.sums(0.5 * (self.masses * velocities.square()).sum(-1))
