"""Training steps: energies, forces, backward, Adam; of one network and of an ensemble."""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import BACKBONES, MEMBERS, Race, Workloads, our_model, peer_models, ready_peer, resident
from torch import Tensor, nn

from uqbench.data.graph import Batch


def step(model: nn.Module, batch: Batch, evaluate: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Return a function that takes one optimiser step on the mean absolute errors of energies and forces.

    The optimiser is the one of `uqbench.training.loop`, for ours and the peer's.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        energy, forces = evaluate()
        ((energy - batch.energies).abs().mean() + (forces - batch.forces).abs().mean()).backward()
        optimizer.step()

    return run


def race(kind: str, workload: str, members: int | None) -> Race:
    """Return a training step of ours and of the peer's, which trains its members one after the other."""
    frames, batch = resident(workload)
    model = our_model(kind, frames, members)

    def ours() -> tuple[Tensor, Tensor]:
        output = model(batch, create_graph=True)
        return output.energy, output.forces

    def peer_step(peer: nn.Module) -> Callable[[], object]:
        call = ready_peer(peer.train(), batch)

        def evaluate() -> tuple[Tensor, Tensor]:
            output = call()
            return output["energy"], output["forces"]

        return step(peer, batch, evaluate)

    steps = [peer_step(peer) for peer in peer_models(kind, members or 1)]
    return Race(step(model, batch, ours), (lambda: [one() for one in steps]) if steps else None)


def workloads() -> Workloads:
    """Return the races by name."""
    single = ("ethanol x 64", "aspirin x 16", "silica 576 x 1", "silica 648 x 1")
    workloads = {
        f"training step, {kind}, {system}": lambda kind=kind, system=system: race(kind, system, None)
        for kind in BACKBONES
        for system in single
    }
    return workloads | {
        f"training step, ensemble of {MEMBERS} painn, {system}": lambda system=system: race("painn", system, MEMBERS)
        for system in ("NH3 x 20", "ethanol x 64")
    }
