"""The training loop: from labelled frames to the weights with the lowest validation loss."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, TrainingError
from uqbench.progress import Progress
from uqbench.runs import memory, signals
from uqbench.runs.checkpoints import Checkpoints, TrainingState
from uqbench.seeding import torch_generator
from uqbench.training.schedule import Schedule
from uqbench.training.settings import POINT_LOSSES, Training
from uqbench.uq.base import KCAL_PER_MOL, Method

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger(__name__)


def train(
    method: Method,
    training: Structures,
    validation: Structures,
    settings: Training,
    seed: int,
    folder: Path,
    validation_batch: int | None = None,
) -> None:
    """Train a method and leave best.pt, last.pt and history.csv in `folder`; go on from last.pt where it exists.

    On one CPU process the result depends on the arguments only, however often the run was interrupted. Raises
    DataError for frames without labels, TrainingError when a loss or a gradient is not finite, KeyboardInterrupt after
    a checkpoint when asked to stop.

    validation_batch: frames a time in the validation, where not as many as usual fit; checkpoints keep it.
    """
    for frames in (training, validation):
        frames.require_labels()
    fabric = _fabric(settings)
    method.begin(len(training), seed)
    method = method.to(settings.dtype)
    # One process stops after the step at hand. Several would have to agree on it first: they end at once, and the last
    # checkpoint counts.
    alone = settings.devices == 1
    with signals.postponed() if alone else contextlib.nullcontext(bool) as must_stop:
        # Bound beforehand: Fabric walks through arguments that it is given itself, and refuses frozen dataclasses.
        arguments = (method, training, validation, settings, seed, folder, validation_batch, must_stop)
        fabric.launch(functools.partial(_train, *arguments))


def _train(
    method: Method,
    training: Structures,
    validation: Structures,
    settings: Training,
    seed: int,
    folder: Path,
    validation_batch: int | None,
    must_stop: Callable[[], bool],
    fabric: Fabric,
) -> None:
    # Spawned processes share the memory of the parameters that they are handed; each needs its own.
    method = copy.deepcopy(method)
    cutoff = method.potential.backbone.cutoff
    train_set = GraphSet(training, cutoff, dtype=settings.dtype, device=fabric.device)
    valid_set = GraphSet(validation, cutoff, dtype=settings.dtype, device=fabric.device)
    model = BatchLoss(method, settings)
    wrapped, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True))
    averaged = None
    if settings.ema_decay is not None:
        averaged = Average(model, settings.ema_decay)
    evaluated = model if averaged is None else averaged.module
    parameters = list(model.parameters())
    steps_per_epoch = -(-len(train_set) // settings.batch_size)
    schedule = Schedule(settings, settings.epochs * steps_per_epoch)

    checkpoints = Checkpoints(
        folder,
        {"model": model, "optimizer": optimizer, "schedule": schedule} | ({"averaged": averaged} if averaged else {}),
        every=settings.checkpoint_seconds,
        writes=fabric.is_global_zero,
    )
    state = checkpoints.resume()
    if state.validation_batch is None and not state.history:
        state.validation_batch = validation_batch
    progress = Progress(settings.epochs, shown=fabric.is_global_zero)
    started = time.monotonic() - state.seconds

    while state.epoch < settings.epochs and not state.stopped:
        model.train()
        method.begin_epoch(state.epoch, settings.epochs)
        totals = Totals(**state.totals)
        batches = epoch_batches(len(train_set), settings.batch_size, seed, state.epoch)
        for frames in itertools.islice(batches, state.step, None):
            lr = schedule.lr(elapsed=time.monotonic() - started)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            counts = (len(frames), int(train_set.n_atoms[frames].sum()))
            loss, terms = wrapped(train_set, frames[fabric.global_rank :: fabric.world_size], counts)
            # Fabric averages gradients over processes, but the processes' shares of the loss add up.
            fabric.backward(loss * fabric.world_size)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            check_finite(loss, norm, state.epoch, settings)
            if settings.gradient_clip is not None:
                clip_members(parameters, method.potential.members, settings.gradient_clip, norm)
            optimizer.step()
            schedule.steps += 1
            if averaged is not None:
                averaged.update()
            totals.add(terms, counts)
            state.step += 1
            if must_stop():
                state.totals, state.seconds = vars(totals), time.monotonic() - started
                checkpoints.save(state, final=True)
                raise KeyboardInterrupt
        lr = optimizer.param_groups[0]["lr"]
        row = {"epoch": state.epoch + 1, "lr": lr, **totals.means("train", method.n_models, settings, fabric)}
        row |= _validate_in_memory(evaluated, valid_set, settings, fabric, state)

        state.epoch, state.step, state.totals = state.epoch + 1, 0, {}
        state.seconds = time.monotonic() - started
        state.record(row, evaluated.method)
        schedule.after_epoch(row["validation_loss"])
        overtime = settings.max_seconds is not None and state.seconds >= settings.max_seconds
        state.stopped = schedule.exhausted or fabric.broadcast(overtime)
        checkpoints.save(state, final=state.stopped or state.epoch == settings.epochs)
        progress.show(row, epoch=state.epoch, seconds=state.seconds, stopped=state.stopped)
    progress.close()


def epoch_batches(n_frames: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yield the frames of each step; the order is a function of seed and epoch alone, so that a run can resume."""
    yield from torch.randperm(n_frames, generator=torch_generator(seed, "epoch", epoch)).split(batch_size)


