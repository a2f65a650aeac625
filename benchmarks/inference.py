"""Milliseconds per call for energies and forces, ours and schnetpack's in one run."""

from __future__ import annotations

from collections.abc import Callable

from common import main, peer_inputs, ready


def prepare(kind: str, workload: str) -> list[Callable[[], object]]:
    """Return one energy and force call of ours and one of the peer's."""
    ours, peer, batch = ready(kind, workload)
    calls: list[Callable[[], object]] = [lambda: ours.eval()(batch)]
    return calls if peer is None else [*calls, lambda: peer.eval()(peer_inputs(batch))]


if __name__ == "__main__":
    main("energies and forces", prepare)
