"""Random displacements: what an attack is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqbench.active.acquisition.base import repeats, unlabelled
from uqbench.data.structures import Structures
from uqbench.seeding import numpy_generator


def random_displacements(
    training: Structures, frames: NDArray[np.int64], rms: ArrayLike, seed: int
) -> tuple[Structures, NDArray[np.float64]]:
    """Return these training frames (P,), displaced in random directions, and the displacements (N, 3) in Å.

    All directions of the 3n coordinates of a structure are equally likely, whole translations and rotations included.
    `rms` (P,) or one for all: root mean square over the atoms of the length of their displacements, Å, met exactly:
    to compare with an attack, give what its history says.
    """
    frames = np.asarray(frames, np.int64)
    start = training[frames]
    moves = []
    for frame, repeat, n, length in zip(
        frames, repeats(frames), start.n_atoms, np.broadcast_to(rms, len(frames)), strict=True
    ):
        draw = numpy_generator(seed, "random displacement", int(frame), int(repeat)).normal(size=(n, 3))
        moves.append(draw * (length * np.sqrt(n) / np.linalg.norm(draw)))
    delta = np.concatenate(moves)
    return unlabelled(start, start.positions + delta), delta
