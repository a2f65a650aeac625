"""What the benchmarks share: workloads, our model, schnetpack's, and interleaved timing."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule

from uqbench import allocator
from uqbench.backbones.blocks import Initialiser
from uqbench.backbones.painn import PaiNN
from uqbench.backbones.schnet import SchNet
from uqbench.graph import Batch, GraphSet
from uqbench.potential import Normalisation, Potential
from uqbench.structures import Structures

FEATURES, LAYERS, RADIAL, CUTOFF = 128, 3, 20, 5.0
BACKBONES = ("painn", "schnet")
PEER = "schnetpack"
SILICA = {"silica 576 x 1": (2, 3, 4), "silica 192 x 1": (2, 2, 2)}
KCAL = units.kcal / units.mol


def structures(workload: str) -> Structures:
    """Return the frames of a workload; rMD17 geometries where UQBENCH_DATA has them, else perturbed ideal ones."""
    if workload in SILICA:
        return _labelled([_silica(SILICA[workload])], workload)
    name, count = workload.split(" x ")
    file = Path(os.environ.get("UQBENCH_DATA", "."), "rmd17", "npz_data", f"rmd17_{name}.npz")
    if file.exists():
        with np.load(file) as data:
            rows = slice(int(count))
            return Structures.from_frames(
                data["nuclear_charges"],
                data["coords"][rows],
                data["energies"][rows] * KCAL,
                data["forces"][rows] * KCAL,
                origin=workload,
            )
    rng = np.random.default_rng(0)
    frames = [_molecule(name) for _ in range(int(count))]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return _labelled(frames, workload)


def _molecule(name: str) -> Atoms:
    if name == "ethanol":
        return molecule("CH3CH2OH")
    # Aspirin is not in ASE's collection: a chain of as many atoms in about the same volume takes its place.
    atoms = molecule("C6H6")
    second = molecule("CH3COCH3")[:9]
    second.translate([4.5, 0.0, 0.5])
    return atoms + second


def _silica(repeat: tuple[int, int, int]) -> Atoms:
    """Idealised beta-cristobalite, cells of 24 atoms at 2.2 g/cm³, with thermal noise."""
    silicon = bulk("Si", "diamond", a=7.16, cubic=True)
    bonds = [silicon.get_distance(0, j, mic=True, vector=True) for j in range(8)]
    nearest = [vector for vector in bonds if 0.1 < np.linalg.norm(vector) < 3.2]
    even = [atom.position for atom in silicon if atom.index % 2 == 0]
    oxygen = Atoms("O" * (len(even) * len(nearest)), [x + v / 2 for x in even for v in nearest])
    cell = silicon + oxygen
    cell.wrap()
    cell = cell.repeat(repeat)
    cell.positions += np.random.default_rng(0).normal(0, 0.05, cell.positions.shape)
    return cell


def _labelled(frames: list[Atoms], origin: str) -> Structures:
    rng = np.random.default_rng(1)
    for atoms in frames:
        atoms.info["energy"] = float(rng.normal())
        atoms.arrays["forces"] = rng.normal(0, 1, atoms.positions.shape)
    return Structures.from_atoms(frames, origin=origin, energy_key="energy", force_key="forces")


def our_model(kind: str, frames: Structures, members: int | None = None) -> Potential:
    """Return our PaiNN or SchNet at the size of the study, float32; with `members`, an ensemble."""
    constants, init = Normalisation.fit(frames), Initialiser(0, members)
    arguments = {"features": FEATURES, "layers": LAYERS, "radial_functions": RADIAL, "cutoff": CUTOFF, "init": init}
    arguments["n_species"] = len(constants.elements)
    if kind == "painn":
        backbone = PaiNN(**arguments, radial_basis="bessel", activation="silu")
    else:
        backbone = SchNet(**arguments, radial_basis="gaussian", activation="shifted_softplus")
    return Potential(backbone, heads={}, normalisation=constants, activation="silu", init=init)


def peer_model(kind: str) -> torch.nn.Module | None:
    """Return schnetpack's model of the same size, or None where schnetpack is not installed."""
    try:
        from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
        from schnetpack.model import NeuralNetworkPotential
        from schnetpack.nn import BesselRBF, CosineCutoff, GaussianRBF
        from schnetpack.representation import PaiNN as TheirPaiNN
        from schnetpack.representation import SchNet as TheirSchNet
    except ImportError as error:
        _say_once(f"{PEER} cannot be imported ({error}); benchmarks/README.md says how to install it")
        return None
    basis = BesselRBF(RADIAL, CUTOFF) if kind == "painn" else GaussianRBF(RADIAL, CUTOFF)
    representation = (TheirPaiNN if kind == "painn" else TheirSchNet)(FEATURES, LAYERS, basis, CosineCutoff(CUTOFF))
    return NeuralNetworkPotential(
        representation=representation,
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(n_in=FEATURES, output_key="energy"), Forces()],
    )


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def peer_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch in schnetpack's terms, every edge in both directions."""
    import schnetpack.properties as keys

    return {
        keys.Z: batch.numbers,
        keys.R: batch.positions.clone(),
        keys.idx_i: torch.cat([batch.first, batch.second]),
        keys.idx_j: torch.cat([batch.second, batch.first]),
        keys.offsets: torch.cat([batch.shifts, -batch.shifts]),
        keys.idx_m: batch.system,
        keys.n_atoms: batch.n_atoms,
    }


def interleaved(
    functions: list[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the median milliseconds of each function, called in turn so that a drifting machine hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 3):
        for function, taken in zip(functions, times, strict=True):
            start = clock()
            function()
            if repeat >= 3:
                taken.append(1e3 * (clock() - start))
    return [statistics.median(taken) for taken in times]


def start(description: str) -> argparse.Namespace:
    """Read the options that all benchmarks have, set the threads and the allocator, say what is measured."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tuned = allocator.tune()
    print(f"{description}; {platform.processor() or platform.machine()}, {options.threads} threads, torch ", end="")
    print(f"{torch.__version__}, allocator {'tuned' if tuned else 'as shipped'} for all, medians of {options.repeats}")
    return options


def main(description: str, prepare: Callable[[str, str], list[Callable[[], object]]]) -> None:
    """Time every workload that `prepare(kind, workload)` makes ready (ours first, then the peer if there is one)."""
    options = start(description)
    print(f"{'workload':<28}{'ours, ms':>10}{PEER + ', ms':>16}{'ratio':>8}")
    rows = []
    for kind in BACKBONES:
        for workload in ("ethanol x 64", "aspirin x 16", "silica 576 x 1"):
            name = f"{kind} {workload}"
            if options.only not in name:
                continue
            ours, *peer = interleaved(prepare(kind, workload), options.repeats)
            theirs = peer[0] if peer else None
            ratio = ours / theirs if peer else None
            rows.append({"workload": name, "ours_ms": ours, "peer": PEER, "peer_ms": theirs, "ratio": ratio})
            compared = f"{theirs:>16.1f}{ratio:>8.2f}" if peer else f"{'-':>16}{'-':>8}"
            print(f"{name:<28}{ours:>10.1f}{compared}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def ready(kind: str, workload: str) -> tuple[Potential, torch.nn.Module | None, Batch]:
    """Return our model, the peer's and the workload as one resident batch."""
    frames = structures(workload)
    batch = GraphSet(frames, CUTOFF, dtype=torch.float32).batch(range(len(frames)))
    return our_model(kind, frames), peer_model(kind), batch
