"""The process that an engine runs in: takes geometries, sends back labels; torch is never imported here.

Started by `pool.Worker` as `python -m uqbench.oracles.worker DESCRIPTOR`, a socket inherited from the parent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import resource
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from ase import Atoms

from uqbench.config import locate
from uqbench.errors import UqbenchError

READY, BROKEN, LABEL, FAILED, MEMORY = "ready", "broken", "label", "failed", "memory"
# How Python, C++, Fortran, LAMMPS, OpenBLAS, the dynamic linker and other programs say that there is no memory left.
NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|out of memory|exceed memory limit|insufficient (virtual )?memory|memory allocation .*fail"
    r"|(cannot|could not|failed to|unable to) (re)?allocate|error allocating"
    r"|failed to map segment|cannot map zero-fill pages",
    re.IGNORECASE,
)


def main(descriptor: int) -> None:
    """Build the engine named in the first message, then label every geometry that arrives until the parent is gone."""
    connection = Connection(descriptor)
    target, settings, memory = connection.recv()
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # A thread of its own, so that a worker deep in a calculation notices as well that nobody waits for it. It starts
    # before the limit, which its stack would count against.
    threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    try:
        if memory is not None:
            limit_memory(memory)
        compute = locate(target).engine(**settings)
    except Exception as error:  # whatever an engine's import or constructor raises
        connection.send((BROKEN, describe(error)))
        return
    connection.send((READY, None))
    while True:
        geometry = tasks.get()
        try:
            energy, forces = compute(Atoms(**geometry))
            answer = LABEL, (float(energy), np.array(forces, np.float64))
        except Exception as error:  # one geometry; the next may be fine
            reason = describe(error)
            answer = MEMORY if NO_MEMORY.search(reason) else FAILED, reason
        connection.send(answer)


def limit_memory(size: int) -> None:
    """Have the operating system refuse this process, and each that it starts, more than so many bytes of memory.

    The limit is RLIMIT_DATA: on Linux all private memory that may be written to. RLIMIT_AS would count what is only
    reserved and the libraries' files as well, two to three times what a worker of xTB or LAMMPS uses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    # The hard limit too: no engine can raise it again.
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


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
