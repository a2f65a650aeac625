"""Structure in molecular dynamics: what a model makes of a material beside what a reference makes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from ase import Atoms, units

from uqbench.data.distributions import Description, describe
from uqbench.data.graph import Batch
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.evaluations.base import Evaluation, Rows, cost_rows
from uqbench.evaluations.structure_differences import curves, rows_of
from uqbench.figures.dataset import structure_panels
from uqbench.inference.trained_model import TrainedModel
from uqbench.md.driver import Dynamics, Predict
from uqbench.md.langevin import BAOAB, Noise, thermalise
from uqbench.md.limits import Limits
from uqbench.md.state import State
from uqbench.oracles.base import Oracle
from uqbench.runs.run_dir import RunDir
from uqbench.seeding import numpy_generator
from uqbench.uq.base import Prediction


class StructureComparison(Evaluation):
    """Radial distributions and coordination in Langevin dynamics on the model and, from the same starts, on an oracle.

    Start frames, velocities and noise are the same for both and for every model, so that the reference is computed
    once: its labels are kept in the oracle's cache. The run keeps structure.png and rdf.csv.

    Args:
        temperatures: K. replicas: at each. duration_ps, equilibration_ps: ps. timestep_fs: fs. friction_per_ps: 1/ps.
        record_every: steps between the frames analysed. reach: of g(r), Å, in so many bins.
        min_distance, kinetic_alarm, kinetic_excess: see `Limits`. skin: of the neighbour lists, Å.
        batch_size: replicas at once. seed: of frames, velocities and noise.
        reference: `oracle`, dynamics on it, or `split`, all frames of the split as they are, at whatever temperatures
            they were taken. oracle: of the reference; not used for `split`.
    """

    def __init__(
        self,
        *,
        temperatures: list[float],
        replicas: int,
        duration_ps: float,
        equilibration_ps: float,
        timestep_fs: float,
        friction_per_ps: float,
        record_every: int,
        reach: float,
        bins: int,
        min_distance: float,
        kinetic_alarm: float,
        kinetic_excess: float,
        skin: float,
        batch_size: int,
        seed: int,
        reference: Literal["oracle", "split"],
        oracle: Oracle,
    ) -> None:
        self.temperatures = [float(temperature) for temperature in temperatures]
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ConfigError(f"evaluation.temperatures: expected different numbers in K, got {self.temperatures}")
        above = {"temperatures": min(self.temperatures), "duration_ps": duration_ps, "timestep_fs": timestep_fs}
        for name, value in (above | {"reach": reach, "skin": skin}).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"evaluation.{name}: must be > 0, got {value}")
        counts = {"replicas": replicas, "record_every": record_every, "bins": bins, "batch_size": batch_size}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"evaluation.{name}: must be >= 1, got {value}")
        for name, value in {"friction_per_ps": friction_per_ps, "seed": seed}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"evaluation.{name}: must be >= 0, got {value}")
        self.steps, self.calm = (round(1e3 * ps / timestep_fs) for ps in (duration_ps, equilibration_ps))
        if not 0 <= self.calm <= self.steps - record_every:
            raise ConfigError(
                f"evaluation.equilibration_ps: {equilibration_ps} ps of {duration_ps} ps leave no frame to analyse, "
                f"one in {record_every} steps of {timestep_fs} fs"
            )
        self.integrator = BAOAB(timestep=timestep_fs, friction=friction_per_ps)
        # Bonds may break: in a hot glass they do.
        kinetic = {"kinetic_alarm": kinetic_alarm, "kinetic_excess": kinetic_excess}
        self.limits = Limits(min_distance, None, bond_tolerance=1.25, bond_stretch=None, **kinetic)
        self.replicas, self.every, self.reach, self.bins = replicas, record_every, reach, bins
        self.skin, self.batch_size, self.seed = skin, batch_size, seed
        self.reference, self.oracle = reference, oracle

    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Simulate on both, keep figure and curves, and return rows of target `structure` for every temperature.

        Raises DataError for frames that are not periodic in all directions or outside of the limits.
        """
        order = numpy_generator(self.seed, "md-frames").permutation(len(structures))
        starts = structures[order[np.arange(self.replicas) % len(order)]]
        self.limits.check_start(starts, split)
        method = trained.method.to(trained.device).eval()
        cutoff = method.potential.backbone.cutoff
        model = {"predict": method.predict, "dtype": method.potential.scale.dtype, "device": trained.device}
        described: dict[str, Description] = {}
        rows: Rows = []
        begun = time.perf_counter()
        taken = {temperature: self._simulate(starts, temperature, cutoff, **model) for temperature in self.temperatures}
        seconds = time.perf_counter() - begun
        for temperature, ours in taken.items():
            theirs = self._reference(structures, starts, temperature, cutoff)
            reference = describe(_joined(theirs), reach=self.reach, bins=self.bins)
            described[f"reference, {temperature:g} K"] = reference
            given = {"reach": self.reach, "bins": self.bins, "bond": reference.bond, "cutoff": reference.cutoff}
            found = [one and describe(one, **given) for one in ours]
            whole = describe(_joined(ours), **given) if any(found) else None
            if whole is not None:
                described[f"model, {temperature:g} K"] = whole
            # A split as the reference is no dynamics: nothing survives or explodes in it.
            simulated = theirs if self.reference == "oracle" else []
            references = [one and describe(one, **given) for one in simulated]
            rows += rows_of(f"temperature={temperature:g}K", whole, found, reference, references)
        run.write_bytes("structure.png", structure_panels(described, title))
        run.write_csv("rdf.csv", curves(described))
        steps = self.steps * len(self.temperatures) * math.ceil(self.replicas / self.batch_size)
        return rows + cost_rows(simulation_time=(seconds, "s"), steps_per_second=(steps / seconds, "1/s"))

    def _reference(
        self, structures: Structures, starts: Structures, temperature: float, cutoff: float
    ) -> list[Structures | None]:
        if self.reference == "split":
            return [structures]
        with self.oracle as oracle:
            predict = labels_of(oracle)
            found = self._simulate(starts, temperature, cutoff, predict=predict, dtype=torch.float64, device="cpu")
        if not any(found):
            raise DataError(f"evaluation.oracle: no dynamics on the oracle stays sound at {temperature:g} K")
        return found

    def _simulate(
        self, starts: Structures, temperature: float, cutoff: float, *, predict: Predict, dtype: torch.dtype, device
    ) -> list[Structures | None]:
        """Return the frames of each replica after equilibration, None where it exploded."""
        found: list[Structures | None] = []
        for begin in range(0, self.replicas, self.batch_size):
            ids = np.arange(begin, min(begin + self.batch_size, self.replicas))
            state = State.at_rest(starts[ids], np.full(len(ids), units.kB * temperature), ids, device)
            streams = {
                purpose: Noise(self.seed, [(purpose, temperature, int(k)) for k in ids], state.n_atoms, device)
                for purpose in ("md-velocities", "md-noise")
            }
            thermalise(state, streams["md-velocities"]())
            frames = Frames(first=self.calm, every=self.every)
            common = {"cutoff": cutoff, "skin": self.skin, "integrator": self.integrator, "limits": self.limits}
            Dynamics(state, predict=predict, dtype=dtype, noise=streams["md-noise"], **common).run(self.steps, frames)
            found += [frames.of(int(k), starts[[k]]) for k in ids]
        return found


