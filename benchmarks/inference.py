"""Energies and forces of a ready batch; of one network and of an ensemble."""

from __future__ import annotations

from common import BACKBONES, MEMBERS, Race, Workloads, our_model, peer_models, ready_peer, resident


def race(kind: str, workload: str, members: int | None) -> Race:
    """Return a call of ours and of the peer's, which evaluates its members one after the other."""
    frames, batch = resident(workload)
    model = our_model(kind, frames, members).eval()
    calls = [ready_peer(peer.eval(), batch) for peer in peer_models(kind, members or 1)]
    return Race(lambda: model(batch), (lambda: [call() for call in calls]) if calls else None)


def workloads() -> Workloads:
    """Return the races by name."""
    single = ("NH3 x 1", "ethanol x 1", "silica 576 x 1", "silica 648 x 1", "ethanol x 64", "aspirin x 16")
    workloads = {
        f"energy + forces, {kind}, {system}": lambda kind=kind, system=system: race(kind, system, None)
        for kind in BACKBONES
        for system in single
    }
    return workloads | {
        f"energy + forces, ensemble of {MEMBERS} painn, {system}": lambda system=system: race("painn", system, MEMBERS)
        for system in ("NH3 x 1", "ethanol x 1")
    }
