"""Structure in molecular dynamics: what a model makes of a material beside what a reference makes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.config.annotations import Different
from uqbench.data.distributions import Description, describe
from uqbench.data.graph import Batch
from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.evaluations.base import Evaluation, Rows, cost_rows
from uqbench.evaluations.structure_differences import curves, rows_of
from uqbench.figures.dataset import structure_panels
from uqbench.inference.trained_model import TrainedModel
from uqbench.md.driver import ForceField, Predict, simulate, start_rows
from uqbench.md.protocol import Protocol
from uqbench.md.state import State
from uqbench.oracles.base import Oracle
from uqbench.runs.run_dir import RunDir
from uqbench.uq.base import Prediction


class StructureComparison(Evaluation):
    """Radial distributions and coordination in Langevin dynamics on the model and, from the same starts, on an oracle.

    Start frames, velocities and noise are the same for both and for every model, so that the reference is computed
    once: its labels are kept in the oracle's cache. The run keeps structure.png and rdf.csv.

    Args:
        temperatures: K. replicas: at each.
        protocol: of the simulations; its records after equilibration are analysed.
        reach: of g(r), Å, in so many bins.
        seed: of frames, velocities and noise.
        reference: `oracle`, dynamics on it, or `split`, all frames of the split as they are, at whatever temperatures
            they were taken. oracle: of the reference; not used for `split`.
    """

    def __init__(
        self,
        *,
        temperatures: Different[PositiveFloat],
        replicas: PositiveInt,
        protocol: Protocol,
        reach: PositiveFloat,
        bins: PositiveInt,
        seed: NonNegativeInt,
        reference: Literal["oracle", "split"],
        oracle: Oracle,
    ) -> None:
        self.temperatures, self.replicas = [float(temperature) for temperature in temperatures], replicas
        self.protocol = protocol
        self.shells, self.seed = {"reach": reach, "bins": bins}, seed
        self.reference, self.oracle = reference, oracle

    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Simulate on both, keep figure and curves, and return rows of target `structure` for every temperature.

        Raises DataError for frames that are not periodic in all directions or outside of the limits.
        """
        starts = structures[start_rows(len(structures), self.replicas, self.seed)]
        self.protocol.limits.check_start(starts, split)
        model = ForceField.of(trained.method.to(trained.device).eval())
        begun = time.perf_counter()
        simulated = {temperature: self._simulate(starts, temperature, model) for temperature in self.temperatures}
        seconds = time.perf_counter() - begun
        described: dict[str, Description] = {}
        rows: Rows = []
        for temperature, replicas in simulated.items():
            references = self._reference(structures, starts, temperature, model.cutoff)
            reference = describe(_joined(references), **self.shells)
            described[f"reference, {temperature:g} K"] = reference
            alike = {**self.shells, "bond": reference.bond, "cutoff": reference.cutoff}
            by_replica = [one and describe(one, **alike) for one in replicas]
            together = describe(_joined(replicas), **alike) if any(replicas) else None
            if together is not None:
                described[f"model, {temperature:g} K"] = together
            # A split as the reference is no dynamics: nothing survives or explodes in it.
            dynamics = references if self.reference == "oracle" else []
            references = [one and describe(one, **alike) for one in dynamics]
            rows += rows_of(f"temperature={temperature:g}K", together, reference, by_replica, references)
        run.write_bytes("structure.png", structure_panels(described, title))
        run.write_csv("rdf.csv", curves(described))
        batches = len(self.temperatures) * math.ceil(self.replicas / self.protocol.batch_size)
        steps_per_second = self.protocol.steps * batches / seconds
        return rows + cost_rows(simulation_time=(seconds, "s"), steps_per_second=(steps_per_second, "1/s"))

    def _reference(
        self, structures: Structures, starts: Structures, temperature: float, cutoff: float
    ) -> list[Structures | None]:
        if self.reference == "split":
            return [structures]
        with self.oracle as oracle:
            frames = self._simulate(starts, temperature, ForceField(labels_of(oracle), torch.float64, "cpu", cutoff))
        if not any(frames):
            raise DataError(f"evaluation.oracle: no dynamics on the oracle stays sound at {temperature:g} K")
        return frames

    def _simulate(self, starts: Structures, temperature: float, force_field: ForceField) -> list[Structures | None]:
        """Return the frames of each replica after equilibration, None where it exploded."""
        frames = Frames(starts, self.protocol)
        simulate(
            starts,
            np.full(self.replicas, temperature),
            [(temperature, replica) for replica in range(self.replicas)],
            force_field=force_field,
            protocol=self.protocol,
            seed=self.seed,
            observer=frames,
        )
        return [frames.of(replica) for replica in range(self.replicas)]


class Frames:
    """Observes simulations, see `md.driver.Observer`: keeps what is analysed of the replicas that stay sound."""

    def __init__(self, starts: Structures, protocol: Protocol) -> None:
        self.starts, self.protocol = starts, protocol
        self.positions: list[list[NDArray[np.float64]]] = [[] for _ in range(len(starts))]

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        """Keep the positions of all replicas, if it is time."""
        if self.protocol.analyses(step):
            parts = np.split(state.positions.cpu().numpy(), state.ptr[1:-1].cpu().numpy())
            for replica, positions in zip(state.ids.tolist(), parts, strict=True):
                self.positions[replica].append(positions)

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        """Forget a replica."""
        self.positions[int(state.ids[0])] = []

    def of(self, replica: int) -> Structures | None:
        """Return what was kept of a replica, without labels; None if it exploded."""
        start, n = self.starts[[replica]], len(self.positions[replica])
        if n == 0:
            return None
        return Structures(
            numbers=np.tile(start.numbers, n),
            positions=np.concatenate(self.positions[replica]),
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
