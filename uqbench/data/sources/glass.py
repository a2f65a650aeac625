"""One glass, as a program of its own: melted, cooled and sampled by molecular dynamics in LAMMPS.

Started by `melt_quench.make` as `python -m uqbench.data.sources.glass`: takes a `Recipe` as JSON in one line of its
standard input, prints its progress as JSON lines, writes the frames, and ends when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.units import _amu
from numpy.typing import NDArray

from uqbench import lammps_library
from uqbench.errors import DataError, UqbenchError
from uqbench.seeding import derive

ELEMENTS = ["Si", "O"]
FORMULA = 28.085 + 2 * 15.999  # amu
UNITS = 8  # formula units in a cell of cristobalite
DAMPING = 0.1  # ps, of the Nosé-Hoover thermostat
SKIN = 1.0  # Å, of LAMMPS's neighbour list: atoms of a solid move little
CHUNK = 1000  # steps between reports
MELTED = 2.5  # Å, root mean square displacement: nearly the distance of two oxygen atoms in a tetrahedron


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a glass is made; nothing else decides its frames but the version of LAMMPS.

    Attributes:
        cells: unit cells of cristobalite along x, y and z, 24 atoms each. density: g/cm³, kept from melt to glass.
        melt_temperature: K. melt_ps: time there.
        cooling: (temperature in K, rate in K/ps) of each linear ramp, one after the other.
        conditions: (temperature in K, strain) of each series of frames; a strain is xx, yy, zz, yz, xz and xy of a
            symmetric matrix. All series start from the cold glass.
        equilibration_ps: before the first frame of a series. interval_ps: between frames. frames: of each series.
        timestep_fs: of all dynamics.
        pair_style, potential: of LAMMPS, see conf/oracle/lammps.yaml.
        seed: of the velocities.
    """

    cells: tuple[int, int, int]
    density: float
    melt_temperature: float
    melt_ps: float
    cooling: list[tuple[float, float]]
    conditions: list[tuple[float, list[float]]]
    equilibration_ps: float
    interval_ps: float
    frames: int
    timestep_fs: float
    pair_style: str
    potential: str
    seed: int

    def steps(self, picoseconds: float) -> int:
        """Steps in a time, at least one."""
        return max(1, round(1000 * picoseconds / self.timestep_fs))

    def ramps(self) -> list[tuple[float, float, int]]:
        """Temperature at start and end in K, and steps, of the melt and of each ramp."""
        stages = [(self.melt_temperature, self.melt_temperature, self.steps(self.melt_ps))]
        for end, rate in self.cooling:
            start = stages[-1][1]
            stages.append((start, end, self.steps(abs(end - start) / rate)))
        return stages

    def total_steps(self) -> int:
        """Steps of all dynamics."""
        series = self.steps(self.equilibration_ps) + (self.frames - 1) * self.steps(self.interval_ps)
        return sum(steps for *_, steps in self.ramps()) + len(self.conditions) * series


def cristobalite(cells: tuple[int, int, int], density: float) -> Atoms:
    """Return ideal beta-cristobalite, SiO2 in a cubic cell, repeated and scaled to a density in g/cm³.

    Silicon stands as carbon does in diamond, oxygen in the middle of each bond.
    """
    edge = (UNITS * FORMULA * _amu * 1e3 / density * 1e24) ** (1 / 3)
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    bonds = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 4
    oxygen = (corners[:, None] + bonds / 2).reshape(-1, 3)
    fractions = np.concatenate([corners, corners + bonds[0], oxygen])
    atoms = Atoms(f"Si{UNITS}O{2 * UNITS}", scaled_positions=fractions, cell=[edge] * 3, pbc=True)
    return atoms.repeat(cells)


