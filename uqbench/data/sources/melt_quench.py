"""Glasses on disk: each is made once, by a process of its own, whoever asks for it and however often."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from uqbench.data.sources.glass import Recipe
from uqbench.errors import ConfigError, DataError, UqbenchError
from uqbench.lammps_library import potential_file
from uqbench.progress import Display
from uqbench.runs import provenance
from uqbench.runs.files import atomic_write, locked

POLL_S = 0.5  # between looks at the progress
FORMAT = 1  # of what a recipe means; another one makes other glasses


class GlassError(UqbenchError):
    """A process that was to make a glass and ended without one."""


def glasses(recipes: Sequence[Recipe], folder: Path, workers: int) -> list[Path]:
    """Return the files of the glasses of some recipes, after making those that are not there, several at once.

    A file is found by all that decides its content: the recipe, the potential and the version of LAMMPS. Of two
    processes that want the same glasses one makes them and the other waits; glasses that are done stay when the rest
    is interrupted. Raises ConfigError when LAMMPS is missing or the folder cannot be written, DataError when a recipe
    makes no glass.
    """
    paths = [folder / f"{cache_key(recipe)}.npz" for recipe in recipes]
    missing = {path: recipe for path, recipe in zip(paths, recipes, strict=True) if not path.exists()}
    if not missing:
        return paths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            for path in sorted(missing):  # in one order, so that two processes cannot wait for each other
                locks.enter_context(locked(path))
            _make({path: recipe for path, recipe in missing.items() if not path.exists()}, workers)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"cannot write to {folder} ({reason}); set dataset.cache or the environment UQBENCH_CACHE"
        ) from error
    return paths


def cache_key(recipe: Recipe) -> str:
    """Return the name of the file of a glass: another recipe, potential or LAMMPS needs another one."""
    content = {"format": FORMAT, "recipe": dataclasses.asdict(recipe), "lammps": provenance.version("lammps")}
    content |= {"potential": hashlib.sha256(potential_file(recipe.potential).read_bytes()).hexdigest()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _make(wanted: dict[Path, Recipe], workers: int) -> None:
    """Make glasses in at most so many processes at once, and show how far they are."""
    began, running, taken = time.monotonic(), Running(), dict.fromkeys(wanted, 0)
    total = sum(recipe.total_steps() for recipe in wanted.values())
    display = Display(total, unit="step", name="melt and quench")
    with contextlib.closing(display), ThreadPoolExecutor(workers) as threads:
        futures = [threads.submit(make_glass, path, recipe, running, taken) for path, recipe in wanted.items()]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                text = f"{sum(future.done() for future in futures)} of {len(futures)} glasses done"
                display.update(sum(taken.values()), time.monotonic() - began, text)
        finally:  # after an interruption, too: the threads wait for nothing but these processes
            threads.shutdown(wait=False, cancel_futures=True)
            running.kill()


class Running:
    """Processes that can all be killed, also one that starts at that very moment."""

    def __init__(self) -> None:
        self._lock, self._processes, self._over = threading.Lock(), [], False

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start a process."""
        with self._lock:
            process = subprocess.Popen(command, **options)
            self._processes.append(process)
            if self._over:
                process.kill()
            return process

    def kill(self) -> None:
        """End all of them, and those to come."""
        with self._lock:
            self._over = True
            for process in self._processes:
                process.kill()


def make_glass(path: Path, recipe: Recipe, running: Running, taken: dict[Path, int]) -> None:
    """Make one glass in a process that ends with this one however that ends; counts its steps in `taken`."""
    search = os.pathsep.join(entry for entry in sys.path if entry)
    # One thread: LAMMPS would sum forces in another order with several.
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "uqbench.data.sources.glass"]
    with (
        atomic_write(path) as temporary,
        tempfile.TemporaryFile("w+") as complaints,
        running.start(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process to handle
        ) as child,
    ):
        order = json.dumps({"recipe": dataclasses.asdict(recipe), "path": str(temporary)})
        try:
            child.stdin.write(order + "\n")
            child.stdin.flush()
        except OSError:  # it is dead already, and its output ends
            with contextlib.suppress(OSError):  # what is left unwritten would be tried again at the end
                child.stdin.close()
        for line in child.stdout:
            message = json.loads(line)
            if "error" in message:
                raise DataError(f"dataset: no glass could be made: {message['error']}")
            taken[path] = message["steps"]
        if child.wait():
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
            raise GlassError(f"the process that was to make a glass ended with exit code {child.returncode} ({last})")
