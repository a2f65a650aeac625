"""MD stability: how long simulations on a potential stay sound, and whether its uncertainty warns of the end."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import torch
from ase import units

from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.evaluations.base import Evaluation, Rows, cost_rows
from uqbench.figures import dynamics as figures
from uqbench.figures.canvas import render
from uqbench.inference.trained_model import TrainedModel
from uqbench.md import outcome
from uqbench.md.driver import Dynamics
from uqbench.md.langevin import BAOAB, Noise, thermalise
from uqbench.md.limits import Limits
from uqbench.md.recording import Recorder
from uqbench.md.state import State
from uqbench.progress import Display
from uqbench.runs.run_dir import RunDir
from uqbench.seeding import numpy_generator

WARM = 20  # steps before the time to go is estimated


class Stability(Evaluation):
    """Langevin simulations of many replicas at several temperatures, all in one batch on the model.

    The run keeps md.parquet (recorded frames), md_replicas.csv (the fate of each replica), md_exploded.extxyz (the last
    frames of those that exploded) and figures.

    Args:
        temperatures: K. replicas: at each. start_frame: id of the frame that all start from, or None for frames of the
            split in random order, again from the first when all are taken; the same for every temperature.
        duration_ps: ps. timestep_fs: fs. friction_per_ps: 1/ps.
        min_distance, max_distance, bond_tolerance, bond_stretch, kinetic_alarm, kinetic_excess: see `Limits`.
        record_every: steps between records. keep_frames: records kept of an exploded replica.
        equilibration_ps, warning_frames: see `outcome.rows`.
        skin: of the neighbour lists, Å. batch_size: replicas at once. seed: of frames, velocities and noise.
    """

    def __init__(
        self,
        *,
        temperatures: list[float],
        replicas: int,
        start_frame: int | None,
        duration_ps: float,
        timestep_fs: float,
        friction_per_ps: float,
        min_distance: float,
        max_distance: float | None,
        bond_tolerance: float,
        bond_stretch: float | None,
        kinetic_alarm: float,
        kinetic_excess: float,
        record_every: int,
        keep_frames: int,
        equilibration_ps: float,
        warning_frames: int,
        skin: float,
        batch_size: int,
        seed: int,
    ) -> None:
        temperatures = [float(temperature) for temperature in temperatures]
        if not temperatures or len(set(temperatures)) < len(temperatures) or not all(map(_positive, temperatures)):
            raise ConfigError(f"evaluation.temperatures: expected different numbers > 0 in K, got {temperatures}")
        for name, value in {"duration_ps": duration_ps, "timestep_fs": timestep_fs, "skin": skin}.items():
            if not _positive(value):
                raise ConfigError(f"evaluation.{name}: must be > 0, got {value}")
        counts = {"replicas": replicas, "record_every": record_every, "keep_frames": keep_frames}
        for name, value in (counts | {"warning_frames": warning_frames, "batch_size": batch_size}).items():
            if value < 1:
                raise ConfigError(f"evaluation.{name}: must be >= 1, got {value}")
        if not 0 <= friction_per_ps < math.inf:
            raise ConfigError(f"evaluation.friction_per_ps: must be >= 0, got {friction_per_ps}")
        if seed < 0:
            raise ConfigError(f"evaluation.seed: must be >= 0, got {seed}")
        self.steps = round(1e3 * duration_ps / timestep_fs)
        if self.steps < record_every:
            raise ConfigError(
                f"evaluation.duration_ps: {duration_ps} ps are {self.steps} steps of {timestep_fs} fs, fewer than "
                f"record_every ({record_every})"
            )
        if not 0 <= equilibration_ps < duration_ps:
            raise ConfigError(
                f"evaluation.equilibration_ps: must lie between 0 and duration_ps ({duration_ps}), got "
                f"{equilibration_ps}"
            )
        self.limits = Limits(min_distance, max_distance, bond_tolerance, bond_stretch, kinetic_alarm, kinetic_excess)
        self.integrator = BAOAB(timestep=timestep_fs, friction=friction_per_ps)
        self.temperatures, self.replicas, self.start_frame = temperatures, replicas, start_frame
        self.timestep, self.record_every, self.keep_frames = timestep_fs, record_every, keep_frames
        self.equilibration, self.warning = equilibration_ps, warning_frames
        self.skin, self.batch_size, self.seed = skin, batch_size, seed

    @property
    def duration(self) -> float:
        """Length of the simulations in ps, a whole number of steps."""
        return 1e-3 * self.steps * self.timestep

    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Simulate, keep records, explosions and figures, and return metric rows for every temperature, and costs."""
        rows = self._start_rows(structures)
        starts = self._starts(structures, rows)
        if self.limits.min_distance >= trained.method.potential.backbone.cutoff:
            raise ConfigError("evaluation.min_distance: must be below the cutoff of the model")
        self.limits.check_start(structures[np.unique(rows)], split)
        begun = time.perf_counter()
        recorders, taken = self._simulate(trained, structures, rows, starts)
        seconds = time.perf_counter() - begun
        frames = pd.concat([recorder.frames() for recorder in recorders], ignore_index=True)
        fates = pd.concat([recorder.fates(self.duration) for recorder in recorders], ignore_index=True)
        run.write_parquet("md.parquet", frames)
        run.write_csv("md_replicas.csv", fates)
        lost = b"".join(filter(None, (recorder.trajectories() for recorder in recorders)))
        if lost:
            run.write_bytes("md_exploded.extxyz", lost)
        phases = outcome.marked(frames, fates, self.warning)
        for name, content in render(figures.drawings(phases, fates, title)).items():
            run.write_bytes(name, content)
        analysis = {"duration": self.duration, "equilibration": self.equilibration, "warning": self.warning}
        return outcome.rows(frames, fates, **analysis) + cost_rows(
            simulation_time=(seconds, "s"),
            steps_per_second=(taken["steps"] / seconds, "1/s"),
            replica_steps_per_second=(taken["replica_steps"] / seconds, "1/s"),
        )

    def _start_rows(self, structures: Structures) -> np.ndarray:
        """Return the row of the frame (replicas,) that each replica of a temperature starts from."""
        if self.start_frame is not None:
            found = np.flatnonzero(structures.ids == self.start_frame)
            if len(found) == 0:
                raise DataError(
                    f"evaluation.start_frame: no frame {self.start_frame} in this split of {structures.origin}; "
                    f"it has {', '.join(map(str, structures.ids[:5]))} ..."
                )
            return np.repeat(found[:1], self.replicas)
        # Cycled, so that more replicas leave those already there as they are.
        order = numpy_generator(self.seed, "md-frames").permutation(len(structures))
        return order[np.arange(self.replicas) % len(order)]

    def _starts(self, structures: Structures, rows: np.ndarray) -> pd.DataFrame:
        """Return one row per replica of all temperatures, by its id."""
        each = pd.DataFrame(
            {"replica": np.arange(self.replicas), "frame": structures.ids[rows], "n_atoms": structures.n_atoms[rows]}
        )
        per_temperature = [each.assign(temperature=temperature) for temperature in self.temperatures]
        columns = ["temperature", "replica", "frame", "n_atoms"]
        return pd.concat(per_temperature, ignore_index=True)[columns]

    def _simulate(
        self, trained: TrainedModel, structures: Structures, rows: np.ndarray, starts: pd.DataFrame
    ) -> tuple[list[Recorder], dict[str, int]]:
        """Run all replicas, at most `batch_size` at once; return what was recorded, and the steps taken."""
        method = trained.method.to(trained.device).eval()
        ids = np.arange(len(starts))
        batches = [ids[k : k + self.batch_size] for k in range(0, len(ids), self.batch_size)]
        progress = Display(self.steps * len(batches), unit="step", name="simulate")
        begun = time.perf_counter()
        recorders, taken = [], {"steps": 0, "replica_steps": 0}
        try:
            for number, chosen in enumerate(batches):
                before = number * self.steps

                def tick(step: int, running: int, before: int = before, total: int = len(chosen)) -> None:
                    if step == 0:
                        return
                    taken["steps"] += 1
                    taken["replica_steps"] += running
                    seconds, done = time.perf_counter() - begun, before + step
                    to_go = f"; {seconds / done * (progress.total - done):.0f} s to go" if step >= WARM else ""
                    progress.update(done, seconds, f"{running} of {total} replicas still run{to_go}")

                mine = starts.loc[chosen]
                recorder = Recorder(
                    mine,
                    timestep=self.timestep,
                    every=self.record_every,
                    keep=self.keep_frames,
                    variance=trained.calibration.forces.variance,
                    tick=tick,
                )
                state = self._state(structures[rows[mine.replica]], mine, trained.device)
                dynamics = Dynamics(
                    state,
                    predict=method.predict,
                    dtype=method.potential.scale.dtype,
                    cutoff=method.potential.backbone.cutoff,
                    skin=self.skin,
                    integrator=self.integrator,
                    noise=Noise(self.seed, self._streams("md-noise", mine), state.n_atoms, trained.device),
                    limits=self.limits,
                )
                dynamics.run(self.steps, recorder)
                recorders.append(recorder)
        finally:
            progress.close()
        return recorders, taken

    def _streams(self, purpose: str, starts: pd.DataFrame) -> list[tuple[str | int, ...]]:
        return [(purpose, float(row.temperature), int(row.replica)) for row in starts.itertuples()]

    def _state(self, frames: Structures, starts: pd.DataFrame, device: str | torch.device) -> State:
        state = State.at_rest(frames, units.kB * starts.temperature.to_numpy(), starts.index.to_numpy(), device)
        thermalise(state, Noise(self.seed, self._streams("md-velocities", starts), state.n_atoms, device)())
        return state


def _positive(value: float) -> bool:
    return 0 < value < math.inf
