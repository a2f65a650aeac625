"""What memory a training and a prediction will take, measured on one frame and two, before they take it.

Any backbone and any kernels are measured alike, without a formula of their own: the bytes that one call allocates are
counted for batches of a few copies of the heaviest frame, and are linear in their number. A copy of the method is
measured, and the states of all generators are put back: what follows computes the same bits as without it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, OutOfMemory
from uqbench.models.compiled import scratch_peak
from uqbench.runs import memory
from uqbench.runs.memory import Available, readable
from uqbench.training.loop import BatchLoss, default_validation_batch, device_of
from uqbench.training.settings import Training
from uqbench.uq.base import Method, UQMethod

SAMPLE = 32  # frames whose neighbours are counted; the rest is taken to be like them
PAIR_LISTS = 80  # bytes of each pair while neighbour lists are joined: 40 in those of the frames, 40 in the joined one
# Measured (docs/performance.md): memory that a call takes over the bytes that are counted. The rest is what functions
# of torch allocate within, and what lies unused between allocations.
ALLOWANCE = 1.4
# A batch size is recommended if this times what it is predicted to need is there: the largest that was measured of it.
MARGIN = 1.6
SPREAD = 4.0  # standard deviations by which the heaviest batch of a training exceeds the mean one
# Bytes for each atom of a batch and million of parameters (one at least), members counted apart: four times what any
# backbone was measured to take in training. Where that is there, nothing is measured.
AMPLE = 4e6
AMPLE_RESIDENT = 1e4  # bytes of the neighbour lists of an atom: hundreds of pairs


class Allocations(TorchDispatchMode):
    """Counts, as a context manager, the bytes that torch and the compiled code allocate.

    Attributes:
        peak: most bytes at a time that were not there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __enter__(self) -> Allocations:
        scratch_peak()
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self._note((args, kwargs), new=False)
        # Compiled code that ran since the last call did so beside what is allocated now.
        self.peak = max(self.peak, self.live + scratch_peak())
        results = func(*args, **kwargs)
        self._note(results, new=True)
        self.peak = max(self.peak, self.live)
        return results

    def _note(self, values: Any, *, new: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self._storages:
                size = storage.nbytes() if new else 0
                self.live += size
                self._storages[id(storage)] = weakref.ref(storage, self._freed(id(storage), size))

    def _freed(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            del self._storages[key]
            self.live -= size

        return forget


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that a call takes as a function of the frames in its batch; a lighter frame counts as a part of one.

    Attributes:
        start: bytes whatever the batch.
        per_frame: bytes of the heaviest frame.
    """

    start: float
    per_frame: float

    def of(self, frames: float) -> float:
        """Return the bytes for so many frames."""
        return self.start + self.per_frame * frames

    @classmethod
    def measured(cls, call: Callable[[int], object], frames: float, budget: float) -> Need:
        """Measure a call on few frames.

        What is not linear, such as intermediate results of pieces, makes the first frames cost more than further ones:
        more of them are measured if the prediction for all would else decide.

        Args:
            call: (number of frames) -> computes so many.
            frames: wanted in the end.
            budget: bytes that are available; no more than half of that is taken for more than two frames.
        """
        call(1)  # compares compiled code with torch, and makes what is made once
        count, peak = 1, _peak(call, 1)
        need = cls(0.0, peak)
        # Two frames take less than twice as much as one. Only once both are known it can be said what many will take.
        while 2 * count <= frames and need.of(2 * count) <= (budget if count == 1 else budget / 2):
            larger = _peak(call, 2 * count)
            per_frame = max(larger - peak, 0) / count
            need = cls(max(peak - per_frame * count, 0.0), per_frame)
            count, peak = 2 * count, larger
            if need.of(frames) <= budget / 2:
                break
        return need


class Load:
    """How heavy batches of a set get, in its heaviest frames: by the number of atoms."""

    def __init__(self, structures: Structures) -> None:
        self._weights = np.sort(structures.n_atoms / structures.n_atoms.max())[::-1]

    def of(self, frames: int) -> float:
        """Return the load of the heaviest batch of so many frames that a training will draw, or a set be cut into."""
        total, n = len(self._weights), min(frames, len(self._weights))
        spread = SPREAD * self._weights.std() * np.sqrt(n * (1 - n / total))
        return float(min(self._weights[:n].sum(), n * self._weights.mean() + spread))

    def frames(self, need: Need, budget: float) -> int:
        """Return the largest number of frames whose heaviest batch needs no more than `budget` bytes; 0 for none."""
        low, high = 0, len(self._weights)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if need.of(self.of(middle)) <= budget else (low, middle - 1)
        return low


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """What a training is predicted to need beside what its process has allocated already.

    Attributes:
        settings: of the training.
        lists, graphs: bytes of neighbour lists while they are made, and of the frames that stay; of each process.
        weights: bytes of the copies of the weights: the process's own, Adam's, the averages, the best ones.
        step, validation: of a training step and of a batch of the validation.
        load, validation_load: of the training frames and of those of the validation.
        device: where it computes.
    """

    settings: Training
    lists: float
    graphs: float
    weights: float
    step: Need
    validation: Need
    load: Load
    validation_load: Load
    device: str

    @property
    def processes(self) -> int:
        """Processes that share the memory of one machine; each GPU has its own."""
        return self.settings.devices if self.device == "cpu" else 1

    @property
    def peak(self) -> float:
        """Bytes of all processes that the training will take, with one frame at a time in the validation."""
        return self.processes * self._bytes(-(-self.settings.batch_size // self.settings.devices))

    def _bytes(self, frames: int) -> float:
        """Bytes of a process with so many frames a step."""
        step = self.step.of(self.load.of(frames)) if frames else 0.0
        return max(self.lists, self.graphs + self.weights + max(step, self.validation.of(1)))

    def largest_batch(self, available: Available) -> int:
        """Return the largest `training.batch_size` that fits with a margin; 0 where not even one frame does."""
        left = available.bytes / self.processes / MARGIN - self.graphs - self.weights
        return self.settings.devices * self.load.frames(self.step, left)

    def validation_batch(self, available: Available) -> int | None:
        """Return how many frames a time can be validated, where not as many as usual fit; None where they do."""
        each = available.bytes / self.processes
        if self._validation(default_validation_batch(self.settings)) <= each:
            return None
        left = each / MARGIN - self.graphs - self.weights
        return max(1, self.validation_load.frames(self.validation, left))

    def _validation(self, frames: int) -> float:
        """Bytes of a process in the validation of so many frames a time."""
        return self.graphs + self.weights + self.validation.of(self.validation_load.of(frames))

    def require(self, available: Available) -> None:
        """Raise ConfigError, which names what fits, where the training needs more than is available."""
        if self.peak <= available.bytes:
            return
        there = f"but {readable(available.bytes)} are available ({available.of})"
        each = available.bytes / self.processes
        if max(self.lists, self.graphs) > each:
            raise ConfigError(
                f"dataset: the frames and their neighbours need about {readable(self.peak)}, {there}; choose fewer "
                "frames or a smaller backbone.cutoff"
            )
        if self.graphs + self.weights > each:
            raise ConfigError(
                f"backbone: its weights and their optimiser need about {readable(self.peak)}, {there}; choose fewer "
                "features or layers (backbone.*) or members"
            )
        # What is predicted to need a little less than is available may be predicted too low.
        batch_size = min(self.largest_batch(available), self.settings.batch_size - 1)
        wanted = f"training.batch_size: {self.settings.batch_size} frames a step need about {readable(self.peak)}"
        if batch_size:
            raise ConfigError(f"{wanted}, {there}; the largest batch_size sure to fit is {batch_size}")
        raise ConfigError(
            f"{wanted}, {there}; not even one frame fits: choose fewer features or layers (backbone.*) or members"
        )

    def failure(self, available: Available) -> OutOfMemory:
        """Return the error of a training that has run out of memory, with a batch size that would fit.

        available: after what the training had allocated was freed.
        """
        # The prediction was too low, or others have taken memory since: half of what failed, or less.
        batch_size = min(self.largest_batch(available), self.settings.batch_size // 2)
        advice = f"training.batch_size={batch_size} would fit" if batch_size else "not even one frame a step fits"
        return OutOfMemory(
            f"training ran out of memory with training.batch_size={self.settings.batch_size}; {advice} into the "
            f"{readable(available.bytes)} that are available ({available.of}); with more memory the same command goes "
            "on from the last checkpoint"
        )


def ample(method: UQMethod, batch_size: int, parts: Sequence[Structures], available: Available) -> bool:
    """Return whether batches of some sets take so much less than is available that nothing need be measured."""
    largest = max(int(part.n_atoms.max()) for part in parts)
    atoms = sum(len(part.numbers) for part in parts)
    parameters = sum(parameter.numel() for parameter in method.parameters())
    models = max(method.n_models, parameters / 1e6)
    frames = min(batch_size, max(map(len, parts)))
    return frames * largest * models * AMPLE + atoms * AMPLE_RESIDENT + 40 * parameters <= available.bytes


def forecast(
    method: Method, training: Structures, validation: Structures, settings: Training, seed: int, available: Available
) -> Forecast:
    """Predict what a training will need; nothing that it is given changes.

    Raises DataError for frames that a training would refuse, ConfigError where there is no memory for a single frame.
    """
    device = device_of(settings)
    try:
        with _generators_as_they_are(device):
            return _forecast(copy.deepcopy(method), training, validation, settings, seed, available, device)
    except (RuntimeError, MemoryError) as error:
        if not memory.exhausted(error):
            raise
        raise ConfigError(
            f"training.batch_size: there is no memory for a single frame, {readable(available.bytes)} are available "
            f"({available.of}); choose fewer features or layers (backbone.*) or members"
        ) from error


def _forecast(
    method: Method,
    training: Structures,
    validation: Structures,
    settings: Training,
    seed: int,
    available: Available,
    device: str,
) -> Forecast:
    method.begin(len(training), seed)
    method = method.to(device=device, dtype=settings.dtype)
    # Warm-ups are over, and all parts of the loss are there.
    method.begin_epoch(settings.epochs - 1, settings.epochs)
    model, cutoff = BatchLoss(method, settings), method.potential.backbone.cutoff
    sample = training[_spread(training)]
    graphs = GraphSet(sample, cutoff, dtype=settings.dtype, device=device)
    n_pairs = graphs.n_pairs.tolist()
    heaviest = max(range(len(sample)), key=lambda frame: (n_pairs[frame], sample.n_atoms[frame]))
    n_atoms = int(sample.n_atoms[heaviest])

    def step(n: int) -> None:
        loss, _ = model(graphs, torch.full((n,), heaviest), (n, n * n_atoms))
        loss.backward()
        model.zero_grad(set_to_none=True)

    def validate(n: int) -> None:
        with torch.no_grad():
            model(graphs, torch.full((n,), heaviest), (n, n * n_atoms))

    load, validation_load = Load(training), Load(validation)
    frames = load.of(-(-settings.batch_size // settings.devices))
    needs = []
    for training_mode, call, wanted in (
        (True, step, frames),
        (False, validate, validation_load.of(default_validation_batch(settings))),
    ):
        model.train(training_mode)
        needs.append(Need.measured(call, wanted, available.bytes))
    atoms = len(training.numbers) / len(sample.numbers), len(validation.numbers) / len(sample.numbers)
    lists = PAIR_LISTS * sum(n_pairs)
    state = sum(tensor.nbytes for tensor in method.state_dict().values())
    parameters = sum(parameter.nbytes for parameter in method.parameters())
    return Forecast(
        settings=settings,
        lists=max(lists * atoms[0], graphs.nbytes * atoms[0] + lists * atoms[1]),
        graphs=graphs.nbytes * sum(atoms),
        weights=(2 + (settings.ema_decay is not None)) * state + 2 * parameters,
        step=needs[0],
        validation=needs[1],
        load=load,
        validation_load=validation_load,
        device=device,
    )


def prediction_batch(
    method: UQMethod, graphs: GraphSet, structures: Structures, wanted: int, device: str | torch.device
) -> int:
    """Return how many frames a time to predict: as many as wanted, or fewer where these do not fit into memory.

    A method in training mode must not be given.
    """
    frames = min(wanted, len(graphs))
    available = memory.available(str(device))
    if frames == 1 or available is None or ample(method, frames, [structures], available):
        return wanted
    need = prediction_need(method, graphs, frames, device, available)
    left = available.bytes - graphs.nbytes  # the set is cut into batches beforehand
    if need.of(frames) <= left:
        return wanted
    return max(1, min(frames, int((left / MARGIN - need.start) / max(need.per_frame, 1.0))))


def prediction_need(
    method: UQMethod, graphs: GraphSet, frames: int, device: str | torch.device, available: Available
) -> Need:
    """Return what the prediction of some frames at a time will need, in frames like the heaviest of a set."""
    heaviest = int(graphs.n_pairs.argmax())

    def predict(n: int) -> None:
        with torch.no_grad():
            method.predict(graphs.batch(torch.full((n,), heaviest)))

    with _generators_as_they_are(device):
        return Need.measured(predict, frames, available.bytes)


def _spread(structures: Structures) -> np.ndarray:
    """Frames of a sample, which holds the one with the most atoms."""
    spread = np.linspace(0, len(structures) - 1, min(SAMPLE, len(structures))).astype(int)
    return np.unique([*spread, structures.n_atoms.argmax()])


def _peak(call: Callable[[int], object], n: int) -> float:
    with Allocations() as allocations:
        call(n)
    return ALLOWANCE * max(allocations.peak, allocations.live + scratch_peak())


@contextlib.contextmanager
def _generators_as_they_are(device: str | torch.device) -> Iterator[None]:
    """Put the states of Python's, NumPy's and torch's generators back at the end."""
    states = random.getstate(), np.random.get_state()
    on_gpu = torch.device(device).type == "cuda"
    try:
        with torch.random.fork_rng(devices=[torch.device(device)] if on_gpu else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
