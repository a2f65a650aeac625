"""Settings of the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from uqbench.config.annotations import Fraction

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

    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    schedule: Literal["plateau", "cosine"]
    warmup_steps: NonNegativeInt
    patience: PositiveInt
    factor: Fraction
    min_lr: NonNegativeFloat
    energy_weight: NonNegativeFloat
    force_weight: NonNegativeFloat
    force_loss: Literal["mae", "mse", "norm"]
    ema_decay: Fraction | None
    gradient_clip: PositiveFloat | None
    max_seconds: PositiveFloat | None
    precision: Literal["float32", "float64"]
    accelerator: Literal["cpu", "gpu", "cuda", "auto"]
    devices: PositiveInt
    strategy: Literal["auto", "ddp_spawn", "ddp_fork"]
    checkpoint_seconds: NonNegativeFloat

    @staticmethod
    def contradictions(
        *, energy_weight: float, force_weight: float, batch_size: int, devices: int, **_: Any
    ) -> Iterator[str]:
        """Yield what is wrong between settings that are each right alone."""
        if energy_weight == force_weight == 0:
            yield "energy_weight: expected a number > 0 where force_weight is 0 (there is nothing to learn), got 0"
        if batch_size < devices:
            yield f"batch_size: expected an integer >= {devices} (a frame for each of the devices), got {batch_size}"

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of parameters, positions and forces."""
        return DTYPES[self.precision]
