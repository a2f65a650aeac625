"""Make uqbench/data/sources/ammonia.npz: 78 frames of NH3 near its minimum and 224 far from it, labelled with GFN2-xTB.

    python scripts/make_ammonia.py          (needs the extra `xtb`; less than a minute)

The first generation of the study has 78 structures near the minimum, up to about 5 kcal/mol above it, and none near the
planar transition state. Here they are drawn by normal modes: independent Gaussian amplitudes of a classical harmonic
molecule at 300 K, of which those are kept that lie within 5 kcal/mol, with the nitrogen at least 0.15 Å above the plane
of the hydrogens (0.39 Å in the minimum).

Out of domain stand two sets. `inversion`: 31 points along the umbrella inversion from the planar state to the minimum
(the rest of the path is its mirror image), the N-H length relaxed at each height of the nitrogen, and three copies of
each with Gaussian displacements of 0.03 Å. `hot`: frames of Langevin dynamics at
1000 and 2000 K, 50 of each, from five trajectories, 50 fs apart after 0.5 ps.

Frames are shifted to their centre of mass and rounded to float32 before they are labelled. torch is not imported here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from make_quickstart import label
from scipy.optimize import minimize_scalar
from tblite.ase import TBLite

from uqbench.seeding import numpy_generator

FRAMES = 78
TEMPERATURE = 300.0  # K, of the normal modes
HIGHEST = 5.0 * units.kcal / units.mol  # above the minimum
LEAST_HEIGHT = 0.15  # Å
HEIGHTS, COPIES, DISPLACEMENT = 31, 3, 0.03  # Å
HOT, TRAJECTORIES, PER_TRAJECTORY = (1000.0, 2000.0), 5, 10
TIME_STEP, FRICTION = 0.5, 0.02  # fs, 1/fs
EQUILIBRATION_STEPS, STRIDE = 1000, 100

OUTPUT = Path(__file__).resolve().parents[1] / "uqbench" / "datasets" / "ammonia.npz"


def calculator() -> Calculator:
    """Return GFN2-xTB with a tight SCF."""
    return TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)


def relaxed() -> Atoms:
    """Return NH3 at its minimum."""
    atoms = molecule("NH3")
    atoms.calc = calculator()
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    return atoms


def hessian(atoms: Atoms, step: float = 0.005) -> np.ndarray:
    """Return second derivatives (3n, 3n) in eV/Å² by central differences of forces."""
    rows = []
    for atom in range(len(atoms)):
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step
                moved.calc = calculator()
                ends.append(moved.get_forces().ravel())
            rows.append((ends[1] - ends[0]) / (2 * step))
    matrix = np.array(rows)
    return (matrix + matrix.T) / 2


def near(atoms: Atoms, rng: np.random.Generator) -> np.ndarray:
    """Return positions (FRAMES, 4, 3) displaced along the normal modes."""
    modes = VibrationsData.from_2d(atoms, hessian(atoms))
    energies, vectors = modes.get_energies_and_modes()
    lowest, positions = atoms.get_potential_energy(), []
    while len(positions) < FRAMES:
        # The six modes above translations and rotations; a classical amplitude has the variance kT / omega².
        omegas = np.real(energies[6:]) / units._hbar * units._e  # 1/s
        root_mass = np.sqrt(units.kB * TEMPERATURE * units._e / units._amu) * 1e10  # Å/s per sqrt(amu)
        amplitudes = rng.normal(size=6) * root_mass / omegas
        moved = atoms.copy()
        moved.positions += np.tensordot(amplitudes, vectors[6:], axes=1)
        moved.calc = calculator()
        if moved.get_potential_energy() - lowest <= HIGHEST and height(moved.positions) >= LEAST_HEIGHT:
            positions.append(moved.positions - moved.get_center_of_mass())
    return np.array(positions)


def height(positions: np.ndarray) -> float:
    """Return the distance of the nitrogen (first) from the plane of the hydrogens, Å."""
    n, a, b, c = positions
    normal = np.cross(b - a, c - a)
    return float(abs(np.dot(n - a, normal)) / np.linalg.norm(normal))


def pyramid(above: float, length: float) -> Atoms:
    """Return C3v ammonia with the nitrogen `above` the plane of the hydrogens and N-H bonds of some length, Å."""
    radius = np.sqrt(length**2 - above**2)
    angles = 2 * np.pi * np.arange(3) / 3
    hydrogens = np.stack([radius * np.cos(angles), radius * np.sin(angles), 0 * angles], axis=1)
    return Atoms("NH3", np.concatenate([[[0, 0, above]], hydrogens]))


def inversion(most: float, rng: np.random.Generator) -> np.ndarray:
    """Return positions along the umbrella path from height 0 to `most`, and displaced copies."""

    def energy(length: float, above: float) -> float:
        atoms = pyramid(above, length)
        atoms.calc = calculator()
        return atoms.get_potential_energy()

    positions = []
    for above in np.linspace(0, most, HEIGHTS):
        length = minimize_scalar(energy, bounds=(0.9, 1.2), args=(above,), method="bounded").x
        path = pyramid(above, length)
        path.positions -= path.get_center_of_mass()
        positions.append(path.positions)
        positions += [path.positions + rng.normal(0, DISPLACEMENT, path.positions.shape) for _ in range(COPIES)]
    return np.array(positions)


def hot(atoms: Atoms, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Return frames of Langevin dynamics."""
    positions = []
    for _ in range(TRAJECTORIES):
        moving = atoms.copy()
        moving.calc = calculator()
        MaxwellBoltzmannDistribution(moving, temperature_K=temperature, rng=rng)
        settings = {"temperature_K": temperature, "friction": FRICTION / units.fs, "fixcm": False, "rng": rng}
        dynamics = Langevin(moving, TIME_STEP * units.fs, **settings)
        dynamics.run(EQUILIBRATION_STEPS)
        for _ in range(PER_TRAJECTORY):
            dynamics.run(STRIDE)
            positions.append(moving.positions - moving.get_center_of_mass())
    return np.array(positions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    atoms = relaxed()
    parts = {
        "near": near(atoms, numpy_generator(arguments.seed, "ammonia", "near")),
        "inversion": inversion(height(atoms.positions), numpy_generator(arguments.seed, "ammonia", "inversion")),
    }
    for temperature in HOT:
        rng = numpy_generator(arguments.seed, "ammonia", "hot", int(temperature))
        parts[f"hot{temperature:.0f}"] = hot(atoms, temperature, rng)
    symbols = atoms.get_chemical_symbols()
    positions = np.concatenate(list(parts.values())).astype(np.float32)
    energies, forces = label(symbols, positions)
    kinds = np.repeat(list(parts), [len(part) for part in parts.values()])
    np.savez_compressed(
        arguments.output, symbols=np.array(symbols), positions=positions, energies=energies, forces=forces, kinds=kinds
    )
    lowest = atoms.get_potential_energy()
    for kind in parts:
        above = (energies[kinds == kind] - lowest) * units.mol / units.kcal
        largest = np.abs(forces[kinds == kind]).max() * units.mol / units.kcal
        print(f"{kind}: {len(above)} frames, {above.min():.2f} to {above.max():.2f} kcal/mol, ", end="")
        print(f"largest force component {largest:.0f} kcal/mol/Å")
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
