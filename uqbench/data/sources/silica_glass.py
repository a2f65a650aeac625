"""Silica glass made here: melted and cooled in LAMMPS, sampled cold, hot and strained; a stand-in for the study's."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval, Len
from ase import Atoms
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.data.arrays import read_npz
from uqbench.data.download import cache_folder
from uqbench.data.sources import OUT_OF_DOMAIN
from uqbench.data.sources.base import SPLITS, Dataset, Labeller, Size, frame_count
from uqbench.data.sources.glass import Recipe
from uqbench.data.sources.melt_quench import glasses
from uqbench.data.structures import Splits, Structures
from uqbench.errors import DataError
from uqbench.lammps_library import require_plain
from uqbench.runs import provenance
from uqbench.seeding import derive, numpy_generator

log = logging.getLogger(__name__)

FEWEST = 3  # glasses: one each to train, validate and test on
STRAINS = ("xx", "yy", "zz", "yz", "xz", "xy")
Strain = Annotated[float, Interval(gt=-0.5, lt=0.5)]


class SilicaGlass(Dataset):
    """Frames of several glasses, each melted and cooled on its own, with labels of an oracle.

    Frames of one trajectory resemble each other, and so do all that come from one glass: its network hardly changes
    below the melt. A random split would therefore test on what was trained on. So the last glass is the one to test
    on, the one before it validates, and the others train; glasses share nothing but the crystal they were melted
    from, of which the melt keeps no memory (a melt in which the atoms have hardly moved is refused). Training,
    validation and test frames are at `temperatures`. The test glass at `hot_temperatures`, and under `strains` at
    `strain_temperature`, is the split `out_of_domain`.

    Frames are kept in `cache`, found by all settings that decide them; so are labels, by the oracle. Units: g/cm³, K,
    ps, K/ps, fs.

    Args:
        cells: unit cells of cristobalite along x, y, z, 24 atoms each. density: of melt and glass alike.
        glasses: how many. glass_seed: of all velocities.
        melt_temperature, melt_ps, cooling, equilibration_ps, interval_ps, frames, timestep_fs: see `glass.Recipe`.
        pair_style, potential: of LAMMPS, for the dynamics alone; the labels are the oracle's.
        temperatures, hot_temperatures: of frames. strains: rows of xx, yy, zz, yz, xz, xy.
        n_train, n_validation, n_test, n_out_of_domain: frames to use, drawn with `split_seed` from those there are.
        workers: processes that make glasses at once; None for one on each core.
        oracle: labels the frames.
    """

    def __init__(
        self,
        cells: Annotated[list[PositiveInt], Len(3, 3)],
        density: PositiveFloat,
        glasses: Annotated[int, Ge(FEWEST)],
        glass_seed: NonNegativeInt,
        melt_temperature: PositiveFloat,
        melt_ps: PositiveFloat,
        cooling: Annotated[list[Annotated[list[PositiveFloat], Len(2, 2)]], Len(1)],
        temperatures: Annotated[list[PositiveFloat], Len(1)],
        hot_temperatures: list[PositiveFloat],
        strains: list[Annotated[list[Strain], Len(len(STRAINS), len(STRAINS))]],
        strain_temperature: PositiveFloat,
        equilibration_ps: PositiveFloat,
        interval_ps: PositiveFloat,
        frames: PositiveInt,
        timestep_fs: PositiveFloat,
        pair_style: str,
        potential: str,
        n_train: Size,
        n_validation: Size,
        n_test: Size,
        n_out_of_domain: Size,
        split_seed: NonNegativeInt,
        workers: PositiveInt | None,
        cache: str | None,
        oracle: Labeller,
    ) -> None:
        require_plain(pair_style, "dataset.pair_style")
        require_plain(potential, "dataset.potential")
        self.glasses, self.glass_seed = glasses, glass_seed
        self.cold = [(float(temperature), [0.0] * len(STRAINS)) for temperature in temperatures]
        self.far = [(float(temperature), [0.0] * len(STRAINS)) for temperature in hot_temperatures]
        self.far += [(float(strain_temperature), list(map(float, strain))) for strain in strains]
        self.recipe = Recipe(
            cells=tuple(cells),
            density=float(density),
            melt_temperature=float(melt_temperature),
            melt_ps=float(melt_ps),
            cooling=[tuple(map(float, pair)) for pair in cooling],
            conditions=self.cold,
            equilibration_ps=float(equilibration_ps),
            interval_ps=float(interval_ps),
            frames=frames,
            timestep_fs=float(timestep_fs),
            pair_style=pair_style,
            potential=potential,
            seed=0,
        )
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test, OUT_OF_DOMAIN: n_out_of_domain}
        self.split_seed, self.workers, self.cache, self.oracle = split_seed, workers, cache, oracle
        self.subset = f"{24 * int(np.prod(cells))}-atoms"

    def load(self) -> Structures:
        recipes = [
            dataclasses.replace(self.recipe, conditions=conditions, seed=derive(self.glass_seed, "glass", number))
            for number, conditions in enumerate(self._conditions())
        ]
        folder = cache_folder(self.cache) / "silica_glass"
        paths = glasses(recipes, folder, self.workers or provenance.cores())
        frames = [atoms for path in paths for atoms in _read(path)]
        try:
            labels = self.oracle.label(frames)
        finally:
            self.oracle.close()
        if labels.failures:
            number, reason = next(iter(labels.failures.items()))
            log.warning(
                "%d of %d frames have no label, the first is %d: %s", len(labels.failures), len(frames), number, reason
            )
        labels.require_enough([f"frame {i}" for i in range(len(frames))], "the warnings above")
        # The places of frames tell their splits, also where some have no label.
        return dataclasses.replace(labels.structures(str(folder)), ids=np.array(labels.labelled))

    def split(self, structures: Structures) -> Splits:
        cold = np.arange(len(self.cold) * self.recipe.frames)
        first = len(cold) * np.arange(self.glasses)
        pools = {
            "train": np.arange(first[-2]),
            "validation": first[-2] + cold,
            "test": first[-1] + cold,
            OUT_OF_DOMAIN: first[-1] + len(cold) + np.arange(len(self.far) * self.recipe.frames),
        }
        splits: Splits = {}
        for name, frames in pools.items():
            pool = np.flatnonzero(np.isin(structures.ids, frames))
            count = frame_count(self.sizes[name], len(pool))
            if count is not None and count > len(pool):
                raise DataError(f"split '{name}' needs {count} frames, there are {len(pool)}; raise dataset.frames")
            order = numpy_generator(self.split_seed, "split", name).permutation(pool)
            splits[name] = np.sort(order[:count])
        return {name: splits[name] for name in (*SPLITS, OUT_OF_DOMAIN)}

    def _conditions(self) -> list[list[tuple[float, list[float]]]]:
        """What each glass is sampled at: the last also out of the domain."""
        return [self.cold] * (self.glasses - 1) + [self.cold + self.far]


def _read(path: Path) -> list[Atoms]:
    """Return the frames of a glass, condition after condition."""
    arrays = read_npz(path, {name: name for name in ("numbers", "positions", "cells")})
    return [
        Atoms(arrays["numbers"], positions, cell=cell, pbc=True)
        for series, cell in zip(arrays["positions"], arrays["cells"], strict=True)
        for positions in series
    ]
