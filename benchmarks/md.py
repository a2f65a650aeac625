"""Langevin dynamics of 100 ammonia molecules on one PaiNN: in one batch, and one by one through ASE, side by side.

The model is untrained (128 features, 3 layers, float32) with forces scaled down, so that nothing flies apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from common import CUTOFF, interleaved, our_model

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.md.driver import Dynamics, ForceField
from uqbench.md.langevin import Noise, thermalise
from uqbench.md.limits import Limits
from uqbench.md.protocol import Protocol
from uqbench.md.recording import Recorder
from uqbench.md.state import State
from uqbench.models.compiled import allocator
from uqbench.models.potential import Potential
from uqbench.uq.base import Prediction

REPLICAS, STEPS, TIMESTEP, FRICTION = 100, 20, 0.5, 10.0
TEMPERATURE = 1.0  # K: an untrained model lets warm atoms fly into each other; the time of a step is the same
PICOSECONDS = 10.0
FORCE_SCALE = 0.01  # eV/Å
PROTOCOL = Protocol(
    timestep_fs=TIMESTEP,
    friction_per_ps=FRICTION,
    duration_ps=PICOSECONDS,
    equilibration_ps=0.0,
    record_every=20,
    skin=1.0,
    batch_size=REPLICAS,
    # Every criterion is looked at, none is met.
    limits=Limits(
        min_distance=1e-3,
        max_distance=1e3,
        bond_tolerance=1.25,
        bond_stretch=1e3,
        kinetic_alarm=1e-300,
        kinetic_excess=1.0,
    ),
)


def frames() -> Structures:
    """Return slightly different ammonia molecules with small labels, which set the model's scale."""
    rng = np.random.default_rng(0)
    ideal = molecule("NH3")
    positions = ideal.positions + rng.normal(0, 0.02, (REPLICAS, 4, 3))
    forces = rng.normal(0, FORCE_SCALE, positions.shape)
    return Structures.from_frames(ideal.numbers, positions, np.zeros(REPLICAS), forces, origin="ammonia")


class PlainCalculator(Calculator):
    """What one writes first: a neighbour list, one call of the model, energy and forces."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        one = Structures(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cells=atoms.cell.array[None],
            pbc=atoms.pbc[None],
            ptr=np.array([0, len(atoms)]),
            ids=np.zeros(1, np.int64),
            origin="ase",
        )
        output = self.potential(GraphSet(one, CUTOFF, dtype=torch.float32).batch([0]))
        self.results = {"energy": float(output.energy), "forces": output.forces.double().numpy()}


def batched(potential: Potential, start: Structures) -> Dynamics:
    """Return all replicas as one simulation."""

    def predict(batch) -> Prediction:
        output = potential(batch)
        score = output.forces.square().sum(-1)
        return Prediction(output.energy, output.forces, None, None, score, output.energy)

    state = State.at_rest(start, np.full(REPLICAS, units.kB * TEMPERATURE), np.arange(REPLICAS), "cpu")
    velocities, noise = (
        Noise(0, [(purpose, k) for k in range(REPLICAS)], state.n_atoms, "cpu") for purpose in ("velocities", "noise")
    )
    thermalise(state, velocities())
    return Dynamics(state, ForceField(predict, torch.float32, "cpu", CUTOFF), PROTOCOL, noise)


def single(potential: Potential, start: Structures) -> Langevin:
    """Return the first replica as a simulation of ASE's."""
    atoms = Atoms(start.numbers[:4], start.positions[:4], calculator=PlainCalculator(potential))
    rng = np.random.default_rng(0)
    atoms.set_velocities(rng.normal(size=(4, 3)) * np.sqrt(units.kB * TEMPERATURE / atoms.get_masses()[:, None]))
    friction = FRICTION * 1e-3 / units.fs
    return Langevin(atoms, TIMESTEP * units.fs, temperature_K=TEMPERATURE, friction=friction, fixcm=False, rng=rng)


def main() -> None:
    """Time slices of both in turn, and say what 100 replicas would take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    allocator.tune()
    start = frames()
    potential = our_model("painn", start).eval()
    dynamics, ase = batched(potential, start), single(potential, start)
    starts = pd.DataFrame({"temperature": TEMPERATURE, "replica": range(REPLICAS), "frame": start.ids, "n_atoms": 4})
    recorder = Recorder(starts, PROTOCOL, keep=20, variance=np.square)
    all_at_once, one_by_one = interleaved(
        [lambda: dynamics.run(STEPS, recorder), lambda: ase.run(STEPS)], options.repeats
    )
    if len(dynamics.state) != REPLICAS:
        raise SystemExit("replicas have exploded; the times are not of all")
    step, one = all_at_once / STEPS, one_by_one / STEPS
    minutes = [1e3 * PICOSECONDS / TIMESTEP * time / 6e4 for time in (step, REPLICAS * one)]
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}, ", end=""
    )
    print(f"medians of {options.repeats} slices of {STEPS} steps")
    print(f"one step of {REPLICAS} replicas in one batch: {step:.1f} ms; of one through ASE: {one:.2f} ms")
    print(
        f"{REPLICAS} replicas x {PICOSECONDS:g} ps: {minutes[0]:.1f} min in one batch, {minutes[1]:.0f} min one by one"
    )
    print(f"ratio: {minutes[1] / minutes[0]:.1f}")
    if options.json:
        row = {"batch_ms": step, "ase_ms": one, "batch_minutes": minutes[0], "ratio": minutes[1] / minutes[0]}
        options.json.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
