"""Progress of a training: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uqbench.checkpoints import TrainingState

LINE_SECONDS = 15.0


class Progress:
    """Shows epochs as they end.

    Args:
        epochs: the most there will be.
        shown: whether this process shows anything.
    """

    def __init__(self, epochs: int, *, shown: bool) -> None:
        self.epochs, self.shown = epochs, shown
        self._bar = None
        self._printed = 0.0
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=epochs, unit="epoch", desc="train", dynamic_ncols=True)

    def show(self, row: dict[str, float], state: TrainingState) -> None:
        """Show the row that the last epoch added to the history."""
        if not self.shown:
            return
        text = (
            f"validation force MAE {row['validation_force_mae']:.3f} kcal/mol/Å, energy MAE "
            f"{row['validation_energy_mae']:.3f} kcal/mol, lr {row['lr']:.1e}"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(state.epoch - self._bar.n)
            return
        last = state.stopped or state.epoch == self.epochs
        if last or time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            print(f"epoch {state.epoch}/{self.epochs} ({state.seconds:.0f} s): {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
