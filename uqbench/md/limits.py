"""When a simulation counts as exploded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from ase.data import covalent_radii
from pydantic import PositiveFloat
from scipy.stats import chi2
from torch import Tensor

from uqbench.data.structures import Structures
from uqbench.data.verlet import Coordinates, PairList, pairs_within
from uqbench.errors import DataError
from uqbench.md.state import State

SOUND = 0
REASONS = ("not_finite", "kinetic_energy", "min_distance", "max_distance", "bond_stretch")
"""Why a replica exploded; its code is the index here plus one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a sound simulation never does.

    The two limits on distances are the study's (ammonia: 0.75 and 2.25 Å). The kinetic energy of a sound replica, over
    kT/2, has a chi-squared distribution with 3N degrees of freedom, whatever the forces (`md.langevin.BAOAB`): its
    limit is passed by chance with probability `kinetic_alarm` per step, at every temperature and size. That holds
    once the start is forgotten: a frame from hotter dynamics heats its replica first. For hundreds of atoms, whose
    kinetic energy hardly fluctuates, that would be an alarm; so none is given below `kinetic_excess` times 3N kT/2.

    Attributes:
        min_distance: Å; no two atoms come so near.
        max_distance: Å; no two atoms of a molecule get so far apart; or None.
        bond_tolerance: atoms nearer than this many sums of covalent radii at the start are bonded.
        bond_stretch: no bond gets as long as this many sums of covalent radii; or None.
        kinetic_alarm: false-alarm probability of the kinetic energy per step and replica; at more than 1e-3 sound
            replicas would count as exploded.
        kinetic_excess: a kinetic energy below this many times its mean is never an alarm; of eleven atoms or more, 4 is
            above what `kinetic_alarm` at 1e-12 allows.
    """

    min_distance: PositiveFloat
    max_distance: PositiveFloat | None
    bond_tolerance: PositiveFloat
    bond_stretch: PositiveFloat | None
    kinetic_alarm: Annotated[float, Interval(gt=0, le=1e-3)]
    kinetic_excess: Annotated[float, Ge(1)]

    @staticmethod
    def contradictions(
        *,
        min_distance: float,
        max_distance: float | None,
        bond_tolerance: float,
        bond_stretch: float | None,
        **_: Any,
    ) -> Iterator[str]:
        """Yield what is wrong between limits that are each right alone."""
        if max_distance is not None and max_distance <= min_distance:
            yield f"max_distance: expected a number > min_distance ({min_distance} Å) or null, got {max_distance}"
        if bond_stretch is not None and bond_stretch <= bond_tolerance:
            yield (
                f"bond_stretch: expected a number > bond_tolerance ({bond_tolerance}), below which atoms are bonded, "
                f"or null; got {bond_stretch}"
            )

    def check_start(self, frames: Structures, split: str) -> None:
        """Raise DataError, naming the frame and the distance, where a start geometry is outside of the limits."""
        if self.max_distance is not None and frames.pbc.any():
            frame = frames.ids[frames.pbc.any(axis=1)][0]
            raise DataError(
                f"protocol.limits.max_distance: frame {frame} of {frames.origin} is periodic, where no distance is the "
                "largest; set it to null"
            )
        coordinates = Coordinates(*map(torch.from_numpy, (frames.positions, frames.cells, frames.pbc, frames.ptr)))
        checks = [("min_distance", torch.le, pairs_within(self.min_distance + 1e-6, coordinates))]
        if self.max_distance is not None:
            checks.append(("max_distance", torch.ge, all_pairs(coordinates.ptr)))
        for name, passes, pairs in checks:
            limit, distances = getattr(self, name), pairs.distances(coordinates.positions)
            passed = passes(distances, limit).nonzero().flatten()
            if len(passed):
                pair = passed[0]
                frame = int(pairs.system[pair])
                first, second = (int(side[pair]) - frames.ptr[frame] for side in (pairs.first, pairs.second))
                raise DataError(
                    f"protocol.limits.{name}: {limit} Å is passed before any step: in frame {frames.ids[frame]} of "
                    f"split '{split}' atoms {first} and {second} are {float(distances[pair]):.3f} Å apart; change the "
                    "limit or start elsewhere"
                )


def all_pairs(ptr: Tensor) -> PairList:
    """All pairs of atoms within each of S systems, without images; ptr (S + 1,) as in `Batch`."""
    blocks = [torch.triu_indices(n, n, 1, device=ptr.device) for n in ptr.diff().tolist()]
    system = torch.repeat_interleave(torch.tensor([block.shape[1] for block in blocks], device=ptr.device))
    first, second = torch.cat(blocks, dim=1) + ptr[system]
    return PairList(system, first, second, torch.zeros(len(system), 3, dtype=torch.float64, device=ptr.device))


class Criteria:
    """The limits of some replicas, which every step is compared with, without waiting for the result.

    Args:
        limits: of sound behaviour.
        state: the replicas at their start, whose bonds are followed.
    """

    def __init__(self, limits: Limits, state: State) -> None:
        self.limits = limits
        degrees = 3 * state.n_atoms.cpu().numpy()
        bound = np.maximum(chi2.isf(limits.kinetic_alarm, degrees), limits.kinetic_excess * degrees)
        self._highest_kinetic = 0.5 * state.kT * torch.as_tensor(bound).to(state.kT)
        self._all_pairs = all_pairs(state.ptr) if limits.max_distance is not None else None
        self._bonds, self._longest = self._find_bonds(state) if limits.bond_stretch is not None else (None, None)

    def _find_bonds(self, state: State) -> tuple[PairList, Tensor]:
        """Return the bonds at the start and the length in Å at which each is broken."""
        radii = torch.as_tensor(covalent_radii).to(state.positions)[state.numbers]
        reach = self.limits.bond_tolerance * 2 * float(radii.max())
        pairs = pairs_within(reach, state.coordinates)
        sums = radii[pairs.first] + radii[pairs.second]
        bonded = pairs.distances(state.positions) < self.limits.bond_tolerance * sums
        return pairs.where(bonded), self.limits.bond_stretch * sums[bonded]

    def motion(self, state: State) -> Tensor:
        """Return codes (R,) by positions and velocities alone: SOUND, not finite, or too hot."""
        finite = state.sums((~state.positions.isfinite()).any(-1).double()).eq(0) & state.kinetic.isfinite()
        codes = torch.where(state.kinetic > self._highest_kinetic, _code("kinetic_energy"), SOUND)
        return torch.where(finite, codes, _code("not_finite"))

    def geometry(self, state: State, pairs: PairList, distances: Tensor) -> Tensor:
        """Return codes (R,) by distances; `pairs`, `distances` (P,) apart, are at least those below min_distance."""
        x = state.positions
        checks = [("min_distance", pairs, distances <= self.limits.min_distance)]
        if self._all_pairs is not None:
            checks.append(("max_distance", self._all_pairs, self._all_pairs.distances(x) >= self.limits.max_distance))
        if self._bonds is not None:
            checks.append(("bond_stretch", self._bonds, self._bonds.distances(x) >= self._longest))
        codes = torch.zeros_like(state.ids)
        for name, compared, passed in reversed(checks):
            hits = passed.new_zeros(len(state), dtype=torch.int64).index_add(0, compared.system, passed.long())
            codes = torch.where(hits > 0, _code(name), codes)
        return codes

    def select(self, state: State, keep: Tensor) -> None:
        """Follow `state.select(keep)`; the bonds stay those of the start."""
        self._highest_kinetic = self._highest_kinetic[keep]
        if self._all_pairs is not None:
            self._all_pairs = self._all_pairs.select(keep, state.system)
        if self._bonds is not None:
            self._longest = self._longest[keep[self._bonds.system]]
            self._bonds = self._bonds.select(keep, state.system)


def _code(reason: str) -> int:
    return REASONS.index(reason) + 1
