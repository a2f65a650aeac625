"""Milliseconds per single point through the ASE calculator, against the bare model call plus a neighbour list."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
from ase import Atoms
from common import BACKBONES, CUTOFF, configure, interleaved, our_model, parser_of, structures
from vesin import NeighborList

from uqbench.data.graph import GraphSet
from uqbench.data.sources.quickstart import Quickstart
from uqbench.data.structures import Structures
from uqbench.inference.calculator import UQCalculator
from uqbench.inference.trained_model import TrainedModel
from uqbench.uq.deterministic import Deterministic
from uqbench.uq.ensemble import Ensemble

STEP = 0.02  # Å, as far as atoms go in a femtosecond or two
WORKLOADS = ("ethanol", "silica 192 x 1")
METHODS = ("deterministic", "ensemble")


def frames_of(workload: str) -> Structures:
    """Return one frame with labels: embedded ethanol, or periodic silica."""
    if workload == "ethanol":
        return Quickstart(n_train=1, n_validation=1, n_test=1, block=1, split_seed=0).load()[[0]]
    return structures(workload)


def method_of(uq: str, kind: str, frames: Structures) -> Deterministic | Ensemble:
    """Return an untrained method at the size of the study, float32; the ensemble has 5 members."""

    def build(members: int | None, heads: dict[str, int]) -> object:
        return our_model(kind, frames, members)

    if uq == "deterministic":
        return Deterministic(build).eval()
    return Ensemble(build, members=5, ddof=1, bootstrap=False).eval()


def prepare(uq: str, kind: str, workload: str) -> list[Callable[[], object]]:
    """Return the bare call, then single points with the default skin and without one, all on atoms that move."""
    frames = frames_of(workload)
    method = method_of(uq, kind, frames)
    batch = GraphSet(frames, CUTOFF, dtype=method.potential.scale.dtype).batch([0])
    finder = NeighborList(cutoff=CUTOFF, full_list=False)
    model = TrainedModel(method, None, "cpu")

    def bare() -> None:
        finder.compute(frames.positions, frames.cells[0], frames.pbc[0], quantities="ijS")
        method.potential(batch)

    def through(calculator: UQCalculator) -> Callable[[], object]:
        atoms = Atoms(frames.numbers, frames.positions, cell=frames.cells[0], pbc=frames.pbc[0], calculator=calculator)
        rng = np.random.default_rng(0)

        def single_point() -> None:
            atoms.positions = frames.positions + rng.uniform(-STEP, STEP, frames.positions.shape)
            atoms.get_potential_energy()
            atoms.get_forces()

        return single_point

    return [bare, through(model.calculator()), through(model.calculator(skin=0.0))]


def main() -> None:
    """Print one line per method, backbone and system."""
    # Wall time on a busy machine is mostly other programs' time, and the overhead looked for is below a millisecond.
    options = parser_of(__doc__).parse_args()
    print(f"processor time; {configure(options)}")
    print(f"{'workload':<40}{'bare, ms':>10}{'calculator, ms':>16}{'overhead':>10}{'without skin':>14}")
    rows = []
    for uq in METHODS:
        for kind in BACKBONES:
            for workload in WORKLOADS:
                name = f"{uq} {kind} {workload}"
                if options.only not in name:
                    continue
                bare, skin, none = interleaved(prepare(uq, kind, workload), options.repeats, time.process_time)
                overheads = {"overhead": skin / bare, "overhead_without_skin": none / bare}
                rows.append({"workload": name, "bare_ms": bare, "calculator_ms": skin} | overheads)
                print(f"{name:<40}{bare:>10.2f}{skin:>16.2f}{skin / bare:>10.3f}{none / bare:>14.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
