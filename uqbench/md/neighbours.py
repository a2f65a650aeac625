"""Pairs of atoms in many replicas: neighbour lists that last for many steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from uqbench.data.graph import neighbour_lists
from uqbench.data.structures import Structures
from uqbench.md.state import State


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of atoms, sorted by replica.

    Attributes:
        replica: (P,) place of the replica in the state.
        first, second: (P,) atoms, counted over all replicas; each pair once.
        shifts: (P, 3) Å, lattice translation of the second atom's image.
    """

    replica: Tensor
    first: Tensor
    second: Tensor
    shifts: Tensor

    def lengths(self, state: State) -> Tensor:
        """Distances (P,) in Å."""
        vectors = state.positions[self.second] - state.positions[self.first] + self.shifts
        return torch.linalg.vector_norm(vectors, dim=-1)

    def where(self, chosen: Tensor) -> Pairs:
        """Return the pairs of a mask (P,) or of indices."""
        return Pairs(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    def select(self, state: State, keep: Tensor) -> Pairs:
        """Follow `state.select(keep)`: keep the pairs of the replicas of a mask (R,), under their new numbers."""
        replica, atom = keep.cumsum(0) - 1, keep[state.system].cumsum(0) - 1
        kept = self.where(keep[self.replica])
        return Pairs(replica[kept.replica], atom[kept.first], atom[kept.second], kept.shifts)


def pairs_within(state: State, cutoff: float, chosen: Tensor) -> Pairs:
    """Find all pairs of atoms, images included, closer than `cutoff` in the replicas of a mask (R,)."""
    part = state.select(chosen)
    frames = Structures(
        numbers=part.numbers.cpu().numpy(),
        positions=part.positions.cpu().numpy(),
        cells=part.cells.cpu().numpy(),
        pbc=part.pbc.cpu().numpy(),
        ptr=part.ptr.cpu().numpy(),
        ids=part.ids.cpu().numpy(),
        origin="simulation",
    )
    first, second, shifts, pair_ptr = neighbour_lists(frames, cutoff)
    replicas = chosen.nonzero().flatten()
    owner = torch.as_tensor(np.repeat(np.arange(len(part)), np.diff(pair_ptr))).to(replicas.device)
    replica = replicas[owner]
    offset = state.start[replica]
    first, second, shifts = (torch.as_tensor(array).to(replicas.device) for array in (first, second, shifts))
    return Pairs(replica, first + offset, second + offset, shifts)


class Neighbours:
    """Verlet lists of many replicas: pairs within cutoff plus skin, renewed where an atom moved by half the skin.

    A molecule whose pairs are all in its list needs no other list, however far it stretches.

    Args:
        state: the replicas.
        cutoff, skin: Å.
    """

    def __init__(self, state: State, *, cutoff: float, skin: float) -> None:
        self.cutoff, self.skin = cutoff, skin
        self._listed = pairs_within(state, cutoff + skin, torch.ones_like(state.ids, dtype=torch.bool))
        self._built_at = state.positions
        self._complete = self._find_complete(state)
        self._all_complete = bool(self._complete.all())

    def _find_complete(self, state: State) -> Tensor:
        found = torch.bincount(self._listed.replica, minlength=len(state))
        return ~state.pbc.any(-1) & (found == state.n_atoms * (state.n_atoms - 1) // 2)

    def near(self, state: State, sound: Tensor) -> tuple[Pairs, Tensor]:
        """Return exactly the pairs closer than the cutoff, with their distances (P,) in Å.

        `sound` (R,) masks the replicas whose positions can be trusted; the lists of others are not renewed.
        """
        if not self._all_complete:
            self._renew(state, sound)
        distances = self._listed.lengths(state)
        inside = distances < self.cutoff
        # Pairs in the skin are left out here, not by the envelope of the backbone: nothing is computed for them.
        return (self._listed, distances) if inside.all() else (self._listed.where(inside), distances[inside])

    def _renew(self, state: State, sound: Tensor) -> None:
        moved = (state.positions - self._built_at).square().sum(-1) > (0.5 * self.skin) ** 2
        if not moved.any():
            return
        stale = state.sums(moved.double()).gt(0) & ~self._complete & sound
        if not stale.any():
            return
        kept, new = (
            self._listed.where(~stale[self._listed.replica]),
            pairs_within(state, self.cutoff + self.skin, stale),
        )
        joined = Pairs(*(torch.cat([getattr(part, f.name) for part in (kept, new)]) for f in dataclasses.fields(Pairs)))
        self._listed = joined.where(joined.replica.argsort(stable=True))
        self._built_at = torch.where(stale[state.system].unsqueeze(-1), state.positions, self._built_at)
        self._complete = self._find_complete(state)
        self._all_complete = bool(self._complete.all())

    def select(self, state: State, keep: Tensor) -> None:
        """Follow `state.select(keep)`."""
        self._listed = self._listed.select(state, keep)
        self._built_at = self._built_at[keep[state.system]]
        self._complete = self._complete[keep]
        self._all_complete = bool(self._complete.all())
