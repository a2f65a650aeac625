"""Progress of long work: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time

LINE_SECONDS = 15.0


class Display:
    """Shows how far work has come.

    Args:
        total: units of work that there will be at most.
        unit: what they are called. name: of the work.
        shown: whether this process shows anything.
    """

    def __init__(self, total: int, *, unit: str, name: str, shown: bool = True) -> None:
        self.total, self.unit, self.shown = total, unit, shown
        self._bar = None
        self._printed = 0.0
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=unit, desc=name, dynamic_ncols=True)

    def update(self, done: int, seconds: float, text: str, *, last: bool = False) -> None:
        """Show that `done` units took so many seconds, and what there is to say; the last line is never left out."""
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif last or done == self.total or time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            print(f"{self.unit} {done}/{self.total} ({seconds:.0f} s): {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


class Progress(Display):
    """Shows epochs of a training as they end.

    Args:
        epochs: the most there will be.
        shown: whether this process shows anything.
    """

    def __init__(self, epochs: int, *, shown: bool) -> None:
        super().__init__(epochs, unit="epoch", name="train", shown=shown)

    def show(self, row: dict[str, float], *, epoch: int, seconds: float, stopped: bool) -> None:
        """Show the row that the last epoch added to the history; `stopped` when there will be no other."""
        text = (
            f"validation force MAE {row['validation_force_mae']:.3f} kcal/mol/Å, energy MAE "
            f"{row['validation_energy_mae']:.3f} kcal/mol, lr {row['lr']:.1e}"
        )
        self.update(epoch, seconds, text, last=stopped)
