"""The program in processes of its own that need not import anything: forks of one process that has, and does no more.

Most of the time of a command that is refused, or of a tiny run, is that of imports. A fork can be limited, interrupted
and killed like a process that was started from a shell. Run as a script with the address of a socket, this hands a
command line on to a `Program` that listens there.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SERVER = """
import atexit, gc, json, os, resource, sys
import ase.io, lightning.fabric, matplotlib.backends.backend_agg, pandas, pyarrow.parquet, sklearn.mixture, torch
import uqbench.active.learning, uqbench.active.loop, uqbench.cli.commands
import uqbench.evaluations.md, uqbench.evaluations.metrics
import uqbench.evaluations.neb, uqbench.evaluations.structure
import uqbench.report.render.files, uqbench.report.sections.study, uqbench.runs.experiment
from uqbench.cli import main

gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        pid, status, usage = os.wait4(order["wait"], os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps({"code": code}), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(json.dumps({"pid": pid}), flush=True)
        continue
    os.setpgid(0, 0)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, name in enumerate(("/dev/null", order["out"], order["err"])):
        descriptor = os.open(name, os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0)
    for name, limit in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if order["memory"] is not None:
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
        limit = 1024 * used + order["memory"]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if not order["figures"]:
        for module in (uqbench.active.loop, *(getattr(uqbench.evaluations, name) for name in ("md", "metrics", "neb"))):
            module.render = lambda drawings: {}
        uqbench.evaluations.structure.structure_panels = lambda described, title: b""
    code = main(order["arguments"])
    # As at the end of any process, but for the objects, which to take down would be most of the work.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


class Process:
    """A program that runs, or has ended."""

    def __init__(self, program: "Program", pid: int, folder: Path) -> None:
        self.program, self.pid, self._folder, self._code = program, pid, folder, None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None as long as it runs."""
        if self._code is None:
            self._code = self.program.ask({"wait": self.pid})["code"]
        return self._code

    def wait(self, timeout: float = 120.0) -> int:
        """Wait for its end, and kill what takes longer."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the program has not ended after {timeout} s: {self.err}")
            time.sleep(0.005)
        return self._code

    def kill(self) -> None:
        """Kill it as kill -9 does."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has written to standard output."""
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it has written to standard error."""
        return (self._folder / "err").read_text()


class Program:
    """Starts forks; used as a context manager."""

    def __enter__(self) -> "Program":
        self._folder = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._count = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._folder.cleanup()

    def ask(self, order: dict) -> dict:
        """Hand an order to the server and return its answer."""
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        arguments: list[str],
        *,
        limits: Mapping[str, int] | None = None,
        memory: int | None = None,
        figures: bool = True,
        folder: str | None = None,
    ) -> Process:
        """Start the program with the present environment.

        Args:
            arguments: of the command line.
            limits: of the operating system by name, such as RLIMIT_CPU, seconds after which it is killed.
            memory: bytes that it may take beside those of the process that it is a fork of (`ulimit -d`).
            figures: whether evaluations draw their figures, most of the time of a tiny run.
            folder: that it works in; None for the present one.
        """
        self._count += 1
        streams_folder = Path(self._folder.name) / str(self._count)
        streams_folder.mkdir()
        streams = {name: str(streams_folder / name) for name in ("out", "err")}
        for path in streams.values():
            Path(path).touch()
        order = {"arguments": arguments, "folder": folder or os.getcwd(), "environment": dict(os.environ)}
        order |= {"limits": dict(limits or {}), "memory": memory}
        return Process(self, self.ask(order | streams | {"figures": figures})["pid"], streams_folder)

    @contextlib.contextmanager
    def command(self, timeout: float) -> Iterator[str]:
        """Give a shell command that takes the place of `uqbench` in a block, one call at a time, without figures."""
        with socket.socket(socket.AF_UNIX) as listening:
            address = f"{self._folder.name}/socket"
            listening.bind(address)
            listening.listen()
            answering = threading.Thread(target=self._answer, args=(listening, timeout))
            answering.start()
            try:
                yield f"{sys.executable} -I -S {__file__} {address}"
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                answering.join()
                os.unlink(address)

    def _answer(self, listening: socket.socket, timeout: float) -> None:
        """Run what is asked for until nobody listens any more."""
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rw") as stream:
                order = json.loads(stream.readline())
                process = self.start(order["arguments"], figures=False, folder=order["folder"])
                code = process.wait(timeout)
                stream.write(json.dumps({"code": code, "out": process.out, "err": process.err}))


def hand_on(address: str, arguments: list[str]) -> int:
    """Have a command line run by whoever listens at an address, and give what comes of it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps({"arguments": arguments, "folder": os.getcwd()}) + "\n")
            stream.flush()
            answer = json.loads(stream.read())
    sys.stdout.write(answer["out"])
    sys.stderr.write(answer["err"])
    return answer["code"]


if __name__ == "__main__":
    sys.exit(hand_on(sys.argv[1], sys.argv[2:]))
