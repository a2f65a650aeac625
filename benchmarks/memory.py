"""Peak memory of training steps, ours and schnetpack's; with --predicted, what is predicted of ours and what they take.

Everything is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import train_step
from common import BACKBONES, FEATURES, LAYERS, MEMBERS, PEER, SILICA, processor, structures
from omegaconf import OmegaConf

from uqbench import config
from uqbench.data.graph import GraphSet
from uqbench.inference.prediction_set import predict
from uqbench.models import compiled
from uqbench.models.compiled import allocator
from uqbench.models.normalisation import Normalisation
from uqbench.runs import memory, provenance
from uqbench.runs.memory import Available
from uqbench.training.loop import train
from uqbench.training.memory import forecast, prediction_need
from uqbench.uq.io import build_method

STEPS = 3  # the optimiser's state is there from the first on; the allocator has settled by the third
MB = 1024.0  # ru_maxrss is in KiB on Linux
CONF = Path(__file__).parents[1] / "conf"
# Of the table of predictions: workload, backbone, members, kernels.
CASES = [
    *((w, b, m, k) for w in ("ethanol x 64", "aspirin x 16") for b in BACKBONES for m in (0, MEMBERS) for k in (0, 1)),
    *(("silica 648 x 1", b, m, k) for b in BACKBONES for m in (0, MEMBERS) for k in (0, 1)),
    ("ethanol x 16", "nequip", 0, 0),
]
KERNELS = ("torch", "native")


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


def compare(workload: str, kind: str, members: int, mode: str, threads: int) -> dict:
    """Return what a training and a prediction need by forecast and by measurement, MB; in a process of its own."""
    import lightning.fabric  # noqa: F401  (its pages are no part of a training)

    torch.set_num_threads(threads)
    allocator.tune()
    compiled.use(mode)
    n = int(workload.rpartition(" x ")[2])
    frames = structures(workload)[[*range(n), *range(n)]]
    cfg = OmegaConf.create({"seed": 0, "backbone": OmegaConf.load(CONF / "backbone" / f"{kind}.yaml")})
    cfg.uq = OmegaConf.load(CONF / "uq" / f"{'ensemble' if members else 'deterministic'}.yaml")
    if members:
        cfg.uq.members = members
    if kind in BACKBONES:
        cfg.backbone.features, cfg.backbone.layers = FEATURES, LAYERS
    method = build_method(cfg, Normalisation.fit(frames))
    recipe = OmegaConf.load(CONF / "training" / "quick.yaml")
    settings = config.build(OmegaConf.merge(recipe, {"epochs": 2, "batch_size": n}), slot="training")
    # As where it decides: with hardly enough memory more frames are measured than with plenty.
    available = memory.available()
    available = Available(int(forecast(method, frames, frames[:n], settings, 0, available).peak), "for this")
    predicted = forecast(method, frames, frames[:n], settings, 0, available)
    with tempfile.TemporaryDirectory() as folder:
        start = _trimmed()
        train(method, frames, frames[:n], settings, 0, Path(folder))
        trained = peak() - start
    graphs = GraphSet(frames[:n], method.potential.backbone.cutoff, dtype=torch.float32)
    need = prediction_need(method.float().eval(), graphs, n, "cpu", available)
    start = _trimmed()
    predict(method, frames[:n], batch_size=n, device="cpu")
    return {
        "train": (predicted.peak / 2**20, trained),
        "predict": ((need.of(n) + graphs.nbytes) / 2**20, peak() - start),
    }


def _trimmed() -> float:
    """Give freed memory back, forget the peak so far, and return what is left, MB."""
    ctypes.CDLL(None).malloc_trim(0)
    provenance.reset_peak_memory()
    return peak()


def table_of_predictions(arguments: list[str], only: str) -> None:
    """Print a Markdown table: a row for each case, with predicted and measured peaks."""
    print("| workload | network | kernels | training, MB | measured | ratio | prediction, MB | measured | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for workload, kind, members, native in CASES:
        name = f"{members} {kind}" if members else kind
        if only not in f"{workload}, {name}, {KERNELS[native]}":
            continue
        figures = _child(["--case", workload, kind, str(members), KERNELS[native], *arguments])
        cells = [
            f"{predicted:.0f} | {measured:.0f} | {predicted / measured:.2f}" for predicted, measured in figures.values()
        ]
        print(f"| {workload} | {name} | {KERNELS[native]} | {' | '.join(cells)} |", flush=True)


def _child(arguments: list[str]) -> dict:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a Markdown table: a row for each network, with the peaks of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=tuple(SILICA), default="silica 648 x 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", choices=("torch", "native", "auto"), default="auto", help="of our networks")
    parser.add_argument("--predicted", action="store_true", help="compare predicted with measured peaks instead")
    parser.add_argument("--only", default="", help="of the predictions, those whose row contains this")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "WHOSE"), help=argparse.SUPPRESS)  # in the child
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)  # in the child
    options = parser.parse_args()
    if options.one:
        kind, whose = options.one
        print(json.dumps(measure(kind, options.workload, whose, options.threads, options.kernels)))
        return
    if options.case:
        workload, kind, members, mode = options.case
        print(json.dumps(compare(workload, kind, int(members), mode, options.threads)))
        return
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, {options.workload}, {STEPS} steps\n")
    arguments = ["--workload", options.workload, "--threads", str(options.threads), "--kernels", options.kernels]
    if options.predicted:
        table_of_predictions(arguments, options.only)
        return
    print("| training step | uqbench: before, peak, MB | schnetpack: before, peak, MB |\n|---|---|---|")
    for kind in BACKBONES:
        cells = []
        for whose in ("uqbench", PEER):
            figures = _child([*arguments, "--one", kind, whose])
            cells.append(f"{figures['before_mb']:.0f}, {figures['peak_mb']:.0f}" if figures else "–")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
