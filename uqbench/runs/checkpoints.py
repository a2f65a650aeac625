"""Training checkpoints: everything that a run needs to go on to the same bits, in files that hold no code."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from uqbench.errors import CheckpointError
from uqbench.runs.files import BEST, HISTORY, LAST, atomic_write, load_checkpoint, save_checkpoint


@dataclasses.dataclass
class TrainingState:
    """How far a training has come.

    Attributes:
        epoch: epochs done.
        step: steps done of the epoch after those. totals: what `training.Totals` has summed up over them.
        seconds: spent so far, over all interruptions.
        validation_batch: frames a time in the validation, which has a part in the last bits of its losses; None where
            that is as the settings say.
        stopped: whether it has ended before its last epoch.
        history: one row per epoch; holds nothing that depends on the clock, so that it repeats to the bit.
        best_loss, best: lowest validation loss and the method's state there.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    validation_batch: int | None = None
    stopped: bool = False
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best_loss: float = math.inf
    best: dict[str, Any] | None = None

    def record(self, row: dict[str, float], method: nn.Module) -> None:
        """Append an epoch's row, and keep the method's weights when its validation loss is the lowest so far."""
        self.history.append(row)
        if self.best is None or row["validation_loss"] < self.best_loss:
            self.best_loss = row["validation_loss"]
            weights = {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}
            self.best = {"epoch": row["epoch"], "method": weights}


class Checkpoints:
    """Writes last.pt, best.pt and history.csv, at most every so many seconds and always at the end.

    Args:
        folder: the run's directory.
        parts: what else has a state dict (model, optimizer, ...), by name.
        every: least seconds between two checkpoints.
        writes: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Any], *, every: float, writes: bool) -> None:
        self.folder, self.parts, self.every, self.writes = folder, parts, every, writes
        self._saved = time.monotonic()

    def resume(self) -> TrainingState:
        """Load last.pt into the parts and return its state, or return a fresh one where there is none."""
        if not (self.folder / LAST).exists():
            return TrainingState()
        content = load_checkpoint(self.folder / LAST)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
            state = TrainingState(**content["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self.folder / LAST} does not belong to this model ({reason}); delete the run to start again"
            ) from error
        # A process that was killed just after last.pt has left the others as they were before, or not at all.
        self._remake(state)
        return state

    def save(self, state: TrainingState, *, final: bool) -> None:
        """Write a checkpoint when it is due; the last one before best.pt, which can be remade from it."""
        if not self.writes or (not final and time.monotonic() - self._saved < self.every):
            return
        content = {name: part.state_dict() for name, part in self.parts.items()}
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        save_checkpoint(self.folder / LAST, content | {"state": fields})
        self._saved = time.monotonic()
        self._remake(state)

    def _remake(self, state: TrainingState) -> None:
        """Write what follows from the state, unless it is still in the first epoch."""
        if not self.writes or state.best is None:
            return
        save_checkpoint(self.folder / BEST, state.best)
        with atomic_write(self.folder / HISTORY) as path:
            pd.DataFrame(state.history).to_csv(path, index=False)


def load_best(folder: Path, method: nn.Module) -> dict[str, torch.Tensor]:
    """Load best.pt into the method and return its content; raises CheckpointError when it does not fit."""
    content = load_checkpoint(folder / BEST)
    try:
        method.load_state_dict(content["method"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / BEST} does not belong to this model ({reason})") from error
    return content


def trained(folder: Path, epochs: int) -> bool:
    """Return whether a training of so many epochs has come to its end in a folder."""
    if not (folder / LAST).exists():
        return False
    state = load_checkpoint(folder / LAST)["state"]
    return state["stopped"] or state["epoch"] >= epochs


def seconds_trained(folder: Path) -> float:
    """Return the time spent on the training in a folder up to its last checkpoint, over all interruptions."""
    return load_checkpoint(folder / LAST)["state"]["seconds"]