class Simulation:
    """Dynamics at constant volume of one frame, from velocities drawn at a temperature.

    Args:
        recipe: of which potential, time step and seed count.
        atoms: where it starts. temperature: K, at the start. stream: name of the random numbers.
        report: called with the number of steps taken.
    """

    def __init__(self, recipe: Recipe, atoms: Atoms, temperature: float, stream: str, report) -> None:
        self.atoms, self.box, self._report = atoms, lammps_library.Box(atoms), report
        self.engine = lammps_library.new_instance()
        path = lammps_library.potential_file(recipe.potential)
        for command in ("units metal", "atom_style atomic", "atom_modify map array"):
            self.engine.command(command)
        lammps_library.create(self.engine, atoms, self.box, ELEMENTS)
        seed = derive(recipe.seed, "glass", stream) % (2**31 - 2) + 1  # what LAMMPS takes
        # Twice the temperature: half of the kinetic energy goes into the vibrations.
        for command in (
            f"pair_style {recipe.pair_style}",
            f'pair_coeff * * "{path}" {" ".join(ELEMENTS)}',
            f"neighbor {SKIN} bin",
            "neigh_modify every 1 delay 0 check yes",
            f"timestep {recipe.timestep_fs / 1000}",
            f"velocity all create {2 * temperature} {seed} mom yes dist gaussian",
            "compute displacement all msd",
            f"thermo {CHUNK}",
        ):
            self.engine.command(command)

    def run(self, start: float, end: float, steps: int) -> None:
        """Take steps while the thermostat goes from `start` to `end` K."""
        self.engine.command(f"fix thermostat all nvt temp {start} {end} {DAMPING}")
        first = self.engine.extract_global("ntimestep")
        for done in range(0, steps, CHUNK):
            now = min(CHUNK, steps - done)
            self.engine.command(f"run {now} start {first} stop {first + steps} post no")
            self._report(now)

    def displacement(self) -> float:
        """Root mean square displacement of the atoms since the start, Å."""
        return float(np.sqrt(self.engine.numpy.extract_compute("displacement", 0, 1)[3]))

    def positions(self) -> NDArray[np.float64]:
        """Positions now, (n, 3) Å, in the orientation of the frame."""
        return self.box.back(np.array(self.engine.gather_atoms("x", 1, 3)).reshape(-1, 3))

    def close(self) -> None:
        """End it."""
        self.engine.close()


def make(recipe: Recipe, report) -> tuple[NDArray, NDArray, NDArray]:
    """Return numbers (n,), positions (C, F, n, 3) and cells (C, 3, 3) of F frames under each of C conditions.

    Raises DataError when the crystal did not melt.
    """
    glass = _cooled(recipe, report)
    positions, cells = [], []
    for number, (temperature, strain) in enumerate(recipe.conditions):
        atoms = glass.copy()
        atoms.set_cell(glass.cell[:] @ (np.eye(3) + strain_matrix(strain)), scale_atoms=True)
        with contextlib.closing(Simulation(recipe, atoms, temperature, f"series {number}", report)) as simulation:
            simulation.run(temperature, temperature, recipe.steps(recipe.equilibration_ps))
            series = [simulation.positions()]
            for _ in range(recipe.frames - 1):
                simulation.run(temperature, temperature, recipe.steps(recipe.interval_ps))
                series.append(simulation.positions())
        positions.append(series)
        cells.append(atoms.cell[:])
    return glass.numbers, np.array(positions), np.array(cells)


def _cooled(recipe: Recipe, report) -> Atoms:
    crystalline = cristobalite(recipe.cells, recipe.density)
    with contextlib.closing(Simulation(recipe, crystalline, recipe.melt_temperature, "melt", report)) as simulation:
        melt, *ramps = recipe.ramps()
        simulation.run(*melt)
        if simulation.displacement() < MELTED:
            moved = f"{simulation.displacement():.1f} Å in {recipe.melt_ps} ps at {recipe.melt_temperature} K"
            raise DataError(
                f"the crystal did not melt (its atoms moved by {moved}); raise dataset.melt_temperature or melt_ps"
            )
        for ramp in ramps:
            simulation.run(*ramp)
        glass = crystalline.copy()
        glass.positions = simulation.positions()
    return glass


def strain_matrix(strain: list[float]) -> NDArray[np.float64]:
    """Return the symmetric matrix (3, 3) of the strains xx, yy, zz, yz, xz, xy."""
    xx, yy, zz, yz, xz, xy = strain
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def main() -> None:
    """Make the glass that standard input describes; see the head of this module."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    taken = 0

    def report(steps: int) -> None:
        nonlocal taken
        taken += steps
        print(json.dumps({"steps": taken}), flush=True)

    try:
        numbers, positions, cells = make(Recipe(**job["recipe"]), report)
        with Path(job["path"]).open("wb") as file:
            np.savez_compressed(file, numbers=numbers, positions=positions, cells=cells)
    except UqbenchError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    except Exception as error:  # whatever LAMMPS raises about the recipe
        print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())}), flush=True)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
