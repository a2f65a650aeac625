"""Many replicas on one model, step by step, until their time is over or they explode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from uqbench.data.graph import Batch
from uqbench.md.langevin import BAOAB, Noise
from uqbench.md.limits import REASONS, SOUND, Limits, Watch
from uqbench.md.neighbours import Neighbours, Pairs
from uqbench.md.state import State
from uqbench.uq.base import Prediction

Predict = Callable[[Batch], Prediction]


class Observer(Protocol):
    """Sees what happens in a simulation."""

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        """See all running replicas after a step (0: the start); `prediction` is that at their positions."""

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        """See one replica at the step in which it exploded, before its last half kick; None if it is not finite."""


class Dynamics:
    """Replicas that move on a model.

    Every replica is checked after every step; one that exploded leaves the batch at once and has no further influence.
    Nothing else couples the replicas: random numbers, neighbour lists and sums belong to each alone. So a replica's
    trajectory is the same to the last bit in any company if the model's forces are; those of a network in single
    precision may change in their last digit with the size of the batch, which chaos amplifies after a picosecond or so.

    Args:
        state: the replicas, with velocities.
        predict: the model.
        dtype: of the model. cutoff: of the model, Å. skin: of the neighbour lists, Å.
        integrator, noise, limits: of the dynamics.
    """

    def __init__(
        self,
        state: State,
        *,
        predict: Predict,
        dtype: torch.dtype,
        cutoff: float,
        skin: float,
        integrator: BAOAB,
        noise: Noise,
        limits: Limits,
    ) -> None:
        self.state, self.integrator, self.noise = state, integrator, noise
        self._predict, self._dtype = predict, dtype
        self._neighbours = Neighbours(state, cutoff=cutoff, skin=skin)
        self._watch = Watch(limits, state)
        self._prepare()

    def _prepare(self) -> None:
        """Lay out what the batches of all steps have in common."""
        s = self.state
        self._constant = {
            "numbers": s.numbers,
            "system": s.system,
            "cells": s.cells.to(self._dtype),
            "pbc": s.pbc,
            "ptr": s.ptr,
            "index": torch.arange(len(s), device=s.ids.device),
        }

    def run(self, steps: int, observer: Observer) -> None:
        """Take that many steps, or as many as there are replicas to take them."""
        sound = torch.ones_like(self.state.ids, dtype=torch.bool)
        pairs, _ = self._neighbours.near(self.state, sound)
        prediction = self._evaluate(pairs)
        self.state.forces = prediction.forces.double()
        observer.observe(0, self.state, prediction)
        for step in range(1, steps + 1):
            self.integrator.drift(self.state, self.noise())
            pairs = self._check(step, observer)
            if not len(self.state):
                return
            prediction = self._evaluate(pairs)
            self.integrator.kick(self.state, prediction.forces.double())
            observer.observe(step, self.state, prediction)

    def _evaluate(self, pairs: Pairs) -> Prediction:
        s = self.state
        # From each replica's first atom: single precision would round positions that have diffused far away.
        positions = (s.positions - s.positions[s.start][s.system]).to(self._dtype)
        shifts = pairs.shifts.to(self._dtype)
        return self._predict(
            Batch(positions=positions, first=pairs.first, second=pairs.second, shifts=shifts, **self._constant)
        )

    def _check(self, step: int, observer: Observer) -> Pairs:
        """Let exploded replicas go, and return the pairs of the others."""
        codes = self._watch.motion(self.state)
        sound = codes == SOUND
        pairs, distances = self._neighbours.near(self.state, sound)
        codes = torch.where(sound, self._watch.geometry(self.state, pairs, distances), codes)
        if not codes.any():
            return pairs
        self._report(step, codes, pairs, observer)
        keep = codes == SOUND
        self._watch.select(self.state, keep)
        self._neighbours.select(self.state, keep)
        self.noise.select(keep)
        pairs, self.state = pairs.select(self.state, keep), self.state.select(keep)
        self._prepare()
        return pairs

    def _report(self, step: int, codes: Tensor, pairs: Pairs, observer: Observer) -> None:
        everyone = self.state
        for replica in codes.nonzero().flatten().tolist():
            only = torch.arange(len(everyone), device=codes.device) == replica
            self.state, prediction = everyone.select(only), None
            self._prepare()
            if bool(self.state.positions.isfinite().all()):
                prediction = self._evaluate(pairs.select(everyone, only))
                self.state.forces = prediction.forces.double()
            observer.exploded(step, REASONS[int(codes[replica]) - 1], self.state, prediction)
        self.state = everyone
