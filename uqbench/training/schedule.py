"""The learning rate: warm-up, then reduce on plateau or cosine annealing."""

from __future__ import annotations

import math
from typing import Any

from uqbench.training.settings import Training

# An epoch counts as an improvement when the loss falls by this fraction, as in torch's ReduceLROnPlateau.
IMPROVEMENT = 1e-4


class Schedule:
    """Learning rate of every step; its state is a few numbers, so a run can resume exactly.

    Args:
        settings: lr, schedule, warmup_steps, patience, factor, min_lr and max_seconds of the training.
        total_steps: steps of the whole training.
    """

    def __init__(self, settings: Training, total_steps: int) -> None:
        self.settings, self.total_steps = settings, total_steps
        self.steps = 0
        self.plateau_lr = settings.lr
        self.best = math.inf
        self.stale_epochs = 0

    def lr(self, elapsed: float) -> float:
        """Return the learning rate of the coming step, `elapsed` seconds after the start of training."""
        s = self.settings
        base = self.plateau_lr
        if s.schedule == "cosine":
            progress = self.steps / max(self.total_steps, 1)
            if s.max_seconds is not None:
                progress = min(max(progress, elapsed / s.max_seconds), 1.0)
            base = s.min_lr + (s.lr - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        return base * min(1.0, (self.steps + 1) / (s.warmup_steps + 1))

    def after_epoch(self, loss: float) -> None:
        """Reduce the plateau's learning rate when the loss has not fallen for more than `patience` epochs."""
        # A likelihood can be negative: the fraction is of the magnitude.
        margin = IMPROVEMENT * abs(self.best) if math.isfinite(self.best) else 0.0
        if loss < self.best - margin:
            self.best, self.stale_epochs = loss, 0
            return
        self.stale_epochs += 1
        if self.stale_epochs > self.settings.patience:
            self.plateau_lr *= self.settings.factor
            self.stale_epochs = 0

    @property
    def exhausted(self) -> bool:
        """Whether the plateau's learning rate has fallen below `min_lr`, which ends the training."""
        return self.settings.schedule == "plateau" and self.plateau_lr < self.settings.min_lr

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers."""
        return {name: getattr(self, name) for name in ("steps", "plateau_lr", "best", "stale_epochs")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.__dict__.update(state)
