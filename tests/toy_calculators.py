"""Calculators with simple energies and bad habits, for workers to run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    """Energy k/2 Σ |r|². What the first atom's number asks for happens first: see `MISDEEDS`."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, k, log=None, seconds=0.0):
        super().__init__()
        self.k, self.log, self.seconds = k, log, seconds

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        number = int(atoms.numbers[0])
        if self.log:  # one line for each calculation, however many processes there are
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {'torch' in sys.modules} {number}\n")
        time.sleep(self.seconds)
        MISDEEDS.get(number, lambda: None)()
        if number == ONCE and calculations(self.log, ONCE) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        energy, forces = 0.5 * self.k * float((atoms.positions**2).sum()), -self.k * atoms.positions
        if number == NOT_FINITE:
            forces[0] = np.nan
        if number == FEWER:
            forces = forces[:-1]
        if number == UNITS:
            energy, forces = 1e3 * energy, 1e3 * forces
        self.results = {"energy": energy, "forces": forces}


class Rationed(Springs):
    """Springs that refuse to calculate more often than the file beside the log says."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if calculations(self.log) >= int(Path(self.log).with_suffix(".ration").read_text()):
            raise RuntimeError("nothing left")
        super().calculate(atoms, properties, system_changes)


def calculations(log, number=None):
    """How many calculations a log has, in all or of geometries whose first atom has this number."""
    words = [line.split() for line in Path(log).read_text().splitlines()] if Path(log).exists() else []
    return sum(number is None or int(entry[2]) == number for entry in words)


class Threads(Calculator):
    """The limits of threads of the process that it runs in, in place of forces."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        limits = [float(os.environ[name]) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]
        self.results = {"energy": 0.0, "forces": np.tile(limits, (len(atoms), 1))}


def _raise():
    raise RuntimeError("the SCF did not\nconverge")


def _hang():
    subprocess.Popen(["sleep", "600"])  # a program that the engine has started
    time.sleep(600)


def _last_words():
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(3)


def _eat():
    eaten = []
    for _ in range(100):  # 1 GB in all where no limit holds, and none of it touched
        eaten.append(np.empty(10_000_000, np.uint8))


def _abort():
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGABRT)


CRASH, EXIT, HANG, EXCEPTION, QUIT, NOT_FINITE = 2, 10, 18, 36, 54, 86
KILLED, HUNGRY, ABORT, FEWER, UNITS, ONCE = 3, 11, 19, 37, 55, 87
MISDEEDS = {
    KILLED: lambda: os.kill(os.getpid(), signal.SIGKILL),
    HUNGRY: _eat,
    ABORT: _abort,
    CRASH: lambda: os.kill(os.getpid(), signal.SIGSEGV),
    EXIT: _last_words,
    HANG: _hang,
    EXCEPTION: _raise,
    QUIT: sys.exit,
}


def children(pid):
    """Process ids of all descendants, on Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found
