"""Peak memory of training steps, ours and schnetpack's, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import torch
import train_step
from common import BACKBONES, PEER, SILICA, processor

from uqbench.models import compiled
from uqbench.models.compiled import allocator

STEPS = 3  # the optimiser's state is there from the first on; the allocator has settled by the third
MB = 1024.0  # ru_maxrss is in KiB on Linux


def peak() -> float:
    """Return the largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


def measure(kind: str, workload: str, whose: str, threads: int, mode: str) -> dict:
    """Return the peak with everything imported and built, and after some steps, MB; called in a process of its own."""
    torch.set_num_threads(threads)
    allocator.tune()
    compiled.use(mode)
    race = train_step.race(kind, workload, None)
    step = race.ours if whose == "uqbench" else race.peer
    if step is None:
        return {}
    before = peak()
    for _ in range(STEPS):
        step()
    return {"before_mb": before, "peak_mb": peak()}


def main() -> None:
    """Print a Markdown table: a row for each network, with the peaks of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=tuple(SILICA), default="silica 648 x 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", choices=("torch", "native", "auto"), default="auto", help="of our networks")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "WHOSE"), help=argparse.SUPPRESS)  # in the child
    options = parser.parse_args()
    if options.one:
        kind, whose = options.one
        print(json.dumps(measure(kind, options.workload, whose, options.threads, options.kernels)))
        return
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, {options.workload}, {STEPS} steps\n")
    print("| training step | uqbench: before, peak, MB | schnetpack: before, peak, MB |\n|---|---|---|")
    arguments = ["--workload", options.workload, "--threads", str(options.threads), "--kernels", options.kernels]
    for kind in BACKBONES:
        cells = []
        for whose in ("uqbench", PEER):
            command = [sys.executable, __file__, *arguments, "--one", kind, whose]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            cells.append(f"{figures['before_mb']:.0f}, {figures['peak_mb']:.0f}" if figures else "–")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
