"""Worker processes of an oracle on this machine: started when needed, killed when they exceed their time.

Why not `pebble.ProcessPool`, which has time limits and replaces dead workers too? An executor on pebble 5.2.3 had 129
lines of code instead of some 180, and labelled as fast (200 ammonia molecules, GFN2-xTB, two workers: 0.21 s). But

- a worker that ended with exit code 0, as native code may end it, was noticed only when its time limit had passed;
- only the worker is ended: programs that the engine had started outlived the time limit, and of two workers stuck in
  native code the second was ended 3.5 s late;
- `multiprocessing` runs the main module again in each worker: scripts without `if __name__ == "__main__"` failed, and
  where the main module imports torch the first label took 4.6 s instead of 0.4 s;
- a parent ended by SIGKILL, the reason why an engine does not start, the time limit of starting, the last words of a
  crash and the number of threads needed code of ours as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from uqbench.errors import ConfigError, OracleError
from uqbench.oracles.worker import BROKEN, MEMORY, NO_MEMORY, READY

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
STARTUP_S = 300.0  # imports from a busy network file system can take minutes; no more than that

FAULT = "fault"
TIMEOUT, OUT_OF_MEMORY = "timeout", "ran out of memory"  # how such reasons begin

Answer = tuple[str, Any]
"""LABEL with (energy, forces); FAILED with the reason of an engine that refuses the geometry; or FAULT with what became
of its worker, which says as much of the machine as of the geometry."""


class WorkerPool:
    """Labels geometries with one engine in several processes at once.

    This is the executor of a single machine: anything else with `run` and `close` can take its place.

    Args:
        target: dotted name of the oracle, whose `engine(**settings)` the workers call.
        workers: processes at once. threads: of each. timeout_s: wall time for one geometry, in seconds.
        memory_gb: of each process, 1e9 bytes; None for no limit.
    """

    def __init__(
        self,
        target: str,
        settings: Mapping[str, Any],
        *,
        workers: int,
        threads: int,
        timeout_s: float,
        memory_gb: float | None,
    ) -> None:
        self.target, self.settings = target, dict(settings)
        self.workers, self.threads, self.timeout_s, self.memory_gb = workers, threads, timeout_s, memory_gb
        self._idle: list[Worker] = []
        self._has_started = False

    def run(self, tasks: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Answer]]:
        """Yield (key, answer) for every (key, geometry), as they are ready; tasks are taken only when they can start.

        A worker that exceeds its time or dies takes nothing with it but its own geometry. Raises ConfigError or
        OracleError when the engine cannot be started at all: where one worker has started, another that dies before it
        has is like one that dies at work. Close the iterator to stop the work.
        """
        tasks = iter(tasks)
        busy: dict[Connection, tuple[Worker, str]] = {}
        more = True
        try:
            while True:
                while more and len(busy) < self.workers:
                    key, geometry = next(tasks, (None, None))
                    if key is None:
                        more = False
                        break
                    worker = self._next_idle() or self._start()
                    busy[worker.connection] = worker, key
                    worker.send(geometry)
                if not busy:
                    return
                deadline = min(worker.deadline for worker, _ in busy.values())
                ready = wait(list(busy), timeout=max(0.0, deadline - time.monotonic()))
                for connection in list(busy):
                    worker, key = busy[connection]
                    if connection not in ready and time.monotonic() < worker.deadline:
                        continue
                    try:
                        answer = worker.receive() if connection in ready else worker.expire()
                    except OracleError as error:
                        if not self._has_started:
                            raise
                        answer = FAULT, str(error)
                    if answer is None:  # it has started and is at work now
                        self._has_started = True
                        continue
                    del busy[connection]
                    if worker.alive:
                        self._idle.append(worker)
                    yield key, answer
        finally:
            for worker, _ in busy.values():
                worker.kill()

    def close(self) -> None:
        """End all workers; the next run starts new ones."""
        while self._idle:
            self._idle.pop().kill()

    def _next_idle(self) -> Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:  # no geometry shall suffer for a worker that died while it had none
                return worker
            worker.kill()
        return None

    def _start(self) -> Worker:
        return Worker(self.target, self.settings, self.threads, self.timeout_s, self.memory_gb)


class Worker:
    """A worker process, seen from its parent. It ends with this object, and with this process however that ends."""

    def __init__(
        self, target: str, settings: Mapping[str, Any], threads: int, timeout_s: float, memory_gb: float | None
    ) -> None:
        self.timeout_s, self.memory_gb = timeout_s, memory_gb
        self.deadline = time.monotonic() + STARTUP_S
        self.starting, self.alive = True, True
        # Appended to, so that the file can be emptied between geometries while the worker holds it open.
        self.output = tempfile.TemporaryFile("a+b")
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = os.environ | {"PYTHONPATH": path} | dict.fromkeys(THREAD_VARIABLES, str(threads))
        with theirs:
            # Not multiprocessing's spawn: it imports the main module of this program, and torch with it.
            # -P: a file in the working directory must not take the place of a package.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "uqbench.oracles.worker", str(theirs.fileno())],
                **{"stdin": subprocess.DEVNULL, "stdout": self.output, "stderr": self.output},
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process to handle; and all that it starts can be killed
            )
        self.connection = Connection(ours.detach())
        self._finalizer = weakref.finalize(self, _end, self.process, self.connection, self.output)
        with contextlib.suppress(OSError):  # it is dead already: receive() will tell
            self.connection.send((target, dict(settings), None if memory_gb is None else int(1e9 * memory_gb)))

    def send(self, geometry: Mapping[str, Any]) -> None:
        """Hand over a geometry: the keyword arguments of `ase.Atoms`."""
        self.output.truncate(0)
        if not self.starting:
            self.deadline = time.monotonic() + self.timeout_s
        with contextlib.suppress(OSError):
            self.connection.send(dict(geometry))

    def receive(self) -> Answer | None:
        """Take what the worker sends; None when it has only started. A dead worker is an answer too."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            return self._dead()
        if kind == BROKEN:
            self.kill()
            self._require_memory(content)
            raise ConfigError(f"oracle: cannot be started: {content}")
        if kind == MEMORY:
            self.kill()  # what the engine was making is half made
            return FAULT, self._out_of_memory()
        if kind == READY:
            self.starting, self.deadline = False, time.monotonic() + self.timeout_s
            return None
        return kind, content

    def expire(self) -> Answer:
        """Kill the worker, which has used up its time."""
        self.kill()
        if self.starting:
            raise OracleError(f"oracle: a worker process did not start within {STARTUP_S:g} s")
        return FAULT, f"{TIMEOUT}: not done after {self.timeout_s:g} s"

    def kill(self) -> None:
        """End the worker and all that it has started."""
        self.alive = False
        self._finalizer()

    def _dead(self) -> Answer:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed the connection but lives
            self.process.wait(timeout=5.0)
        _kill_group(self.process)
        code = self.process.wait()
        self.output.seek(0)
        words = self.output.read().decode(errors="replace").strip().splitlines()
        last = f" ({words[-1].strip()})" if words else ""
        self.kill()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        # Native code that does not look at what it was given ends by a signal where there is no memory.
        limit = "" if self.memory_gb is None else f", with oracle.memory_gb={self.memory_gb:g}"
        reason = f"crash: the worker process ended {how}{last}{limit}"
        if self.starting:
            self._require_memory("\n".join(words))
            raise OracleError(f"oracle: {reason} before it had started")
        return FAULT, self._out_of_memory() if NO_MEMORY.search("\n".join(words)) else reason

    def _out_of_memory(self) -> str:
        return OUT_OF_MEMORY if self.memory_gb is None else f"{OUT_OF_MEMORY} (limit {self.memory_gb:g} GB)"

    def _require_memory(self, words: str) -> None:
        """Raise ConfigError where an engine has not started, and its last words are of memory."""
        if self.memory_gb is not None and NO_MEMORY.search(words):
            raise ConfigError(
                f"oracle.memory_gb: the engine does not even start within {self.memory_gb:g} GB: raise it"
            )


def _end(process: subprocess.Popen, connection: Connection, output: Any) -> None:
    _kill_group(process)
    process.wait()
    connection.close()
    output.close()


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
