"""Processor time that `uqbench` needs before and besides computing: help, and the second call of a finished run."""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import interleaved

# The peer is what a program costs that imports torch at its start, the floor what any program in Python costs.
PEER, FLOOR = ("-c", "import torch"), ("-c", "pass")
TRAIN = ("-m", "uqbench", "train")
TINY = (
    *("uq=deterministic", "dataset.n_train=10", "dataset.n_validation=5", "dataset.n_test=5"),
    *("backbone.features=8", "training.epochs=1", "evaluation.bootstrap=0"),
)


def python(arguments: tuple[str, ...], folder: str) -> None:
    """Run Python in a folder; exits with what it printed when it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)


def child_seconds() -> float:
    """Processor time, user and system, of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Time every workload, the peer and the floor in turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args()
    workloads = {
        "uqbench --help": ("-m", "uqbench", "--help"),
        "uqbench train --help": (*TRAIN, "--help"),
        "uqbench train, finished": (*TRAIN, *TINY),
        "uqbench train -m, 3 finished": (*TRAIN, *TINY, "-m", "seed=0,1,2"),
    }
    with tempfile.TemporaryDirectory() as folder:
        python((*TRAIN, *TINY, "-m", "seed=0,1,2"), folder)
        (run,) = Path(folder).glob("outputs/train/*/*/*/seed0-*")
        workloads["uqbench evaluate, finished"] = ("-m", "uqbench", "evaluate", f"run={run}", "evaluation.bootstrap=0")
        python(workloads["uqbench evaluate, finished"], folder)
        timed = [functools.partial(python, arguments, folder) for arguments in (*workloads.values(), PEER, FLOOR)]
        *ours, peer, floor = interleaved(timed, options.repeats, clock=child_seconds)
    print(f"processor time, medians of {options.repeats}; python -c pass: {floor:.0f} ms")
    print(f"{'workload':<30}{'ours, ms':>10}{'import torch, ms':>18}{'ratio':>8}")
    rows = []
    for name, figures in zip(workloads, ours, strict=True):
        row = {"workload": name, "ours_ms": figures, "peer": "import torch", "peer_ms": peer, "ratio": peer / figures}
        rows.append(row | {"floor_ms": floor})
        print(f"{name:<30}{figures:>10.0f}{peer:>18.0f}{peer / figures:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
