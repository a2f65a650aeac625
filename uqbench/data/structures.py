"""Structures: a packed, validated set of frames, labelled or not, and its splits."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from numpy.typing import ArrayLike, NDArray

from uqbench.data.geometry import repeated_geometries, with_near_images
from uqbench.errors import DataError
from uqbench.seeding import numpy_generator

log = logging.getLogger(__name__)

Splits = dict[str, NDArray[np.int64]]

STRESS = {"stress", "virial", "virials"}  # keys under which files have labels that nothing is made of yet
# Closer than any bond (H-H in H2 is 0.74 Å): two atoms on top of each other are a damaged file.
MIN_DISTANCE = 0.3
LARGEST = 1e9  # Å; coordinates beyond keep no distances in double precision
# Geometries whose interatomic distances agree to this (Å) count as the same: far below any step of MD, above the
# rounding of printed coordinates and of rotated copies.
DUPLICATE_TOLERANCE = 1e-4
USUAL_NAMES = {"energy": r"energ|^e$", "forces": r"forc|^f$|grad"}  # of the keys of labels


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Systems:
    """Which atoms S frames with N atoms in all have, packed frame after frame, and their labels, if any.

    Labels are None where no frame has them. Where some frames do, the numbers of the others are NaN: a NaN here always
    means that nobody has labelled the frame, because whatever makes a set of frames that must have labels refuses NaN.

    Attributes:
        numbers: (N,) atomic numbers.
        ptr: (S + 1,) frame s owns the atoms ptr[s]:ptr[s + 1].
        energies: (S,) eV, or None.
        forces: (N, 3) eV/Å, or None; of a frame all or none.
        ids: (S,) row of the frame in its source.
        origin: where the frames come from, for messages.
    """

    numbers: NDArray[np.int64]
    ptr: NDArray[np.int64]
    energies: NDArray[np.float64] | None = None
    forces: NDArray[np.float64] | None = None
    ids: NDArray[np.int64]
    origin: str

    # Arrays with a row for each atom, and for each frame.
    _per_atom: ClassVar[tuple[str, ...]] = ("numbers", "forces")
    _per_frame: ClassVar[tuple[str, ...]] = ("energies", "ids")

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, frames: ArrayLike | slice) -> Self:
        """Return the chosen frames (indices, mask or slice) as a new set, in the order given."""
        chosen = np.atleast_1d(np.arange(len(self))[frames])
        atoms = self.atoms_of(chosen)
        rows = dict.fromkeys(self._per_atom, atoms) | dict.fromkeys(self._per_frame, chosen)
        parts = {name: getattr(self, name) for name in rows}
        return dataclasses.replace(
            self,
            **{name: None if array is None else array[rows[name]] for name, array in parts.items()},
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

    @property
    def has_energies(self) -> NDArray[np.bool_]:
        """Which frames have an energy, (S,)."""
        return np.zeros(len(self), bool) if self.energies is None else ~np.isnan(self.energies)

    @property
    def has_forces(self) -> NDArray[np.bool_]:
        """Which frames have forces, (S,)."""
        return np.zeros(len(self), bool) if self.forces is None else ~np.isnan(self.forces[self.ptr[:-1], 0])

    def require_labels(self) -> Self:
        """Return the set itself; raises DataError where a frame has no energy or no forces."""
        for name, there in (("energy", self.has_energies), ("forces", self.has_forces)):
            if not there.all():
                missing = np.flatnonzero(~there)
                raise DataError(
                    f"{self.origin}: {len(missing)} of {len(self)} frame(s) have no {name}, first frame "
                    f"{self.ids[missing[0]]}; label them or leave them out"
                )
        return self

    def atoms_of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the atoms of the given frames, frame after frame."""
        counts = self.n_atoms[frames]
        ends = np.cumsum(counts)
        return np.arange(counts.sum()) + np.repeat(self.ptr[:-1][frames] - ends + counts, counts)

    def check(self, *, partial: bool = False) -> Self:
        """Return the set itself; raises DataError for wrong shapes, unknown elements or labels that are not finite.

        With `partial`, NaN in all labels of a frame is no error.
        """
        n_frames, n_atoms = len(self), len(self.numbers)
        if n_frames < 1 or n_atoms < 1:
            raise DataError(f"{self.origin}: holds no frame")
        for name, shape in self._shapes().items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise DataError(f"{self.origin}: {name} have shape {array.shape}, expected {shape}")
        if self.ptr[0] != 0 or self.ptr[-1] != n_atoms or np.any(self.n_atoms < 1):
            raise DataError(f"{self.origin}: frame boundaries do not fit {n_atoms} atoms, or a frame has no atom")
        if self.numbers.min() < 1 or self.numbers.max() >= len(chemical_symbols):
            raise DataError(f"{self.origin}: atomic numbers must lie in 1..{len(chemical_symbols) - 1}")
        self._check_finite("forces", np.repeat(~self.has_forces, self.n_atoms) if partial else None)
        self._check_finite("energies", ~self.has_energies if partial else None)
        return self

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n_frames, n_atoms = len(self), len(self.numbers)
        return {"numbers": (n_atoms,), "energies": (n_frames,), "forces": (n_atoms, 3), "ids": (n_frames,)}

    def _check_finite(self, name: str, missing: NDArray[np.bool_] | None = None) -> None:
        """Raise DataError for values that are not finite; in the rows of the mask, if any, they must all be NaN."""
        values = getattr(self, name)
        if values is None:
            return
        values = values.reshape(len(values), -1)
        good = np.isfinite(values)
        if missing is not None:
            good = np.where(missing[:, None], np.isnan(values), good)
        bad = ~good.all(axis=1)
        if bad.any():
            frames = np.arange(len(self))
            owner = np.repeat(frames, self.n_atoms) if name in self._per_atom else frames
            rows = np.unique(owner[bad])
            raise DataError(
                f"{self.origin}: {name} are not finite in {len(rows)} frame(s), first frame {self.ids[rows[0]]}; "
                "remove or relabel them"
            )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Structures(Systems):
    """A set of S frames with N atoms in all, packed frame after frame; labels as in `Systems`.

    Attributes:
        positions: (N, 3) Å.
        cells: (S, 3, 3) lattice vectors as rows, Å; zero where not periodic.
        pbc: (S, 3) periodic directions.
    """

    positions: NDArray[np.float64]
    cells: NDArray[np.float64]
    pbc: NDArray[np.bool_]

    _per_atom: ClassVar[tuple[str, ...]] = (*Systems._per_atom, "positions")
    _per_frame: ClassVar[tuple[str, ...]] = (*Systems._per_frame, "cells", "pbc")

    @classmethod
    def from_arrays(
        cls,
        numbers: ArrayLike,
        positions: ArrayLike,
        energies: ArrayLike | None,
        forces: ArrayLike | None,
        ptr: ArrayLike,
        *,
        origin: str,
        cells: ArrayLike | None = None,
        pbc: ArrayLike | None = None,
        ids: ArrayLike | None = None,
        partial: bool = False,
    ) -> Structures:
        """Check packed arrays (shapes as in the class) and wrap them.

        `pbc` defaults to periodic wherever a lattice vector is given. NaN among the labels is refused like any other
        value that is not finite, unless `partial` says that it marks frames without a label. Raises DataError on wrong
        shapes, unknown elements, non-finite values, overlapping atoms, or a periodic direction without a lattice
        vector.

        Example:
            >>> from uqbench.data.structures import Structures
            >>> positions = [[0, 0, 0], [0, 0, 0.74], [0, 0, 0], [0, 0, 0.8], [0, 0.7, 0]]  # Å, of H2 and of OH2
            >>> s = Structures.from_arrays([1, 1, 8, 1, 1], positions, None, None, [0, 2, 5], origin="two frames")
            >>> len(s), s.n_atoms.tolist(), s.elements
            (2, [2, 3], [1, 8])
            >>> s[1].numbers.tolist()
            [8, 1, 1]
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
            energies=None if energies is None else np.asarray(energies, np.float64),
            forces=None if forces is None else np.asarray(forces, np.float64),
            ids=np.arange(n_frames) if ids is None else np.asarray(ids, np.int64),
            origin=origin,
        )
        return structures.check(partial=partial)

    @classmethod
    def from_frames(
        cls,
        numbers: ArrayLike,
        positions: ArrayLike,
        energies: ArrayLike | None = None,
        forces: ArrayLike | None = None,
        **kwargs,
    ) -> Structures:
        """Pack S frames of the same n atoms: numbers (n,), positions and forces (S, n, 3), energies (S,).

        Keyword arguments and errors as in `from_arrays`.

        Example:
            >>> from uqbench.data.structures import Structures
            >>> frames = [[[0, 0, 0], [0, 0, 0.74]], [[0, 0, 0], [0, 0, 0.1]]]
            >>> Structures.from_frames([1, 1], frames[:1], energies=[-31.0], origin="H2").energies.tolist()
            [-31.0]
            >>> Structures.from_frames([1, 1], frames, origin="H2")
            Traceback (most recent call last):
            uqbench.errors.DataError: H2: frame 1 has atoms 0 and 1 closer than 0.3 Å; check the units and remove...
        """
        positions, forces = np.asarray(positions), None if forces is None else np.asarray(forces)
        origin = kwargs.get("origin", "data")
        if positions.ndim != 3 or positions.shape[1:] != (len(np.asarray(numbers)), 3):
            raise DataError(f"{origin}: positions have shape {positions.shape}, expected (frames, atoms, 3)")
        if forces is not None and forces.shape != positions.shape:
            raise DataError(f"{origin}: forces have shape {forces.shape}, positions {positions.shape}")
        n_frames, n_atoms = positions.shape[:2]
        return cls.from_arrays(
            np.tile(numbers, n_frames),
            positions.reshape(-1, 3),
            energies,
            None if forces is None else forces.reshape(-1, 3),
            np.arange(n_frames + 1) * n_atoms,
            **kwargs,
        )

    @classmethod
    def from_atoms(
        cls,
        frames: Sequence[Atoms],
        *,
        origin: str,
        energy_key: str | None = None,
        force_key: str | None = None,
        labels: Literal["all", "some", "none"] = "all",
    ) -> Structures:
        """Pack ASE frames, with labels from `info[energy_key]` and `arrays[force_key]`.

        A key of None takes the label from the attached calculator. Forces are read without constraints, which would
        zero them. ASE's readers move the keys `energy` and `forces` of a file into such a calculator, so these two
        names also find them there. Of `labels`, `all` frames must have them, or a DataError names the frame and the
        keys that exist; `some` may; with `none` nothing but the geometry is looked at.

        Example:
            >>> from ase.build import molecule
            >>> from uqbench.data.structures import Structures
            >>> s = Structures.from_atoms([molecule("H2O"), molecule("NH3")], origin="molecules", labels="none")
            >>> len(s), s.energies
            (2, None)
        """
        if not frames:
            raise DataError(f"{origin}: holds no frame")
        energies, forces = [], []
        for index, atoms in enumerate(frames if labels != "none" else ()):
            results = atoms.calc.results if atoms.calc is not None else {}
            where, needed = f"{origin}: frame {index}", labels == "all"
            energies.append(_label(atoms.info, results, energy_key, "energy", (), where, needed))
            forces.append(_label(atoms.arrays, results, force_key, "forces", atoms.positions.shape, where, needed))
        if labels != "none":
            _tell_of_stress(frames, origin)
        counts = [len(atoms) for atoms in frames]
        return cls.from_arrays(
            np.concatenate([atoms.numbers for atoms in frames]),
            np.concatenate([atoms.positions for atoms in frames]),
            _joined(energies, [(1,) for _ in frames]),
            _joined(forces, [(count, 3) for count in counts]),
            np.concatenate([[0], np.cumsum(counts)]),
            origin=origin,
            cells=np.stack([np.asarray(atoms.cell) for atoms in frames]),
            pbc=np.stack([atoms.pbc for atoms in frames]),
            partial=labels == "some",
        )

    def to_atoms(self) -> list[Atoms]:
        """Return ASE frames whose single-point calculators carry the labels (eV, eV/Å), where there are any."""
        from ase.calculators.singlepoint import SinglePointCalculator

        frames, energetic, forced = [], self.has_energies, self.has_forces
        for s in range(len(self)):
            atoms_of = slice(self.ptr[s], self.ptr[s + 1])
            atoms = Atoms(
                self.numbers[atoms_of], self.positions[atoms_of].copy(), cell=self.cells[s].copy(), pbc=self.pbc[s]
            )
            labels = {"energy": float(self.energies[s])} if energetic[s] else {}
            labels |= {"forces": self.forces[atoms_of].copy()} if forced[s] else {}
            atoms.calc = SinglePointCalculator(atoms, **labels) if labels else None
            frames.append(atoms)
        return frames

    @classmethod
    def concatenate(cls, parts: Iterable[Structures]) -> Structures:
        """Join sets in order; ids are renumbered from 0 because rows of different sources may coincide."""
        parts = list(parts)
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("numbers", "positions", "cells", "pbc")
        }
        counts = np.concatenate([part.n_atoms for part in parts])
        energies = _joined([part.energies for part in parts], [(len(part),) for part in parts])
        forces = _joined([part.forces for part in parts], [part.positions.shape for part in parts])
        origin = " + ".join(dict.fromkeys(part.origin for part in parts))
        ptr = np.concatenate([[0], np.cumsum(counts)])
        return cls(**joined, ptr=ptr, energies=energies, forces=forces, ids=np.arange(len(counts)), origin=origin)

    def sha256(self) -> str:
        """Return the digest of geometries and labels, bit for bit, independent of where they were read."""
        digest = hashlib.sha256()
        for name in ("ptr", "numbers", "positions", "cells", "pbc", "energies", "forces"):
            array = getattr(self, name)
            if array is None:
                continue
            array = np.ascontiguousarray(array)
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def geometry_groups(self) -> NDArray[np.int64]:
        """Return for every frame the first frame of the same geometry, (S,); see `geometry.repeated_geometries`."""
        return repeated_geometries(self.numbers, self.positions, self.cells, self.pbc, self.ptr, DUPLICATE_TOLERANCE)

    def check(self, *, partial: bool = False) -> Self:
        """Return the set itself; raises DataError as `from_arrays` does."""
        super().check(partial=partial)
        for name in ("positions", "cells"):
            self._check_finite(name)
        if np.abs(self.positions).max() > LARGEST:
            raise DataError(f"{self.origin}: positions reach {np.abs(self.positions).max():.3g} Å; check the units")
        self._check_cells()
        self._check_overlaps(np.repeat(np.arange(len(self)), self.n_atoms))
        return self

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n_frames = len(self)
        shapes = {"positions": (len(self.numbers), 3), "cells": (n_frames, 3, 3), "pbc": (n_frames, 3)}
        return super()._shapes() | shapes

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


def _tell_of_stress(frames: Sequence[Atoms], origin: str) -> None:
    """Say how many frames have a label that nothing is made of."""
    keys = [sorted(STRESS & {*(atoms.calc.results if atoms.calc is not None else ()), *atoms.info}) for atoms in frames]
    names = sorted(set().union(*keys))
    if names:
        count = sum(map(bool, keys))
        log.warning("%s: %d of %d frames have %s, which is not used", origin, count, len(frames), " and ".join(names))


def _label(store, results, key, name, shape, where, needed):
    if key is not None and key in store:
        value = store[key]
    elif key in (None, name) and name in results:
        value = results[name]
    elif not needed:
        return None
    else:
        wanted = f"'{key}'" if key is not None else f"a calculator result '{name}'"
        there = sorted(map(str, [*store, *results]))
        usual = [key for key in there if re.search(USUAL_NAMES[name], key, re.IGNORECASE)]
        setting = f"{name.removesuffix('s')}_key"
        advice = f"did you mean {setting}={usual[0]}?" if usual else f"set {setting} in the config"
        raise DataError(
            f"{where} has no {name}: {wanted} is missing (keys there: {', '.join(there) or 'none'}); {advice}"
        )
    try:
        value = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} under '{key or name}' are not numbers") from None
    if value.shape != shape:
        raise DataError(f"{where}: {name} under '{key or name}' have shape {value.shape}, expected {shape}")
    return value


def _joined(
    parts: Sequence[NDArray[np.float64] | None], shapes: Sequence[tuple[int, ...]]
) -> NDArray[np.float64] | None:
    """Join labels in order, with NaN in place of those that are None; None if all are."""
    if all(part is None for part in parts):
        return None
    pairs = zip(parts, shapes, strict=True)
    return np.concatenate([np.full(shape, np.nan) if part is None else part.reshape(shape) for part, shape in pairs])


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
    duplicates = []
    for name, indices in splits.items():
        for frame in indices:
            first = seen.setdefault(labels[frame], (name, int(frame)))
            if first[0] != name:
                duplicates.append((*first, name, int(frame)))
    return duplicates
