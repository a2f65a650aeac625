"""Many replicas on one model, step by step, until their time is over or they explode."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from ase import units
from numpy.typing import NDArray
from torch import Tensor

from uqbench.data.graph import Batch
from uqbench.data.structures import Structures
from uqbench.data.verlet import PairList, VerletList, constant
from uqbench.errors import ConfigError
from uqbench.md.langevin import BAOAB, Noise, thermalise
from uqbench.md.limits import REASONS, SOUND, Criteria
from uqbench.md.protocol import Protocol
from uqbench.md.state import State
from uqbench.seeding import numpy_generator
from uqbench.uq.base import Prediction, UQMethod

Predict = Callable[[Batch], Prediction]
Stream = tuple[str | int | float, ...]


class Observer(typing.Protocol):
    """Sees what happens in simulations, one batch of replicas after the other."""

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        """See all running replicas after a step (0: the start); `prediction` is that at their positions."""

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        """See one replica at the step in which it exploded, before its last half kick; None if it is not finite."""


@dataclasses.dataclass(frozen=True)
class ForceField:
    """What replicas move on.

    Attributes:
        predict: gives energies and forces of a batch.
        dtype, device: of the batches.
        cutoff: Å.
    """

    predict: Predict
    dtype: torch.dtype
    device: torch.device | str
    cutoff: float

    @classmethod
    def of(cls, method: UQMethod) -> Self:
        """Return a method as it is, on its device and in its precision."""
        scale = method.potential.scale
        return cls(method.predict, scale.dtype, scale.device, method.potential.backbone.cutoff)


def start_rows(n_frames: int, replicas: int, seed: int) -> NDArray[np.int64]:
    """Return which of n frames each replica (replicas,) starts from: in random order, again from the first after all.

    More replicas leave those already there as they are.
    """
    order = numpy_generator(seed, "md-frames").permutation(n_frames)
    return order[np.arange(replicas) % n_frames]


def simulate(
    frames: Structures,
    temperatures: NDArray[np.float64],
    streams: Sequence[Stream],
    *,
    force_field: ForceField,
    protocol: Protocol,
    seed: int,
    observer: Observer,
    purposes: tuple[Stream, Stream] = (("md-velocities",), ("md-noise",)),
) -> None:
    """Run R replicas, `protocol.batch_size` of them at once; what an observer sees has ids from 0 to R - 1.

    Args:
        frames: (R) starts. temperatures: (R,) K, of the first velocities and of the thermostat.
        streams: (R) names that, with `seed`, determine the velocities and the noise of a replica.
        purposes: what comes before these names, for velocities and for noise.

    Raises ConfigError where atoms could pass the limit on short distances unseen.
    """
    if protocol.limits.min_distance >= force_field.cutoff:
        raise ConfigError(
            f"protocol.limits.min_distance: must be below the cutoff of the model ({force_field.cutoff} Å), got "
            f"{protocol.limits.min_distance}"
        )
    for begin in range(0, len(frames), protocol.batch_size):
        ids = np.arange(begin, min(begin + protocol.batch_size, len(frames)))
        state = State.at_rest(frames[ids], units.kB * temperatures[ids], ids, force_field.device)
        velocities, noise = (
            Noise(seed, [(*purpose, *streams[k]) for k in ids], state.n_atoms, force_field.device)
            for purpose in purposes
        )
        thermalise(state, velocities())
        Dynamics(state, force_field, protocol, noise).run(protocol.steps, observer)


class Dynamics:
    """Replicas that move together.

    Every replica is checked after every step; one that exploded leaves the batch at once and has no further influence.
    Nothing else couples the replicas: random numbers, neighbour lists and sums belong to each alone. So a replica's
    trajectory is the same to the last bit in any company if the model's forces are; those of a network in single
    precision may change in their last digit with the size of the batch, which chaos amplifies after a picosecond or so.

    Args:
        state: the replicas, with velocities.
        noise: of the thermostat.
    """

    def __init__(self, state: State, force_field: ForceField, protocol: Protocol, noise: Noise) -> None:
        self.state, self.noise = state, noise
        self._force_field = force_field
        self._integrator = BAOAB(timestep=protocol.timestep_fs, friction=protocol.friction_per_ps)
        self._neighbours = VerletList(force_field.cutoff, state.coordinates, skin=protocol.skin)
        self._criteria = Criteria(protocol.limits, state)
        self._constant = self._constant_of(state)

    def _constant_of(self, state: State) -> dict[str, Tensor]:
        return constant(state.coordinates, state.numbers, self._force_field.dtype)

    def run(self, steps: int, observer: Observer) -> None:
        """Take that many steps, or as many as there are replicas to take them."""
        pairs, _ = self._neighbours.near(self.state.positions)
        prediction = self._evaluate(self.state, pairs, self._constant)
        self.state.forces = prediction.forces.double()
        observer.observe(0, self.state, prediction)
        for step in range(1, steps + 1):
            self._integrator.drift(self.state, self.noise())
            pairs = self._check(step, observer)
            if not len(self.state):
                return
            prediction = self._evaluate(self.state, pairs, self._constant)
            self._integrator.kick(self.state, prediction.forces.double())
            observer.observe(step, self.state, prediction)

    def _evaluate(self, state: State, pairs: PairList, constant: dict[str, Tensor]) -> Prediction:
        # From each replica's first atom: single precision would round positions that have diffused far away.
        positions = state.positions - state.positions[state.start][state.system]
        moving = {"positions": positions, "shifts": pairs.shifts}
        moving = {name: values.to(self._force_field.dtype) for name, values in moving.items()}
        return self._force_field.predict(Batch(first=pairs.first, second=pairs.second, **moving, **constant))

    def _check(self, step: int, observer: Observer) -> PairList:
        """Let exploded replicas go, and return the pairs of the others."""
        codes = self._criteria.motion(self.state)
        sound = codes == SOUND
        pairs, distances = self._neighbours.near(self.state.positions, sound)
        codes = torch.where(sound, self._criteria.geometry(self.state, pairs, distances), codes)
        if not codes.any():
            return pairs
        for replica in codes.nonzero().flatten():
            only = torch.arange(len(codes), device=codes.device) == replica
            state, prediction = self.state.select(only), None
            if bool(state.positions.isfinite().all()):
                prediction = self._evaluate(state, pairs.select(only, self.state.system), self._constant_of(state))
                state.forces = prediction.forces.double()
            observer.exploded(step, REASONS[int(codes[replica]) - 1], state, prediction)
        keep = codes == SOUND
        self._criteria.select(self.state, keep)
        self._neighbours.select(keep)
        self.noise.select(keep)
        pairs, self.state = pairs.select(keep, self.state.system), self.state.select(keep)
        self._constant = self._constant_of(self.state)
        return pairs
