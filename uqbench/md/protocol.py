"""The settings of dynamics, the same for everything that simulates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from uqbench.md.limits import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How replicas move, for how long, what is recorded of them, and when one counts as exploded.

    Attributes:
        timestep_fs: fs. friction_per_ps: 1/ps; 0 conserves the energy. See `md.langevin.BAOAB`.
        duration_ps: ps. equilibration_ps: ps at the beginning that are left out of what is analysed.
        record_every: steps between records.
        skin: Å; how much farther than the cutoff the neighbour lists reach.
        batch_size: replicas that run at once.
        limits: what a sound replica never does.
    """

    timestep_fs: PositiveFloat
    friction_per_ps: NonNegativeFloat
    duration_ps: PositiveFloat
    equilibration_ps: NonNegativeFloat
    record_every: PositiveInt
    skin: PositiveFloat
    batch_size: PositiveInt
    limits: Limits

    @staticmethod
    def contradictions(
        *,
        timestep_fs: float,
        duration_ps: float,
        equilibration_ps: float,
        record_every: int,
        **_: Any,
    ) -> Iterator[str]:
        """Yield what is wrong between settings that are each right alone."""
        steps = _steps(duration_ps, timestep_fs)
        if steps < record_every:
            yield (
                f"duration_ps: {duration_ps} ps are {steps} steps of {timestep_fs} fs, fewer than record_every "
                f"({record_every})"
            )
        elif steps - steps % record_every <= _steps(equilibration_ps, timestep_fs):
            yield (
                f"equilibration_ps: {equilibration_ps} ps of {duration_ps} ps leave no frame to analyse, one in "
                f"{record_every} steps of {timestep_fs} fs"
            )

    @property
    def steps(self) -> int:
        """Steps of a whole simulation."""
        return _steps(self.duration_ps, self.timestep_fs)

    @property
    def duration(self) -> float:
        """Length of a whole simulation in ps, a whole number of steps."""
        return 1e-3 * self.steps * self.timestep_fs

    def records(self, step: int) -> bool:
        """Whether the frame after a step is recorded; 0 is the start."""
        return step % self.record_every == 0

    def analyses(self, step: int) -> bool:
        """Whether the frame after a step is recorded and belongs to what is analysed; the start never does."""
        return self.records(step) and step > _steps(self.equilibration_ps, self.timestep_fs)


def _steps(time_ps: float, timestep_fs: float) -> int:
    return round(1e3 * time_ps / timestep_fs)
