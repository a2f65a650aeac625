"""The contract of an acquisition: from training structures and a trained method to proposals for labelling."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from uqbench.data.geometry import with_near_images
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.seeding import numpy_generator
from uqbench.uq.base import UQMethod


@dataclasses.dataclass(frozen=True, eq=False)
class Proposals:
    """P structures that may be worth a label, with what the method says of them.

    Attributes:
        structures: the geometries, wrapped into their cells, without labels. `ids` are those of the frames that they
            started from.
        frames: (P,) training frame that each started from.
        score: (P,) uncertainty of each structure, larger = less sure, in the method's unit; NaN where it failed.
        energy: (P,) eV, predicted; NaN where it failed.
        stopped: (P,) why a structure ended early, or "" for one that went its whole way.
        history: how each structure got there, one row per proposal and step, in the acquisition's own columns; the
            columns `proposal` and `step` are always there.
    """

    structures: Structures
    frames: NDArray[np.int64]
    score: NDArray[np.float64]
    energy: NDArray[np.float64]
    stopped: NDArray[np.str_]
    history: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frames)


class Acquisition(abc.ABC):
    """Proposes structures to label. It starts from training frames and sees no others."""

    def propose(
        self, method: UQMethod, training: Structures, n: int, *, held_out: Sequence[Structures], seed: int
    ) -> Proposals:
        """Return n proposals, from n training frames drawn by `seed` (each once, if there are enough).

        The method stays on its device and is put into evaluation mode. `held_out` are the frames that must have no
        influence (validation, test): raises DataError when one of them is among the training frames. Two acquisitions
        with the same seed start from the same frames, so that they can be compared in pairs.
        """
        if n < 1:
            raise ConfigError(f"cannot propose {n} structures; ask for at least 1")
        require_disjoint(training, held_out)
        return self.from_frames(method.eval(), training, draw_frames(len(training), n, seed), seed=seed)

    def check(self, method: type[UQMethod]) -> None:  # noqa: B027 - most take any
        """Raise ConfigError where nothing can be proposed with methods of a class; nothing by default."""

    @abc.abstractmethod
    def from_frames(self, method: UQMethod, training: Structures, frames: NDArray[np.int64], *, seed: int) -> Proposals:
        """Return one proposal for each of these training frames (P,).

        A proposal may depend on its frame, on how often that frame came before, and on `seed`; not on which other
        frames stand beside it.
        """


def draw_frames(n_frames: int, n: int, seed: int) -> NDArray[np.int64]:
    """Draw n of the frames 0 .. n_frames - 1; each comes a second time only when all have come once."""
    return np.resize(numpy_generator(seed, "acquisition", "frames").permutation(n_frames), n)


def repeats(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each frame (P,) came before in the list, (P,)."""
    return np.array([np.count_nonzero(frames[:k] == frame) for k, frame in enumerate(frames)], np.int64)


def require_disjoint(training: Structures, held_out: Sequence[Structures]) -> None:
    """Raise DataError when a training frame stands, bit for bit, among the held-out ones too."""
    known = {geometry: int(training.ids[k]) for k, geometry in enumerate(_geometries(training))}
    for other in held_out:
        for k, geometry in enumerate(_geometries(other)):
            if geometry in known:
                raise DataError(
                    f"{training.origin}: frame {known[geometry]} would seed an acquisition, but it is also held out "
                    f"(frame {other.ids[k]} of {other.origin}); only training frames may be seeds"
                )


def _geometries(structures: Structures) -> list[bytes]:
    return [
        structures.numbers[a:b].tobytes() + structures.positions[a:b].tobytes() + structures.cells[s].tobytes()
        for s, (a, b) in enumerate(zip(structures.ptr[:-1], structures.ptr[1:], strict=True))
    ]


def unlabelled(structures: Structures, positions: NDArray[np.float64]) -> Structures:
    """Return the structures at other positions (N, 3), wrapped into their cells, without labels."""
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    # At depth 0 there are no images: what is left are the wrapped atoms.
    _, wrapped = with_near_images(positions, structures.cells, structures.pbc, owner, depth=0.0)
    return dataclasses.replace(structures, positions=wrapped, energies=None, forces=None)


def compositions(structures: Structures) -> list[bytes]:
    """Return a key per frame, (S,), that is equal for frames of the same atoms in any order."""
    return [
        np.sort(structures.numbers[a:b]).tobytes() for a, b in zip(structures.ptr, structures.ptr[1:], strict=False)
    ]
