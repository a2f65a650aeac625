"""Settings of the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from uqbench.errors import ConfigError

POINT_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mae": lambda residual: residual.abs().mean(-1),
    "mse": lambda residual: residual.square().mean(-1),
    # Mean length of the error vector; the small constant keeps its gradient finite at zero error.
    "norm": lambda residual: (residual.square().sum(-1) + 1e-12).sqrt(),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the training loop.

    Attributes:
        epochs: passes over the training set at most.
        batch_size: frames per step over all processes.
        lr: Adam's learning rate.
        schedule: `plateau` (reduce when the validation loss stalls) or `cosine` (anneal to `min_lr` by the end).
        warmup_steps: steps of linear warm-up.
        patience, factor: of `plateau`.
        min_lr: training stops below it under `plateau`; the last learning rate under `cosine`.
        energy_weight, force_weight: loss coefficients for energies in kcal/mol and forces in kcal/mol/Å.
        force_loss: `mae` per component, `mse`, or `norm` of the error vector.
        ema_decay: of the exponential moving average of the weights, which is then what is validated and kept.
        gradient_clip: largest norm of each member's gradient.
        max_seconds: wall-clock budget; `cosine` anneals within it. Such a run depends on the machine's speed.
        precision: `float32` or `float64`.
        accelerator, devices, strategy: as in Lightning Fabric.
        checkpoint_seconds: least time between checkpoints.
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: Literal["plateau", "cosine"]
    warmup_steps: int
    patience: int
    factor: float
    min_lr: float
    energy_weight: float
    force_weight: float
    force_loss: Literal["mae", "mse", "norm"]
    ema_decay: float | None
    gradient_clip: float | None
    max_seconds: float | None
    precision: Literal["float32", "float64"]
    accelerator: Literal["cpu", "gpu", "cuda", "auto"]
    devices: int
    strategy: Literal["auto", "ddp_spawn", "ddp_fork"]
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "lr", "devices", "patience")
        wrong = [
            f"training.{name}: must be > 0, got {getattr(self, name)}" for name in positive if getattr(self, name) <= 0
        ]
        for name in ("energy_weight", "force_weight", "min_lr", "warmup_steps", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                wrong.append(f"training.{name}: must be >= 0, got {getattr(self, name)}")
        for name in ("gradient_clip", "max_seconds"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                wrong.append(f"training.{name}: must be > 0 or null, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            wrong.append(f"training.ema_decay: must lie between 0 and 1 or be null, got {self.ema_decay}")
        if not 0 < self.factor < 1:
            wrong.append(f"training.factor: must lie between 0 and 1, got {self.factor}")
        if self.energy_weight == self.force_weight == 0:
            wrong.append("training.energy_weight and training.force_weight are both 0: there is nothing to learn")
        if self.batch_size < self.devices:
            wrong.append(
                f"training.batch_size: {self.batch_size} is less than one frame for each of {self.devices} devices"
            )
        if wrong:
            raise ConfigError("\n".join(wrong))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of parameters, positions and forces."""
        return DTYPES[self.precision]
