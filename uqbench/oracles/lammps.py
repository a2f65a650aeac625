"""Any potential that LAMMPS has; by default the one of Vashishta for silica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench import lammps_library
from uqbench.config import did_you_mean
from uqbench.config.annotations import Different, UnitInterval
from uqbench.errors import ConfigError
from uqbench.oracles.base import Compute, Engine

# eV per unit of energy; lengths are in Å in both.
ENERGY = {"metal": 1.0, "real": units.kcal / units.mol}
POTENTIAL = "<potential>"
# What a config may say besides. Others of LAMMPS run programs or write files, which no config should.
COMMANDS = (
    "angle_coeff angle_style atom_modify bond_coeff bond_style dielectric kspace_modify kspace_style mass neigh_modify "
    "neighbor newton pair_coeff pair_modify set special_bonds"
).split()


class Lammps(Engine):
    """Energies and forces of a new LAMMPS for each geometry, so that no memory of the last one enters a label.

    Geometries are periodic in all directions, in any cell, or molecules. Source of the default potential:
    Nakano, Kalia and Vashishta, J. Non-Cryst. Solids 171, 157 (1994).

    Args:
        units: of LAMMPS. atom_style: of LAMMPS; charges are set by `commands`.
        pair_style: with its arguments. pair_coeff: the arguments of each such command, in which <potential> stands
            for the file `potential`: a path, or the name of a file that LAMMPS ships; None for none.
        elements: of the LAMMPS types 1, 2, ...; frames with others fail.
        commands: further ones, such as `set type 1 charge 2.4` and `kspace_style ewald 1e-6`.
        revision: any text; another one makes other labels, for a potential file that changed.
        executor, workers, threads, timeout_s, memory_gb, retries, max_failed, cache: see `Engine`.
    """

    def __init__(
        self,
        *,
        units: Literal["metal", "real"],
        atom_style: Literal["atomic", "charge"],
        pair_style: str,
        pair_coeff: Sequence[str],
        potential: str | None,
        elements: Different[str],
        commands: Sequence[str],
        revision: str | None,
        executor: Literal["local", "slurm"],
        workers: PositiveInt | None,
        threads: PositiveInt,
        timeout_s: PositiveFloat,
        memory_gb: PositiveFloat | None,
        retries: NonNegativeInt,
        max_failed: UnitInterval,
        cache: str | None,
    ) -> None:
        for element in elements:
            if element not in atomic_numbers:
                raise ConfigError(
                    f"oracle.elements: unknown element '{element}'{did_you_mean(element, atomic_numbers)}"
                )
        for command in commands:
            if command.split()[:1] not in [[known] for known in COMMANDS]:
                raise ConfigError(f"oracle.commands: {command!r} is not allowed; allowed are {', '.join(COMMANDS)}")
        for key, texts in (
            ("pair_style", [pair_style]),
            ("pair_coeff", pair_coeff),
            ("commands", commands),
            ("potential", [potential or ""]),
        ):
            for text in texts:
                lammps_library.require_plain(text, f"oracle.{key}")
        settings = {"units": units, "atom_style": atom_style, "pair_style": pair_style, "potential": potential}
        settings |= {"pair_coeff": list(pair_coeff), "elements": list(elements), "commands": list(commands)}
        settings |= {"revision": revision}
        each = {"workers": workers, "threads": threads, "timeout_s": timeout_s, "memory_gb": memory_gb}
        each |= {"retries": retries, "max_failed": max_failed}
        super().__init__(settings, ["lammps"], executor=executor, cache=cache, **each)

    @staticmethod
    def engine(*, potential: str | None, revision: str | None, **settings: Any) -> Compute:
        """See `Engine.engine`."""
        lammps_library.new_instance().close()
        path = "" if potential is None else f'"{lammps_library.potential_file(potential)}"'

        def compute(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
            engine = lammps_library.new_instance()
            try:
                return _single_point(engine, atoms, path, **settings)
            finally:
                engine.close()

        return compute


def _single_point(
    engine: Any,
    atoms: Atoms,
    path: str,
    *,
    units: str,
    atom_style: str,
    pair_style: str,
    pair_coeff: Sequence[str],
    elements: Sequence[str],
    commands: Sequence[str],
) -> tuple[float, NDArray[np.float64]]:
    # Sorted atoms would be faster in long runs; gathering by id needs a map.
    for command in (f"units {units}", f"atom_style {atom_style}", "atom_modify map array sort 0 0"):
        engine.command(command)
    box = lammps_library.Box(atoms)
    lammps_library.create(engine, atoms, box, list(elements))
    engine.command(f"pair_style {pair_style}")
    for arguments in pair_coeff:
        engine.command(f"pair_coeff {arguments}".replace(POTENTIAL, path))
    for command in commands:
        engine.command(command)
    engine.command("run 0 post no")
    forces = np.array(engine.gather_atoms("f", 1, 3)).reshape(-1, 3)
    return engine.get_thermo("pe") * ENERGY[units], box.back(forces) * ENERGY[units]
