"""Steps of dynamics of a periodic system: ours whole, with integrator, checks and neighbours; the peer's forces."""

from __future__ import annotations

import numpy as np
from ase import units
from common import BACKBONES, CUTOFF, Race, Workloads, our_model, peer_model, ready_peer, resident

from uqbench.md.driver import Dynamics, ForceField
from uqbench.md.langevin import Noise
from uqbench.md.limits import Limits
from uqbench.md.protocol import Protocol
from uqbench.md.state import State
from uqbench.uq.base import Prediction

STEPS = 5  # of a call; the neighbour list is made once in it and lasts, as it does for longer
PROTOCOL = Protocol(
    timestep_fs=1.0,
    friction_per_ps=10.0,
    duration_ps=1e-3 * STEPS,
    equilibration_ps=0.0,
    record_every=1,
    skin=1.0,
    batch_size=1,
    limits=Limits(
        min_distance=1e-3,
        max_distance=None,
        bond_tolerance=1.25,
        bond_stretch=None,
        kinetic_alarm=1e-300,
        kinetic_excess=1.0,
    ),
)
TEMPERATURE = 1.0  # K: an untrained model lets warm atoms fly into each other; the time of a step is the same


class Silent:
    """Observes nothing."""

    def observe(self, step: int, state: State, prediction: Prediction) -> None:
        """Do nothing after a step."""

    def exploded(self, step: int, reason: str, state: State, prediction: Prediction | None) -> None:
        """Stop: a step of fewer replicas would be timed."""
        raise SystemExit(f"the simulation has exploded in step {step} ({reason})")


def race(kind: str, workload: str) -> Race:
    """Return STEPS steps of ours, and as many evaluations by the peer, plus one at the start."""
    frames, batch = resident(workload)
    potential = our_model(kind, frames).eval()

    def predict(batch) -> Prediction:
        output = potential(batch)
        score = output.forces.square().sum(-1)
        # An untrained network's forces are no physics: next to none move the atoms.
        return Prediction(output.energy, 1e-3 * output.forces, None, None, score, output.energy)

    force_field = ForceField(predict, batch.positions.dtype, "cpu", CUTOFF)

    def ours() -> None:
        state = State.at_rest(frames, np.full(1, units.kB * TEMPERATURE), np.arange(1), "cpu")
        Dynamics(state, force_field, PROTOCOL, Noise(0, [("noise", 0)], state.n_atoms, "cpu")).run(STEPS, Silent())

    peer = peer_model(kind)
    if peer is None:
        return Race(ours, None, flops=0)
    call = ready_peer(peer.eval(), batch)
    return Race(ours, lambda: [call() for _ in range(STEPS + 1)], flops=0)


def workloads() -> Workloads:
    """Return the races by name."""
    return {
        f"{STEPS} MD steps, {kind}, silica 648 x 1": lambda kind=kind: race(kind, "silica 648 x 1")
        for kind in BACKBONES
    }
