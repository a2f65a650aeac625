"""Make uqbench/data/sources/quickstart.npz: 1000 frames of ethanol at 500 K, labelled with GFN2-xTB.

    python scripts/make_quickstart.py          (needs the extra `xtb`; about six minutes on two cores)

Ten independent NVT trajectories in the gas phase, each with its own random stream (`--seed`): start from the relaxed
molecule with Maxwell-Boltzmann velocities, Langevin dynamics (ASE) at 500 K with a time step of 0.5 fs and a friction
of 0.02 per fs, 2 ps of equilibration, then 100 frames 40 fs apart. Forces while sampling: GFN2-xTB through tblite.

Frames are shifted to their centre of mass and rounded to float32; energies (eV) and forces (eV/Å) are computed again
at the rounded positions with a tighter SCF, so that the labels belong to the stored geometries. Rows 100 k to
100 k + 99 are trajectory k. `temperatures` (F,) is the kinetic temperature of each frame in K, kept as a check on
the sampling. The same seed and versions give the same file. torch is never imported here: it has disturbed tblite
in a shared process.

Sources: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019); ASE's Langevin integrator.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np

from uqbench.seeding import numpy_generator

TRAJECTORIES = 10
FRAMES = 100
TEMPERATURE = 500.0  # K
TIME_STEP = 0.5  # fs
FRICTION = 0.02  # 1/fs
EQUILIBRATION_STEPS = 4000
STRIDE = 80  # steps between frames
LABEL_ACCURACY = 0.01  # of tblite; 1.0 is its default, smaller is tighter

OUTPUT = Path(__file__).resolve().parents[1] / "uqbench" / "datasets" / "quickstart.npz"


def relaxed_ethanol():
    """Return the relaxed molecule with its calculator attached."""
    from ase.build import molecule
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    atoms = molecule("CH3CH2OH")
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.005)
    return atoms


def sample(task: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Run trajectory `index` of `seed`; returns positions (FRAMES, n, 3) float32 and temperatures (FRAMES,)."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    seed, index = task
    rng = numpy_generator(seed, "quickstart", index)
    atoms = relaxed_ethanol()
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    dynamics = Langevin(
        atoms,
        TIME_STEP * units.fs,
        temperature_K=TEMPERATURE,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(EQUILIBRATION_STEPS)
    positions, temperatures = [], []
    for _ in range(FRAMES):
        dynamics.run(STRIDE)
        positions.append((atoms.positions - atoms.get_center_of_mass()).astype(np.float32))
        temperatures.append(2 * atoms.get_kinetic_energy() / (3 * len(atoms) * units.kB))
    return np.array(positions), np.array(temperatures, np.float32)


def label(symbols: list[str], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return energies (F,) in eV and forces (F, n, 3) in eV/Å of GFN2-xTB at positions (F, n, 3) in Å."""
    from ase import Atoms
    from tblite.ase import TBLite

    energies, forces = [], []
    for frame in positions:
        # A fresh calculator has no memory of the previous frame: the label depends on the geometry alone.
        atoms = Atoms(symbols, frame.astype(np.float64))
        atoms.calc = TBLite(method="GFN2-xTB", accuracy=LABEL_ACCURACY, verbosity=0)
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return np.array(energies, np.float64), np.array(forces, np.float32)


def run_trajectory(task: tuple[int, int]) -> dict[str, np.ndarray]:
    """Sample and label one trajectory."""
    positions, temperatures = sample(task)
    energies, forces = label(relaxed_ethanol().get_chemical_symbols(), positions)
    print(f"trajectory {task[1]}: mean temperature {temperatures.mean():.0f} K, energy spread {energies.std():.3f} eV")
    return {"positions": positions, "energies": energies, "forces": forces, "temperatures": temperatures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    # One thread each: nine atoms do not fill two, and the sums stay in the same order on every machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [(arguments.seed, index) for index in range(TRAJECTORIES)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        parts = pool.map(run_trajectory, tasks, chunksize=1)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez_compressed(arguments.output, symbols=np.array(relaxed_ethanol().get_chemical_symbols()), **arrays)
    print(f"{arguments.output}: {len(arrays['energies'])} frames, {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
