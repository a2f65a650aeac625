"""Pure-silica zeolites of Si-ZEO22, with whole frameworks held out: extrapolation to a crystal never seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt

from uqbench.config.annotations import Different
from uqbench.data.arrays import numeric, read_npz, species_to_numbers
from uqbench.data.download import cache_folder, fetch
from uqbench.data.sources import OUT_OF_DOMAIN
from uqbench.data.sources.base import SPLITS, Dataset, Size, frame_count, require_root
from uqbench.data.structures import Splits, Structures
from uqbench.errors import DataError
from uqbench.seeding import numpy_generator

SOURCE = "https://github.com/tysours/Si-ZEO22"
ARRAYS = ("positions", "energies", "forces", "cells", "symbols")
# Of the files in SOURCE at the revision that the YAML names; other frameworks are taken from data_root alone.
MD5 = {
    "dft": "b9a3b5acb8c243396e28454560e13c67",
    "jbw": "fedfbc7c528305081848cd4af719f476",
    "nab": "d6cd943bbbeeecaeda832cf9243f0a82",
    "oso": "66433a05be6db088bf6ca88a5370f340",
    "sod": "1f2b4a2aa7a3fd9acf98eaa89c7d20d6",
}


class Zeolite(Dataset):
    """Frames of several frameworks (PBE-D3BJ, eV and eV/Å): some to train, validate and test on, others held out.

    The held-out frameworks are the split `out_of_domain`; all sizes are of each framework. Each file holds some 600
    independent frames and, in most, a trajectory of about 1000 frames a few fs apart, all in random order (found by
    their distances). A random split would put neighbours in time on both sides. So a frame that resembles a test
    frame to less than `apart` (root mean square displacement of the atoms, Å) neither validates nor trains, and one
    that resembles a validation frame does not train.

    Energies are those of the file. One reference energy per element, fitted on the training frames, serves all
    frameworks: each is SiO2, so the fit is their mean energy per formula unit, whatever the size of the cell.

    Files are looked for as zeolite/<framework>.npz in `data_root`, then in `cache`, where they are downloaded to
    from `url` (null: never). Source: Si-ZEO22, CC0.
    """

    def __init__(
        self,
        frameworks: Different[str],
        held_out: list[str],
        n_train: Size,
        n_validation: Size,
        n_test: Size,
        n_out_of_domain: Size,
        apart: NonNegativeFloat,
        split_seed: NonNegativeInt,
        data_root: str | None,
        cache: str | None,
        url: str | None,
    ) -> None:
        self.frameworks = [str(name).lower() for name in frameworks]
        self.held_out = [str(name).lower() for name in held_out]
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test, OUT_OF_DOMAIN: n_out_of_domain}
        self.apart = apart
        self.split_seed = split_seed
        self.data_root = data_root
        self.cache = cache
        self.url = url
        self.subset = f"without-{'+'.join(self.held_out)}" if self.held_out else "all"

    @staticmethod
    def contradictions(*, frameworks: list[str], held_out: list[str], **_: Any) -> Iterator[str]:
        """Yield what is wrong between arguments that are each right alone."""
        known = [name.lower() for name in frameworks]
        for name in held_out:
            if name.lower() not in known:
                yield f"held_out: expected some of frameworks ({', '.join(known)}), got '{name}'"
        if {name.lower() for name in held_out} >= set(known):
            yield "held_out: expected fewer than frameworks (none is left to train on)"

    def load(self) -> Structures:
        root = self._root()
        return Structures.concatenate([self._read(name, root) for name in self.frameworks])

    def split(self, structures: Structures) -> Splits:
        parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in (*SPLITS, OUT_OF_DOMAIN)}
        root = self._root()
        files = [self._file(name, root) for name in self.frameworks]
        ends = np.cumsum([len(read_npz(path, {"energies": "energies"})["energies"]) for path in files])
        if ends[-1] != len(structures):
            raise DataError(
                f"{structures.origin}: {len(structures)} frames, but {ends[-1]} in the files of the frameworks"
            )
        for name, frames in zip(self.frameworks, np.split(np.arange(len(structures)), ends[:-1]), strict=True):
            # A stream for each: another choice of frameworks does not move the frames of this one.
            order = numpy_generator(self.split_seed, "split", name).permutation(frames)
            names = (OUT_OF_DOMAIN,) if name in self.held_out else ("test", "validation", "train")
            for part in names:
                chosen, order = self._take(name, part, structures, order, len(frames))
                parts[part].append(chosen)
        none = np.zeros(0, np.int64)
        return {name: np.sort(np.concatenate([none, *chosen])) for name, chosen in parts.items()}

    def _take(
        self, framework: str, part: str, structures: Structures, order: NDArray[np.int64], total: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Take the first frames of an order for a split, and leave in the order what is not too near to them."""
        count = frame_count(self.sizes[part], total)
        count = len(order) if count is None else count
        if count > len(order):
            raise DataError(
                f"{framework}: split '{part}' needs {count} frames, but {len(order)} of {total} are left that are "
                f"{self.apart} Å from those of other splits; choose smaller sizes or a smaller dataset.apart"
            )
        chosen, order = order[:count], order[count:]
        if part not in ("train", OUT_OF_DOMAIN):
            order = order[distance_to(structures, order, chosen) >= self.apart]
        return chosen, order

    def _read(self, framework: str, root: Path | None) -> Structures:
        path = self._file(framework, root)
        arrays = read_npz(path, {name: name for name in ARRAYS})
        numbers = species_to_numbers(arrays.pop("symbols"), path)
        arrays = {name: numeric(array, name, path) for name, array in arrays.items()}
        if arrays["cells"].shape[-2:] != (3, 3):
            raise DataError(f"{path}: cells have shape {arrays['cells'].shape}, expected (frames, 3, 3)")
        pbc = np.ones((len(arrays["cells"]), 3), bool)
        return Structures.from_frames(numbers, **arrays, pbc=pbc, origin=str(path))

    def _root(self) -> Path | None:
        return None if self.data_root is None else require_root(self.data_root)

    def _file(self, framework: str, root: Path | None) -> Path:
        cached = cache_folder(self.cache) / "zeolite" / f"{framework}.npz"
        wanted = cached if root is None else root / "zeolite" / f"{framework}.npz"
        if root is not None and wanted.is_file():
            return wanted
        advice = f"put data/{framework}.npz of {SOURCE} there as {wanted}, or set data_root (UQBENCH_DATA)"
        if cached.is_file():
            return cached
        if self.url is None or framework not in MD5:
            why = "dataset.url is null" if self.url is None else "no checksum of it is known, so it is not downloaded"
            raise DataError(f"{wanted} does not exist, and {why}; {advice}")
        return fetch(self.url.replace("<framework>", framework), MD5[framework], cached, advice)


def distance_to(structures: Structures, frames: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how near each of `frames` (F,) comes to any of `others`: root mean square displacement in Å, (F,).

    All are of one framework. Displacements are of nearest images, less their mean, as fractions of the cell times
    the other frame's cell: a strain alone is no displacement.
    """
    nearest = np.full(len(frames), np.inf)
    if not len(frames):
        return nearest
    n_atoms = structures.n_atoms[frames[0]]
    fractions = {
        kind: structures.positions[structures.atoms_of(chosen)].reshape(-1, n_atoms, 3)
        @ np.linalg.inv(structures.cells[chosen])
        for kind, chosen in (("frames", frames), ("others", others))
    }
    for other, cell in zip(fractions["others"], structures.cells[others], strict=True):
        moved = fractions["frames"] - other
        # The first atoms are put on each other, so that a common shift does not part the images of the others.
        moved -= moved[:, :1]
        moved -= np.rint(moved)
        moved -= moved.mean(axis=1, keepdims=True)
        squares = ((moved @ cell) ** 2).sum(axis=(1, 2)) / n_atoms
        nearest = np.minimum(nearest, np.sqrt(squares))
    return nearest
