"""The gradient that an adversarial attack follows: of the variance of an ensemble's forces, by the positions."""

from __future__ import annotations

import torch
from common import MEMBERS, Race, Workloads, our_model, peer_inputs, peer_models, resident
from torch import Tensor

from uqbench.uq.base import force_trace_variance


def race(workload: str) -> Race:
    """Return one gradient of ours and of the peer's members in a loop; nobody differentiates by parameters."""
    frames, batch = resident(workload)
    model = our_model("painn", frames, MEMBERS).eval().requires_grad_(False)
    # Only in training do schnetpack's forces remain differentiable.
    peers = [peer.train().requires_grad_(False) for peer in peer_models("painn", MEMBERS)]
    positions = batch.positions.clone().requires_grad_(True)
    moved = batch.with_positions(positions)

    def gradient(forces: Tensor) -> Tensor:
        return torch.autograd.grad(force_trace_variance(forces, 1).mean(), positions)[0]

    if not peers:
        return Race(lambda: gradient(model(moved, create_graph=True).forces), None)
    import schnetpack.properties as keys

    inputs = peer_inputs(batch) | {keys.R: positions}
    return Race(
        lambda: gradient(model(moved, create_graph=True).forces),
        lambda: gradient(torch.stack([peer(dict(inputs))["forces"] for peer in peers])),
    )


def workloads() -> Workloads:
    """Return the races by name."""
    return {
        f"gradient of Var(F), ensemble of {MEMBERS} painn, {system}": lambda system=system: race(system)
        for system in ("NH3 x 20", "ethanol x 20")
    }
