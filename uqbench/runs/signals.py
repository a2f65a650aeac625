"""Signals that ask a job to stop: Ctrl-C, SIGTERM, and those that SLURM sends ahead of a time limit."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def at_once(*, replacing: bool) -> Iterator[None]:
    """Within it every such signal raises KeyboardInterrupt, as Ctrl-C does; `replacing` also handlers of others.

    In another thread than the main one, where no handler can be set, nothing changes.
    """
    with _handled_by(signal.default_int_handler, lambda handler: replacing or handler == signal.SIG_DFL):
        yield


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Within it such a signal is only noted, for work that can stop cleanly at some places; the next one interrupts.

    Yields the function that says whether to stop; at the latest the end of the block interrupts. Signals that would not
    raise KeyboardInterrupt keep their handlers.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            signal.default_int_handler(number, frame)
        noted.append(number)

    with _handled_by(note, lambda handler: handler is signal.default_int_handler):
        yield lambda: bool(noted)
    if noted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled_by(handler: Callable, takes_place_of: Callable[[Any], bool]) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in SIGNALS if takes_place_of(old := signal.getsignal(number))}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