class BatchLoss(nn.Module):
    """The loss of some frames as one module, so that Fabric can wrap it for any device and number of processes."""

    def __init__(self, method: Method, settings: Training) -> None:
        super().__init__()
        self.method, self.settings = method, settings

    def forward(self, graphs: GraphSet, frames: Tensor, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return this process's share of a step's loss over counts = (frames, atoms), and its terms (4,) as sums.

        The terms are energy loss, force loss, absolute energy error (eV) and absolute force error (eV/Å).
        """
        losses = self.method.losses(graphs.batch(frames), POINT_LOSSES[self.settings.force_loss])
        energy, forces = losses.energy.sum(), losses.forces.sum()
        # Members are summed, not averaged: each then follows the very gradient it would follow alone.
        loss = self.settings.energy_weight * energy / counts[0] + self.settings.force_weight * forces / counts[1]
        errors = losses.energy_error.sum(), losses.force_error.sum()
        return loss, torch.stack([term.detach().double() for term in (energy, forces, *errors)])


class Totals:
    """Sums of an epoch's loss terms and what they are sums over."""

    def __init__(self, terms: Tensor | None = None, frames: int = 0, atoms: int = 0) -> None:
        self.terms, self.frames, self.atoms = terms, frames, atoms

    def add(self, terms: Tensor, counts: tuple[int, int]) -> None:
        """Add the terms of this process for a step over counts = (frames, atoms) of all processes."""
        self.terms = terms if self.terms is None else self.terms.to(terms.device) + terms
        self.frames, self.atoms = self.frames + counts[0], self.atoms + counts[1]

    def means(self, prefix: str, n_models: int, settings: Training, fabric: Fabric) -> dict[str, float]:
        """Return loss (per member, kcal/mol units) and mean absolute errors in kcal/mol and kcal/mol/Å."""
        energy, forces, energy_error, force_error = fabric.all_reduce(self.terms, reduce_op="sum").tolist()
        energy_loss, force_loss = energy / self.frames / n_models, forces / self.atoms / n_models
        return {
            f"{prefix}_loss": settings.energy_weight * energy_loss + settings.force_weight * force_loss,
            f"{prefix}_energy_mae": energy_error / self.frames / KCAL_PER_MOL,
            f"{prefix}_force_mae": force_error / self.atoms / KCAL_PER_MOL,
        }


def default_validation_batch(settings: Training) -> int:
    """Return how many frames a time are validated where memory does not limit them."""
    return max(settings.batch_size, 64)


def _validate_in_memory(
    model: BatchLoss, graphs: GraphSet, settings: Training, fabric: Fabric, state: TrainingState
) -> dict[str, float]:
    """Validate in batches that fit: half as many frames a time when memory runs out, for the rest of the training."""
    while True:
        size = state.validation_batch or default_validation_batch(settings)
        try:
            return validate(model, graphs, settings, fabric, size)
        except (RuntimeError, MemoryError) as error:
            # Several processes would have to agree on it.
            if not memory.exhausted(error) or min(size, len(graphs)) == 1 or settings.devices > 1:
                raise
            state.validation_batch = min(size, len(graphs)) // 2
        log.warning("validating ran out of memory; going on with %d frames a time", state.validation_batch)


@torch.no_grad()
def validate(
    model: BatchLoss, graphs: GraphSet, settings: Training, fabric: Fabric, batch_size: int
) -> dict[str, float]:
    """Return the loss and errors over all frames, `batch_size` of them at a time, shared out over the processes."""
    model.eval()
    totals = Totals()
    for frames in torch.arange(len(graphs)).split(batch_size):
        counts = (len(frames), int(graphs.n_atoms[frames].sum()))
        share = frames[fabric.global_rank :: fabric.world_size]
        terms = model(graphs, share, counts)[1] if len(share) else torch.zeros(4, dtype=torch.float64)
        totals.add(terms.to(fabric.device), counts)
    return totals.means("validation", model.method.n_models, settings, fabric)


class Average(AveragedModel):
    """Exponential moving average of a model's weights; the first step's are taken as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._average = get_ema_multi_avg_fn(decay)
        # torch's own update searches both models for parameters at every step, which takes longer than the optimiser.
        self._mine, self._theirs = list(self.module.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights."""
        if self.n_averaged == 0:
            for mine, theirs in zip(self._mine, self._theirs, strict=True):
                mine.copy_(theirs)
        else:
            self._average(self._mine, self._theirs, None)
        self.n_averaged += 1


def clip_members(parameters: Sequence[nn.Parameter], members: int | None, largest: float, norm: Tensor) -> None:
    """Scale each member's gradient down to the norm `largest`; members must not feel each other's gradients.

    norm: of the whole gradient.
    """
    if members is None:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def check_finite(loss: Tensor, norm: Tensor, epoch: int, settings: Training) -> None:
    """Raise TrainingError where the loss or the norm of its gradient is not finite."""
    for name, value in (("loss", loss), ("gradient", norm)):
        if not torch.isfinite(value):
            raise TrainingError(
                f"training diverged in epoch {epoch + 1}: the {name} is {float(value.detach())}; "
                f"try a training.lr below {settings.lr:g} or set training.gradient_clip"
            )


def device_of(settings: Training) -> str:
    """Return the device that predicts once training has ended: the first one of the training's accelerator."""
    if settings.accelerator == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda:0"
    if settings.accelerator == "auto":
        return "cpu"
    raise ConfigError(f"training.accelerator: '{settings.accelerator}' is not available here; choose cpu or auto")


def _fabric(settings: Training) -> Fabric:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    several = settings.devices > 1
    with warnings.catch_warnings():
        # It asks for srun wherever there is SLURM; processes are always started from here.
        warnings.filterwarnings("ignore", message=r"The `srun` command is available")
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            # Spawned processes start at `_train` with the data in hand, instead of running the whole command again.
            strategy="ddp_spawn" if several and settings.strategy == "auto" else settings.strategy,
            precision="64-true" if settings.dtype == torch.float64 else "32-true",
            plugins=[LightningEnvironment()],
        )
