"""The process that an engine runs in: takes geometries, sends back labels; torch is never imported here.

Started by `pool.Worker` as `python -m uqbench.oracles.worker DESCRIPTOR`, a socket inherited from the parent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from ase import Atoms

from uqbench.config import locate
from uqbench.errors import UqbenchError

READY, BROKEN, LABEL, FAILED = "ready", "broken", "label", "failed"


def main(descriptor: int) -> None:
    """Build the engine named in the first message, then label every geometry that arrives until the parent is gone."""
    connection = Connection(descriptor)
    target, settings = connection.recv()
    try:
        compute = locate(target).engine(**settings)
    except Exception as error:  # whatever an engine's import or constructor raises
        connection.send((BROKEN, describe(error)))
        return
    connection.send((READY, None))
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # A thread of its own, so that a worker deep in a calculation notices as well that nobody waits for it.
    threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    while True:
        geometry = tasks.get()
        try:
            energy, forces = compute(Atoms(**geometry))
            answer = LABEL, (float(energy), np.array(forces, np.float64))
        except Exception as error:  # one geometry; the next may be fine
            answer = FAILED, describe(error)
        connection.send(answer)


def describe(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, UqbenchError):
        return str(error)
    return ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))


def _listen(connection: Connection, tasks: queue.SimpleQueue) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks.put(connection.recv())
    # The worker leads a process group of its own: programs that the engine has started end with it.
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
