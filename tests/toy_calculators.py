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
        if self.log:  # one line for each calculation, however many processes there are
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {'torch' in sys.modules}\n")
        time.sleep(self.seconds)
        MISDEEDS.get(int(atoms.numbers[0]), lambda: None)()
        forces = -self.k * atoms.positions
        if atoms.numbers[0] == NOT_FINITE:
            forces[0] = np.nan
        self.results = {"energy": 0.5 * self.k * float((atoms.positions**2).sum()), "forces": forces}


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


CRASH, EXIT, HANG, EXCEPTION, QUIT, NOT_FINITE = 2, 10, 18, 36, 54, 86
MISDEEDS = {
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
