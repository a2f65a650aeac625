"""Structures: a packed, validated set of labelled frames, and its splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from numpy.typing import ArrayLike, NDArray

from uqbench.data.geometry import repeated_geometries, with_near_images
from uqbench.errors import DataError
from uqbench.seeding import numpy_generator

Splits = dict[str, NDArray[np.int64]]

# Closer than any bond (H-H in H2 is 0.74 Å): two atoms on top of each other are a damaged file.
MIN_DISTANCE = 0.3
# Geometries whose interatomic distances agree to this (Å) count as the same: far below any step of MD, above the
# rounding of printed coordinates and of rotated copies.
DUPLICATE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class Structures:
    """A set of S frames with N atoms in all, packed frame after frame.

    Attributes:
        numbers: (N,) atomic numbers.
        positions: (N, 3) Å.
        cells: (S, 3, 3) lattice vectors as rows, Å; zero where not periodic.
        pbc: (S, 3) periodic directions.
        ptr: (S + 1,) frame s owns the atoms ptr[s]:ptr[s + 1].
        energies: (S,) eV.
        forces: (N, 3) eV/Å.
        ids: (S,) row of the frame in its source.
        origin: where the frames come from, for messages.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cells: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    ptr: NDArray[np.int64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    ids: NDArray[np.int64]
    origin: str

    @classmethod
    def from_arrays(
        cls,
        numbers: ArrayLike,
        positions: ArrayLike,
        energies: ArrayLike,
        forces: ArrayLike,
        ptr: ArrayLike,
        *,
        origin: str,
        cells: ArrayLike | None = None,
        pbc: ArrayLike | None = None,
        ids: ArrayLike | None = None,
    ) -> Structures:
        """Check packed arrays (shapes as in the class) and wrap them.

        `pbc` defaults to periodic wherever a lattice vector is given. Raises DataError on wrong shapes, unknown
        elements, non-finite values, overlapping atoms, or a periodic direction without a lattice vector.
        """
        ptr = np.asarray(ptr, np.int64)
        n_frames = len(ptr) - 1
        cells = np.zeros((n_frames, 3, 3)) if cells is None else np.asarray(cells, np.float64)
        structures = cls(
            numbers=np.asarray(numbers, np.int64),
            positions=np.asarray(positions, np.float64),
            cells=cells,
            pbc=np.any(cells != 0, axis=-1) if pbc is None else np.asarray(pbc, bool),
            ptr=ptr,
            energies=np.asarray(energies, np.float64),
            forces=np.asarray(forces, np.float64),
            ids=np.arange(n_frames) if ids is None else np.asarray(ids, np.int64),
            origin=origin,
        )
        structures._validate()
        return structures

    @classmethod
    def from_frames(
        cls, numbers: ArrayLike, positions: ArrayLike, energies: ArrayLike, forces: ArrayLike, **kwargs
    ) -> Structures:
        """Pack S frames of the same n atoms: numbers (n,), positions and forces (S, n, 3), energies (S,).

        Keyword arguments and errors as in `from_arrays`.
        """
        positions, forces = np.asarray(positions), np.asarray(forces)
        origin = kwargs.get("origin", "data")
        if positions.ndim != 3 or positions.shape[1:] != (len(np.asarray(numbers)), 3):
            raise DataError(f"{origin}: positions have shape {positions.shape}, expected (frames, atoms, 3)")
        if forces.shape != positions.shape:
            raise DataError(f"{origin}: forces have shape {forces.shape}, positions {positions.shape}")
        n_frames, n_atoms = positions.shape[:2]
        return cls.from_arrays(
            np.tile(numbers, n_frames),
            positions.reshape(-1, 3),
            energies,
            forces.reshape(-1, 3),
            np.arange(n_frames + 1) * n_atoms,
            **kwargs,
        )

    @classmethod
    def from_atoms(
        cls, frames: Sequence[Atoms], *, origin: str, energy_key: str | None = None, force_key: str | None = None
    ) -> Structures:
        """Pack ASE frames, with labels from `info[energy_key]` and `arrays[force_key]`.

        A key of None takes the label from the attached calculator. Forces are read without constraints, which would
        zero them. ASE's readers move the keys `energy` and `forces` of a file into such a calculator, so these two
        names also find them there. Raises DataError naming the frame and the keys that exist where a label is missing.
        """
        if not frames:
            raise DataError(f"{origin}: holds no frame")
        energies, forces = [], []
        for index, atoms in enumerate(frames):
            results = atoms.calc.results if atoms.calc is not None else {}
            where = f"{origin}: frame {index}"
            energies.append(_label(atoms.info, results, energy_key, "energy", (), where))
            forces.append(_label(atoms.arrays, results, force_key, "forces", atoms.positions.shape, where))
        counts = [len(atoms) for atoms in frames]
        return cls.from_arrays(
            np.concatenate([atoms.numbers for atoms in frames]),
            np.concatenate([atoms.positions for atoms in frames]),
            np.array(energies),
            np.concatenate(forces),
            np.concatenate([[0], np.cumsum(counts)]),
            origin=origin,
            cells=np.stack([np.asarray(atoms.cell) for atoms in frames]),
            pbc=np.stack([atoms.pbc for atoms in frames]),
        )

    def to_atoms(self) -> list[Atoms]:
        """Return ASE frames whose single-point calculators carry the labels (eV, eV/Å)."""
        from ase.calculators.singlepoint import SinglePointCalculator

        frames = []
        for s in range(len(self)):
            atoms_of = slice(self.ptr[s], self.ptr[s + 1])
            atoms = Atoms(
                self.numbers[atoms_of], self.positions[atoms_of].copy(), cell=self.cells[s].copy(), pbc=self.pbc[s]
            )
            atoms.calc = SinglePointCalculator(
                atoms, energy=float(self.energies[s]), forces=self.forces[atoms_of].copy()
            )
            frames.append(atoms)
        return frames

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, frames: ArrayLike | slice) -> Structures:
        """Return the chosen frames (indices, mask or slice) as a new set, in the order given."""
        chosen = np.atleast_1d(np.arange(len(self))[frames])
        atoms = self.atoms_of(chosen)
        return dataclasses.replace(
            self,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            forces=self.forces[atoms],
            cells=self.cells[chosen],
            pbc=self.pbc[chosen],
            energies=self.energies[chosen],
            ids=self.ids[chosen],
            ptr=np.concatenate([[0], np.cumsum(self.n_atoms[chosen])]),
        )

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """Atoms of each frame, (S,)."""
        return np.diff(self.ptr)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        return np.unique(self.numbers).tolist()

    def atoms_of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the atoms of the given frames, frame after frame."""
        counts = self.n_atoms[frames]
        ends = np.cumsum(counts)
        return np.arange(counts.sum()) + np.repeat(self.ptr[:-1][frames] - ends + counts, counts)

    @classmethod
    def concatenate(cls, parts: Iterable[Structures]) -> Structures:
        """Join sets in order; ids are renumbered from 0 because rows of different sources may coincide."""
        parts = list(parts)
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("numbers", "positions", "cells", "pbc", "energies", "forces")
        }
        counts = np.concatenate([part.n_atoms for part in parts])
        origin = " + ".join(dict.fromkeys(part.origin for part in parts))
        return cls(**joined, ptr=np.concatenate([[0], np.cumsum(counts)]), ids=np.arange(len(counts)), origin=origin)

    def sha256(self) -> str:
        """Return the digest of geometries and labels, bit for bit, independent of where they were read."""
        digest = hashlib.sha256()
        for name in ("ptr", "numbers", "positions", "cells", "pbc", "energies", "forces"):
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def geometry_groups(self) -> NDArray[np.int64]:
        """Return for every frame the first frame of the same geometry, (S,); see `geometry.repeated_geometries`."""
        return repeated_geometries(self.numbers, self.positions, self.cells, self.pbc, self.ptr, DUPLICATE_TOLERANCE)

    def _validate(self) -> None:
        n_frames, n_atoms = len(self), len(self.numbers)
        if n_frames < 1 or n_atoms < 1:
            raise DataError(f"{self.origin}: holds no frame")
        expected = {
            "numbers": (n_atoms,),
            "positions": (n_atoms, 3),
            "cells": (n_frames, 3, 3),
            "pbc": (n_frames, 3),
            "energies": (n_frames,),
            "forces": (n_atoms, 3),
            "ids": (n_frames,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise DataError(f"{self.origin}: {name} have shape {getattr(self, name).shape}, expected {shape}")
        if self.ptr[0] != 0 or self.ptr[-1] != n_atoms or np.any(self.n_atoms < 1):
            raise DataError(f"{self.origin}: frame boundaries do not fit {n_atoms} atoms, or a frame has no atom")
        if self.numbers.min() < 1 or self.numbers.max() >= len(chemical_symbols):
            raise DataError(f"{self.origin}: atomic numbers must lie in 1..{len(chemical_symbols) - 1}")
        frame_of_atom = np.repeat(np.arange(n_frames), self.n_atoms)
        per_frame = np.arange(n_frames)
        owners = {"positions": frame_of_atom, "forces": frame_of_atom, "energies": per_frame, "cells": per_frame}
        for name, owner in owners.items():
            values = getattr(self, name)
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                rows = np.unique(owner[bad])
                raise DataError(
                    f"{self.origin}: {name} are not finite in {len(rows)} frame(s), first frame {self.ids[rows[0]]}; "
                    "remove or relabel them"
                )
        self._check_cells()
        self._check_overlaps(frame_of_atom)

    def _check_cells(self) -> None:
        frames = np.flatnonzero(self.pbc.any(axis=1))
        missing = (self.pbc & ~self.cells.any(axis=-1))[frames].any(axis=1)
        flat = np.array([np.isclose(np.linalg.det(complete_cell(cell)), 0) for cell in self.cells[frames]], bool)
        for bad, what in ((missing, "a periodic direction without a lattice vector"), (flat, "a cell without volume")):
            if bad.any():
                raise DataError(f"{self.origin}: frame {self.ids[frames[bad][0]]} has {what}")

    def _check_overlaps(self, frame_of_atom: NDArray[np.int64]) -> None:
        from scipy.spatial import cKDTree  # takes longer to import than all that a finished run needs

        atoms, points = with_near_images(self.positions, self.cells, self.pbc, frame_of_atom, MIN_DISTANCE)
        # Offsetting the frames along a fourth axis lets one tree search all frames at once.
        tree = cKDTree(np.column_stack([points, frame_of_atom[atoms] * (2 * MIN_DISTANCE)]))
        pairs = tree.query_pairs(MIN_DISTANCE, output_type="ndarray")
        if len(pairs):
            frame = frame_of_atom[atoms[pairs[0, 0]]]
            first, second = sorted(atoms[pairs[0]] - self.ptr[frame])
            raise DataError(
                f"{self.origin}: frame {self.ids[frame]} has atoms {first} and {second} closer than {MIN_DISTANCE} Å; "
                "check the units and remove overlapping structures"
            )


def _label(store, results, key, name, shape, where):
    if key is not None and key in store:
        value = store[key]
    elif key in (None, name) and name in results:
        value = results[name]
    else:
        wanted = f"'{key}'" if key is not None else f"a calculator result '{name}'"
        known = ", ".join(sorted(map(str, [*store, *results]))) or "none"
        raise DataError(f"{where} has no {name}: {wanted} is missing (keys there: {known}); set the key in the config")
    try:
        value = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} under '{key or name}' are not numbers") from None
    if value.shape != shape:
        raise DataError(f"{where}: {name} under '{key or name}' have shape {value.shape}, expected {shape}")
    return value


def random_split(n: int, sizes: dict[str, int], seed: int) -> Splits:
    """Draw disjoint random splits of the given sizes from n frames; raises DataError when they do not fit."""
    total = sum(sizes.values())
    if total > n or min(sizes.values()) < 0:
        raise DataError(f"splits {sizes} need {total} frames, the data set has {n}")
    order = numpy_generator(seed, "split").permutation(n)
    ends = np.cumsum(list(sizes.values()))
    return {name: np.sort(order[end - size : end]) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def check_splits(splits: Splits, n: int) -> None:
    """Raise DataError unless every split is non-empty, within 0..n-1, and disjoint from all others."""
    owner = np.full(n, -1)
    for k, (name, indices) in enumerate(splits.items()):
        if len(indices) == 0:
            raise DataError(f"split '{name}' is empty")
        if indices.min() < 0 or indices.max() >= n:
            raise DataError(
                f"split '{name}' points at frame {indices.max() if indices.max() >= n else indices.min()}, "
                f"but the data set has frames 0..{n - 1}"
            )
        if len(np.unique(indices)) != len(indices):
            raise DataError(f"split '{name}' names a frame twice")
        taken = owner[indices]
        if np.any(taken >= 0):
            other = list(splits)[taken[taken >= 0][0]]
            raise DataError(f"splits '{other}' and '{name}' share frame {indices[taken >= 0][0]}")
        owner[indices] = k


def duplicates_across(structures: Structures, splits: Splits) -> list[tuple[str, int, str, int]]:
    """Return (split, frame, other split, frame) for every geometry that stands in more than one split."""
    labels = structures.geometry_groups()
    seen: dict[int, tuple[str, int]] = {}
    found = []
    for name, indices in splits.items():
        for frame in indices:
            first = seen.setdefault(labels[frame], (name, int(frame)))
            if first[0] != name:
                found.append((*first, name, int(frame)))
    return found
