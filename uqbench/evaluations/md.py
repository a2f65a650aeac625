"""MD stability: how long simulations on a potential stay sound, and whether its uncertainty warns of the end."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.config.annotations import Different
from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.evaluations.base import Evaluation, Rows, cost_rows
from uqbench.figures import dynamics as figures
from uqbench.figures.canvas import render
from uqbench.inference.trained_model import TrainedModel
from uqbench.md import outcome
from uqbench.md.driver import ForceField, simulate, start_rows
from uqbench.md.protocol import Protocol
from uqbench.md.recording import Recorder
from uqbench.progress import Display
from uqbench.runs.run_dir import RunDir

WARM = 20  # steps before the time to go is estimated


class Stability(Evaluation):
    """Langevin simulations of many replicas at several temperatures, all in one batch on the model.

    The run keeps md.parquet (recorded frames), md_replicas.csv (the fate of each replica), md_exploded.extxyz (the last
    frames of those that exploded) and figures.

    Args:
        temperatures: K. replicas: at each. start_frame: id of the frame that all start from, or None for frames of the
            split in random order, again from the first when all are taken; the same for every temperature.
        protocol: of the simulations.
        keep_frames: records kept of an exploded replica. warning_frames: see `outcome.rows`.
        seed: of frames, velocities and noise.
    """

    def __init__(
        self,
        *,
        temperatures: Different[PositiveFloat],
        replicas: PositiveInt,
        start_frame: NonNegativeInt | None,
        protocol: Protocol,
        keep_frames: PositiveInt,
        warning_frames: PositiveInt,
        seed: NonNegativeInt,
    ) -> None:
        self.temperatures, self.replicas = [float(temperature) for temperature in temperatures], replicas
        self.start_frame, self.protocol, self.seed = start_frame, protocol, seed
        self.keep_frames, self.warning_frames = keep_frames, warning_frames

    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Simulate, keep records, explosions and figures, and return metric rows for every temperature, and costs."""
        chosen = self._start_rows(structures)
        self.protocol.limits.check_start(structures[np.unique(chosen)], split)
        chosen = np.tile(chosen, len(self.temperatures))
        starts = pd.DataFrame(
            {
                "temperature": np.repeat(self.temperatures, self.replicas),
                "replica": np.tile(np.arange(self.replicas), len(self.temperatures)),
                "frame": structures.ids[chosen],
                "n_atoms": structures.n_atoms[chosen],
            }
        )
        progress = _Progress(self.protocol, len(starts))
        variance = trained.calibration.forces.variance
        recorder = Recorder(starts, self.protocol, keep=self.keep_frames, variance=variance, tick=progress)
        try:
            simulate(
                structures[chosen],
                starts.temperature.to_numpy(),
                list(zip(starts.temperature.tolist(), starts.replica.tolist(), strict=True)),
                force_field=ForceField.of(trained.method.to(trained.device).eval()),
                protocol=self.protocol,
                seed=self.seed,
                observer=recorder,
            )
        finally:
            progress.display.close()
        seconds = progress.seconds
        frames, fates = recorder.frames(), recorder.fates()
        run.write_parquet("md.parquet", frames)
        run.write_csv("md_replicas.csv", fates)
        if (lost := recorder.trajectories()) is not None:
            run.write_bytes("md_exploded.extxyz", lost)
        phases = outcome.marked(frames, fates, self.warning_frames)
        for name, content in render(figures.drawings(phases, fates, title)).items():
            run.write_bytes(name, content)
        times = {"duration": self.protocol.duration, "equilibration": self.protocol.equilibration_ps}
        return outcome.rows(frames, fates, **times, warning=self.warning_frames) + cost_rows(
            simulation_time=(seconds, "s"),
            steps_per_second=(progress.steps / seconds, "1/s"),
            replica_steps_per_second=(progress.replica_steps / seconds, "1/s"),
        )

    def _start_rows(self, structures: Structures) -> NDArray[np.int64]:
        """Return the row of the frame (replicas,) that each replica of a temperature starts from."""
        if self.start_frame is None:
            return start_rows(len(structures), self.replicas, self.seed)
        rows = np.flatnonzero(structures.ids == self.start_frame)
        if len(rows) == 0:
            raise DataError(
                f"evaluation.start_frame: no frame {self.start_frame} in this split of {structures.origin}; "
                f"it has {', '.join(map(str, structures.ids[:5]))} ..."
            )
        return np.repeat(rows[:1], self.replicas)


class _Progress:
    """Counts the steps that are taken, and shows how far the simulations are."""

    def __init__(self, protocol: Protocol, replicas: int) -> None:
        self.per_batch = protocol.steps
        total = protocol.steps * math.ceil(replicas / protocol.batch_size)
        self.display = Display(total, unit="step", name="simulate")
        self.begun = time.perf_counter()
        self.batches = self.together = self.steps = self.replica_steps = 0

    def __call__(self, step: int, running: int) -> None:
        """Count a step, with which `running` replicas go on; a batch begins with step 0."""
        if step == 0:
            self.batches, self.together = self.batches + 1, running
            return
        self.steps += 1
        self.replica_steps += running
        seconds, done = self.seconds, (self.batches - 1) * self.per_batch + step
        to_go = f"; {seconds / done * (self.display.total - done):.0f} s to go" if step >= WARM else ""
        self.display.update(done, seconds, f"{running} of {self.together} replicas still run{to_go}")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun
