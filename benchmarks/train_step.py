"""Milliseconds per training step (energies, forces, backward, Adam), ours and schnetpack's in one run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import main, peer_inputs, ready
from torch import Tensor, nn

from uqbench.graph import Batch


def step(model: nn.Module, batch: Batch, evaluate: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Return a function that takes one optimiser step on the mean absolute errors of energies and forces."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        energy, forces = evaluate()
        ((energy - batch.energies).abs().mean() + (forces - batch.forces).abs().mean()).backward()
        optimizer.step()

    return run


def prepare(kind: str, workload: str) -> list[Callable[[], object]]:
    """Return one training step of ours and one of the peer's."""
    ours, peer, batch = ready(kind, workload)

    def evaluate_ours() -> tuple[Tensor, Tensor]:
        output = ours(batch, create_graph=True)
        return output.energy, output.forces

    def evaluate_peer() -> tuple[Tensor, Tensor]:
        output = peer(peer_inputs(batch))
        return output["energy"], output["forces"]

    steps = [step(ours, batch, evaluate_ours)]
    return steps if peer is None else [*steps, step(peer.train(), batch, evaluate_peer)]


if __name__ == "__main__":
    main("training step", prepare)
