"""Which proposals are labelled: the physical ones, each once, the least sure or the most diverse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge, Interval
from numpy.typing import NDArray
from pydantic import PositiveFloat

from uqbench.active.acquisition.base import Proposals, compositions
from uqbench.active.duplicates import LARGEST_TOLERANCE, Configuration, first_same
from uqbench.active.physical import closest_contacts, count_pieces
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError

Latents = Callable[[Structures], NDArray[np.float64]]

CHOSEN, NOT_CHOSEN = "chosen", "not chosen"
FAILED, OVERLAP, EXPLODED, ENERGY = "failed", "overlap", "exploded", "energy"
KNOWN, REPEATED = "in training set", "repeated"
STATUSES = (CHOSEN, NOT_CHOSEN, FAILED, OVERLAP, EXPLODED, ENERGY, KNOWN, REPEATED)


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """The outcome of a selection.

    Attributes:
        indices: (at most n,) the chosen proposals, in the order of the choice. Fewer than n where fewer are fit.
        table: one row per proposal: proposal, frame, score, status (one of STATUSES) and detail.
    """

    indices: NDArray[np.int64]
    table: pd.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """How many proposals met which fate, zeros included."""
        return {status: int((self.table.status == status).sum()) for status in STATUSES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Filters proposals, drops repeated ones, and takes the best of the rest.

    Proposals are rejected, in this order of reasons: `failed`, without a finite score; `overlap`; `exploded`, in more
    pieces than any training frame of the same composition; `energy`; `in training set`, and `repeated` among the
    proposals, of which the one with the highest score stays (see `duplicates`).

    Attributes:
        diversity: `none`: the highest scores. `farthest`: of the highest scores, first the very highest, then always
            the structure whose latents are farthest from all that were chosen before.
        pool: `farthest` chooses among the pool · n highest scores.
        min_distance: rejects structures with atoms closer than this times the sum of their covalent radii.
        max_gap: pairs closer than this times that sum hold a structure together.
        energy_window: rejects structures with a predicted energy higher than this above the lowest training energy of
            the same composition, eV per atom; null rejects none.
        tolerance: largest distance of paired atoms in molecules that count as the same, Å; of periodic structures the
            largest difference of their interatomic distances.
    """

    diversity: Literal["none", "farthest"]
    pool: Annotated[float, Ge(1)]
    min_distance: PositiveFloat
    max_gap: PositiveFloat
    energy_window: PositiveFloat | None
    tolerance: Annotated[float, Interval(gt=0, le=LARGEST_TOLERANCE)]

    @staticmethod
    def contradictions(*, min_distance: float, max_gap: float, **_: Any) -> Iterator[str]:
        """Yield what is wrong between settings that are each right alone."""
        if min_distance >= max_gap:
            yield f"min_distance: expected a number < max_gap ({max_gap}), got {min_distance}"

    def select(self, proposals: Proposals, training: Structures, n: int, latents: Latents) -> Chosen:
        """Choose n proposals; `latents` gives one vector per structure and is asked for `farthest` only."""
        if n < 1:
            raise ConfigError(f"cannot select {n} structures; ask for at least 1")
        status = np.full(len(proposals), "", dtype=object)
        detail = np.full(len(proposals), "", dtype=object)
        self._reject_unphysical(proposals, training, status, detail)
        # Highest score first; equal scores in the order of the proposals.
        ranked = np.argsort(-proposals.score, kind="stable")
        self._reject_repeated(proposals, training, ranked, status, detail)
        fit = ranked[status[ranked] == ""]
        if self.diversity == "none" or len(fit) == 0:
            indices = fit[:n]
        else:
            candidates = fit[: max(n, math.ceil(self.pool * n))]
            indices = candidates[farthest_points(latents(proposals.structures[candidates]), n)]
        status[fit] = NOT_CHOSEN
        status[indices] = CHOSEN
        table = {"proposal": np.arange(len(proposals)), "frame": proposals.frames, "score": proposals.score}
        return Chosen(indices, pd.DataFrame({**table, "status": status, "detail": detail}))

    def _reject_unphysical(
        self, proposals: Proposals, training: Structures, status: NDArray[np.str_], detail: NDArray[np.str_]
    ) -> None:
        def reject(rows: NDArray[np.bool_], why: str, text: Callable[[int], str]) -> None:
            for row in np.flatnonzero(rows & (status == "")):
                status[row], detail[row] = why, text(row)

        structures = proposals.structures
        reject(~np.isfinite(proposals.score), FAILED, lambda row: proposals.stopped[row])
        contacts = closest_contacts(structures, self.min_distance)
        reject(
            contacts < self.min_distance, OVERLAP, lambda row: f"atoms at {contacts[row]:.3f} of their covalent radii"
        )
        keys, known = compositions(structures), compositions(training)
        usual: dict[bytes, int] = {}
        for key, pieces in zip(known, count_pieces(training, self.max_gap), strict=True):
            usual[key] = max(usual.get(key, 1), int(pieces))
        pieces = count_pieces(structures, self.max_gap)
        most = np.array([usual.get(key, 1) for key in keys])
        reject(pieces > most, EXPLODED, lambda row: f"{pieces[row]} pieces, at most {most[row]} in training")
        if self.energy_window is not None:
            lowest: dict[bytes, float] = {}
            for key, energy in zip(known, training.energies / training.n_atoms, strict=True):
                lowest[key] = min(lowest.get(key, np.inf), float(energy))
            # A composition without a training frame has no zero of energy; nothing is held against it.
            height = proposals.energy / structures.n_atoms - np.array([lowest.get(key, np.inf) for key in keys])
            reject(height > self.energy_window, ENERGY, lambda row: f"{height[row]:.3f} eV per atom")

    def _reject_repeated(
        self,
        proposals: Proposals,
        training: Structures,
        ranked: NDArray[np.int64],
        status: NDArray[np.str_],
        detail: NDArray[np.str_],
    ) -> None:
        candidates = ranked[status[ranked] == ""]
        geometries = Configuration.of(training) + Configuration.of(proposals.structures[candidates])
        first = first_same(geometries, len(training), self.tolerance)
        for index, row in enumerate(candidates, start=len(training)):
            if first[index] < len(training):
                status[row], detail[row] = KNOWN, f"training frame {first[index]}"
            elif first[index] != index:
                status[row], detail[row] = REPEATED, f"proposal {candidates[first[index] - len(training)]}"


def farthest_points(points: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Choose n of the points (P, F), or all if fewer: the first, then always the one farthest from those chosen."""
    chosen = [0]
    nearest = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < min(n, len(points)):
        nearest[chosen] = -1  # also where several points coincide, each is taken once
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)