class Frames:
    """Observes a simulation, see `dynamics.Observer`: keeps the positions of replicas that stay sound.

    Args:
        first: the step after which frames are kept. every: steps between them.
    """

    def __init__(self, *, first: int, every: int) -> None:
        self.first, self.every = first, every
        self.positions: dict[int, list[np.ndarray]] = {}

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        """Keep the positions of all replicas, if it is time."""
        if step <= self.first or step % self.every:
            return
        positions, edges = state.positions.cpu().numpy(), state.ptr.cpu().numpy()
        for place, number in enumerate(state.ids.tolist()):
            self.positions.setdefault(number, []).append(positions[edges[place] : edges[place + 1]])

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        """Forget a replica."""
        self.positions[int(state.ids[0])] = []

    def of(self, number: int, start: Structures) -> Structures | None:
        """Return what was kept of a replica that started from a frame, without labels; None if it exploded."""
        kept = self.positions.get(number)
        if not kept:
            return None
        n = len(kept)
        return Structures(
            numbers=np.tile(start.numbers, n),
            positions=np.concatenate(kept),
            cells=np.repeat(start.cells, n, axis=0),
            pbc=np.repeat(start.pbc, n, axis=0),
            ptr=np.arange(n + 1) * len(start.numbers),
            ids=np.arange(n),
            origin=f"dynamics from {start.origin}",
        )


def labels_of(oracle: Oracle) -> Predict:
    """Return an oracle as something that dynamics can run on; it raises DataError where the oracle has no label."""

    def predict(batch: Batch) -> Prediction:
        edges = batch.ptr.tolist()
        frames = [
            Atoms(batch.numbers[a:b].numpy(), batch.positions[a:b].numpy(), cell=cell, pbc=pbc)
            for a, b, cell, pbc in zip(edges, edges[1:], batch.cells.numpy(), batch.pbc.numpy(), strict=False)
        ]
        for atoms in frames:
            atoms.wrap()
        labels = oracle.label(frames)
        for reason in labels.failures.values():
            raise DataError(f"evaluation.oracle: no label for a frame of its own dynamics: {reason}")
        energy = torch.tensor([one.energy for one in labels.outcomes], dtype=torch.float64)
        forces = torch.tensor(np.concatenate([one.forces for one in labels.outcomes]))
        return Prediction(energy, forces, None, None, torch.zeros(len(forces)), torch.zeros(len(energy)))

    return predict


def _joined(parts: Sequence[Structures | None]) -> Structures:
    return Structures.concatenate([one for one in parts if one is not None])
