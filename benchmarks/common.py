"""What the benchmarks share: systems, our model, schnetpack's, and interleaved timing."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import threadpoolctl
import torch
from ase import Atoms, units
from ase.build import bulk, molecule

from uqbench.data.graph import Batch, GraphSet
from uqbench.data.structures import Structures
from uqbench.models import compiled
from uqbench.models.blocks import Initialiser
from uqbench.models.compiled import allocator
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.painn import PaiNN
from uqbench.models.potential import Potential
from uqbench.models.schnet import SchNet

FEATURES, LAYERS, RADIAL, CUTOFF = 128, 3, 20, 5.0
BACKBONES = ("painn", "schnet")
PEER = "schnetpack"
MEMBERS = 5
SILICA = {"silica 648 x 1": (3, 3, 3), "silica 576 x 1": (2, 3, 4), "silica 192 x 1": (2, 2, 2)}
KCAL = units.kcal / units.mol
SLICE, LONGEST = (
    0.02,
    1000,
)  # seconds for which a short call is repeated before the clock is read, and how often at most


@dataclasses.dataclass(frozen=True)
class Race:
    """What is timed in turn.

    Attributes:
        ours: one call of ours.
        peer: the same by the peer; None where it is not installed.
        peer_name: who it is.
        flops: floating-point operations of the call: a number, None to count those of `ours`, or 0 where matrix
            products have no part in it.
        dtype: precision of the matrix products.
    """

    ours: Callable[[], object]
    peer: Callable[[], object] | None
    peer_name: str = PEER
    flops: float | None = None
    dtype: torch.dtype = torch.float32


Workloads = dict[str, Callable[[], Race]]


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
    formulas = {"ethanol": "CH3CH2OH", "NH3": "NH3"}
    if name in formulas:
        return molecule(formulas[name])
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
    return compile(Potential(backbone, heads={}, normalisation=constants, activation="silu", init=init))


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


def ready_peer(model: torch.nn.Module, batch: Batch) -> Callable[[], dict[str, torch.Tensor]]:
    """Return a call of schnetpack's model, which writes into the dictionary that it is given: a new one each time."""
    inputs = peer_inputs(batch)
    return lambda: model(dict(inputs))


def peer_models(kind: str, count: int) -> list[torch.nn.Module]:
    """Return `count` of the peer's models, none where it is not installed."""
    return [model for model in (peer_model(kind) for _ in range(count)) if model is not None]


def resident(workload: str) -> tuple[Structures, Batch]:
    """Return the frames of a workload and all of them as one batch."""
    frames = structures(workload)
    return frames, GraphSet(frames, CUTOFF, dtype=torch.float32).batch(range(len(frames)))


def interleaved(
    functions: list[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the median milliseconds of each function, called in turn so that a drifting machine hits all alike.

    A function that takes less than SLICE is called several times in a row and the time shared out.
    """
    calls = []
    for function in functions:
        function()
        start = clock()
        function()
        calls.append(min(max(int(SLICE / max(clock() - start, 1e-9)), 1), LONGEST))
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, count, taken in zip(functions, calls, times, strict=True):
            start = clock()
            for _ in range(count):
                function()
            taken.append(1e3 * (clock() - start) / count)
    return [statistics.median(taken) for taken in times]


def parser_of(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks of networks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of all (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--kernels", choices=("torch", "native", "auto"), default="auto", help="of our networks")
    return parser


def configure(options: argparse.Namespace) -> str:
    """Set threads, kernels and allocator as asked, and return the conditions in words."""
    torch.set_num_threads(options.threads)
    # For NumPy's matrix products, which the peers use.
    threadpoolctl.threadpool_limits(options.threads, "blas")
    tuned = allocator.tune()
    return (
        f"{processor()}, {options.threads} thread{'s' if options.threads > 1 else ''}, torch {torch.__version__}, "
        f"our kernels {compiled.use(options.kernels)}, allocator {'tuned' if tuned else 'as shipped'} for all, "
        f"medians of {options.repeats}"
    )


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
