"""The settings of dynamics, the same for everything that simulates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from uqbench.errors import ConfigError
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

    timestep_fs: float
    friction_per_ps: float
    duration_ps: float
    equilibration_ps: float
    record_every: int
    skin: float
    batch_size: int
    limits: Limits

    def __post_init__(self) -> None:
        for name in ("timestep_fs", "duration_ps", "skin"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"protocol.{name}: must be > 0, got {getattr(self, name)}")
        for name in ("friction_per_ps", "equilibration_ps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"protocol.{name}: must be >= 0, got {getattr(self, name)}")
        for name in ("record_every", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"protocol.{name}: must be >= 1, got {getattr(self, name)}")
        if self.steps < self.record_every:
            raise ConfigError(
                f"protocol.duration_ps: {self.duration_ps} ps are {self.steps} steps of {self.timestep_fs} fs, fewer "
                f"than record_every ({self.record_every})"
            )
        if not self.analyses(self.steps - self.steps % self.record_every):  # the last record
            raise ConfigError(
                f"protocol.equilibration_ps: {self.equilibration_ps} ps of {self.duration_ps} ps leave no frame to "
                f"analyse, one in {self.record_every} steps of {self.timestep_fs} fs"
            )

    @property
    def steps(self) -> int:
        """Steps of a whole simulation."""
        return round(1e3 * self.duration_ps / self.timestep_fs)

    @property
    def duration(self) -> float:
        """Length of a whole simulation in ps, a whole number of steps."""
        return 1e-3 * self.steps * self.timestep_fs

    def records(self, step: int) -> bool:
        """Whether the frame after a step is recorded; 0 is the start."""
        return step % self.record_every == 0

    def analyses(self, step: int) -> bool:
        """Whether the frame after a step is recorded and belongs to what is analysed; the start never does."""
        return self.records(step) and step > round(1e3 * self.equilibration_ps / self.timestep_fs)


def different_temperatures(temperatures: Sequence[float]) -> list[float]:
    """Return temperatures in K as they were given; raises ConfigError unless they are different numbers > 0."""
    values = [float(temperature) for temperature in temperatures]
    if not values or len(set(values)) < len(values) or not all(0 < value < math.inf for value in values):
        raise ConfigError(f"evaluation.temperatures: expected different numbers > 0 in K, got {values}")
    return values
