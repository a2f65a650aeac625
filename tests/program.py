"""The program in processes of its own that need not import anything: forks of one process that has, and does no more.

Most of the time of a command that is refused, or of a tiny run, is that of imports. A fork can be limited, interrupted
and killed like a process that was started from a shell. Run as a script, this is the program without the figures of
runs, which are most of the rest.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER = """
import atexit, gc, json, os, resource, sys
import ase.io, lightning.fabric, matplotlib.backends.backend_agg, pandas, pyarrow.parquet, sklearn.mixture, torch
import uqbench.active.learning, uqbench.cli.commands, uqbench.evaluations.metrics, uqbench.evaluations.neb
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
    if order["cpu"] is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (order["cpu"], order["cpu"]))
    if not order["figures"]:
        uqbench.evaluations.metrics.render = lambda drawings: {}
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

    def start(self, arguments: list[str], *, cpu: int | None = None, figures: bool = True) -> Process:
        """Start the program here, with the present environment.

        Args:
            arguments: of the command line.
            cpu: seconds of CPU time after which it is killed.
            figures: whether an evaluation draws its figures, most of the time of a tiny run.
        """
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        streams = {name: str(folder / name) for name in ("out", "err")}
        for path in streams.values():
            Path(path).touch()
        order = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "cpu": cpu}
        return Process(self, self.ask(order | streams | {"figures": figures})["pid"], folder)


if __name__ == "__main__":
    from uqbench.active import loop
    from uqbench.cli import main
    from uqbench.evaluations import md, metrics, neb

    for module in (loop, md, metrics, neb):
        module.render = lambda drawings: {}
    sys.exit(main())
