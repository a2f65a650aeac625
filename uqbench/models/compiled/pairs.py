"""Pairs of neighbours, evaluated in pieces."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

# Pairs evaluated at a time on a CPU: bounds the memory for intermediate results, some thirty arrays of
# (2 · CHUNK, features). Measured: fewer pairs cost calls, more pairs gain nothing.
CHUNK = 768


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Members m0:m1 and pairs p0:p1, small enough to be evaluated at once.

    Attributes:
        members, pairs: slices of the member and the pair axis.
        shape: (m, 2, p): members, directions (first ← second, second ← first) and pairs of the piece.
    """

    members: slice
    pairs: slice
    shape: tuple[int, int, int]


class Pairs:
    """Neighbouring atoms (i, j), each pair once, for all members of an ensemble.

    Both directions of a pair share distance, filter and (up to sign) direction vector, which are stored once.

    Args:
        first, second: (P,) atoms i and j; the pair's direction points from i to j.
        n_atoms: N.
        members: M.
    """

    def __init__(self, first: Tensor, second: Tensor, n_atoms: int, members: int) -> None:
        self.first, self.second, self.n_atoms, self.members = first, second, n_atoms, members
        self._rows: dict[tuple[str, int], list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.first)

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Receivers (2 P,) and senders (2 P,): first ← second of all pairs, then second ← first."""
        return torch.cat([self.first, self.second]), torch.cat([self.second, self.first])

    @functools.cached_property
    def chunks(self) -> list[Chunk]:
        """Pieces that cover all members and pairs."""
        return list(self._cut())

    def _cut(self) -> Iterator[Chunk]:
        size = CHUNK if self.first.device.type == "cpu" else max(1, len(self) * self.members)
        # Small graphs share a piece with other members, large ones have several to themselves.
        stride = max(1, size // max(1, len(self)))
        for m in range(0, self.members, stride):
            members = slice(m, min(m + stride, self.members))
            for p in range(0, len(self), size):
                pairs = slice(p, min(p + size, len(self)))
                yield Chunk(members, pairs, (members.stop - members.start, 2, pairs.stop - pairs.start))

    def receivers(self, blocks: int) -> list[Tensor]:
        """Return for each chunk its receivers' rows in features (M · blocks · N, F), ordered (blocks, m, 2, p)."""
        return self._lookup("receivers", (self.first, self.second), blocks)

    def senders(self, blocks: int) -> list[Tensor]:
        """Return for each chunk its senders' rows in features (M · blocks · N, F), ordered (blocks, m, 2, p)."""
        return self._lookup("senders", (self.second, self.first), blocks)

    def _lookup(self, role: str, directions: tuple[Tensor, Tensor], blocks: int) -> list[Tensor]:
        if (role, blocks) not in self._rows:
            atoms = torch.stack(directions)
            start = self.n_atoms * torch.arange(self.members * blocks, device=atoms.device)
            start = start.view(self.members, blocks, 1, 1).transpose(0, 1)
            self._rows[role, blocks] = [
                (start[:, chunk.members] + atoms[:, chunk.pairs]).flatten() for chunk in self.chunks
            ]
        return self._rows[role, blocks]
