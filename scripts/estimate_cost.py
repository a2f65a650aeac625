"""Estimate how long a sweep takes, from training steps and predictions timed on this machine.

    python scripts/estimate_cost.py train experiment=rmd17_paper uq=ensemble,mve seed=0,1

The arguments are those of `uqbench COMMAND -m`. One step is timed for every kind of job (jobs that differ in seed,
split or acquisition only are of one kind). It is an upper bound where training stops early, and leaves out metrics,
labels and barriers; simulations count as if no replica exploded.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uqbench import config
from uqbench.cli.hydra_session import open_hydra
from uqbench.cli.jobs import report
from uqbench.cli.overrides import Request
from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import UqbenchError
from uqbench.models.compiled.allocator import tune
from uqbench.models.normalisation import Normalisation
from uqbench.training.loop import device_of
from uqbench.uq.io import build_method

ALIKE = ("seed", "dataset.split", "acquisition.", "outputs")  # keys that change no cost, by their beginning
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of one job: of a training step, and of all of it."""

    step: float
    training: float
    simulations: float


def main(arguments: list[str]) -> int:
    """Print one line for every kind of job and the total."""
    if not arguments or arguments[0] not in ("train", "al"):
        raise UqbenchError("usage: python scripts/estimate_cost.py train|al [group=option ...] [key=value ...]")
    tune()
    torch.set_num_threads(1)  # what a core can do does not depend on who else computes
    command, *overrides = arguments
    with open_hydra(command, None) as hydra:
        jobs = Request(hydra.config_loader, command, overrides, multirun=True).jobs(None)
    kinds: dict[str, list[DictConfig]] = {}
    for job in jobs:
        kinds.setdefault(_kind(job.config), []).append(job.config)
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="")
    for name in ("data", "uq", "jobs", "step, ms", "training, h", "simulations, h", "all jobs, h"):  # of one core
        table.add_column(name, justify="left" if name in ("data", "uq") else "right")
    total = 0.0
    for members in kinds.values():
        cfg = members[0]
        cost = estimate(cfg)
        hours = (cost.training + cost.simulations) / 3600
        total += len(members) * hours
        subset = config.build(cfg.dataset).subset
        row = (subset, cfg.uq._target_.rpartition(".")[2], str(len(members)), f"{1e3 * cost.step:.0f}")
        row += (f"{cost.training / 3600:.2f}", f"{cost.simulations / 3600:.2f}", f"{len(members) * hours:.1f}")
        table.add_row(*row)
    Console(width=100, color_system=None).print(table)
    print(f"{len(jobs)} jobs, at most {total:.1f} hours of one core of this machine")
    return 0


def _kind(cfg: DictConfig) -> str:
    return repr(sorted((k, repr(v)) for k, v in config.settings(cfg).items() if not k.startswith(ALIKE)))


def estimate(cfg: DictConfig) -> Cost:
    """Time a training step and the predictions of a job, and count how many of them it takes."""
    settings = config.build(cfg.training)
    dataset = config.build(cfg.dataset)
    structures = dataset.load()
    splits = dataset.split(structures)
    train, validation = (structures[splits[name]] for name in ("train", "validation"))
    method = build_method(cfg, Normalisation.fit(train)).to(device=device_of(settings), dtype=settings.dtype)
    method.begin(len(train), seed=0)
    step = _training_step(method, train, settings.batch_size)
    check = _prediction(method, train, settings.batch_size)
    rounds = cfg.al.generations if "al" in cfg else 1
    training = 0.0
    for k in range(rounds):
        new = k * cfg.al.batch if k else 0
        steps = math.ceil((len(train) + new) / settings.batch_size)
        training += settings.epochs * (steps * step + math.ceil(len(validation) / settings.batch_size) * check)
    simulations = 0.0
    for wanted in (cfg.get("evaluations") or {}).values():
        if wanted is not None and "replicas" in wanted.evaluation:
            protocol = wanted.evaluation.protocol
            replicas = len(wanted.evaluation.temperatures) * wanted.evaluation.replicas
            each = _prediction(method, train, min(replicas, protocol.batch_size))
            batches = math.ceil(replicas / protocol.batch_size)
            simulations += rounds * batches * each * 1e3 * protocol.duration_ps / protocol.timestep_fs
    return Cost(step, training, simulations)


def _training_step(method: torch.nn.Module, structures: Structures, size: int) -> float:
    """Seconds of forward, backward and optimiser for one batch, median."""
    batch = _graphs(method, structures).batch(range(min(size, len(structures))))
    optimizer = torch.optim.Adam(method.train().parameters(), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = method.losses(batch, lambda residuals: torch.linalg.vector_norm(residuals, dim=-1))
        (losses.energy.mean() + losses.forces.mean()).backward()
        optimizer.step()

    return _median(run)


def _prediction(method: torch.nn.Module, structures: Structures, size: int) -> float:
    """Seconds of energies, forces and, where they are ready without a fit, uncertainties of `size` structures."""
    graphs = _graphs(method.eval(), structures)
    batch = graphs.batch([k % len(structures) for k in range(size)])
    return _median(lambda: method.potential(batch))


def _graphs(method: torch.nn.Module, structures: Structures) -> GraphSet:
    scale = method.potential.scale
    return GraphSet(structures, method.potential.backbone.cutoff, dtype=scale.dtype, device=scale.device)


def _median(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UqbenchError as error:
        sys.exit(report(error))
