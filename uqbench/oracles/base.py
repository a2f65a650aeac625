"""The contract of an oracle, and labelling by an engine in worker processes with a cache on disk."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from uqbench.errors import DataError
from uqbench.oracles.cache import Geometry, Label, LabelCache, Reservation, geometry_of
from uqbench.oracles.cluster import SlurmPool
from uqbench.oracles.pool import WorkerPool
from uqbench.runs import provenance

# Workers import this module with their engine: what is slow to import, above all scipy, is imported where it is used.
if TYPE_CHECKING:
    from uqbench.data.structures import Structures

log = logging.getLogger(__name__)

POLL_S = 0.2  # between looks at what another process is labelling

Compute = Callable[[Atoms], tuple[float, NDArray[np.float64]]]
"""Energy in eV and forces (n, 3) in eV/Å of a geometry, from nothing but the geometry."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no label for a geometry, in one line."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """What an oracle said of some frames.

    Attributes:
        frames: as given. outcomes: a Label or a Failure for each, in the same order.
        computed: geometries that were labelled anew; all others were known, repeated, or failed.
    """

    frames: list[Atoms]
    outcomes: list[Label | Failure]
    computed: int

    @property
    def labelled(self) -> list[int]:
        """Indices of the frames that have a label."""
        return [i for i, outcome in enumerate(self.outcomes) if isinstance(outcome, Label)]

    @property
    def failures(self) -> dict[int, str]:
        """The reason of every failure by the index of its frame."""
        return {i: outcome.reason for i, outcome in enumerate(self.outcomes) if isinstance(outcome, Failure)}

    def structures(self, origin: str) -> Structures:
        """Pack the labelled frames in order; raises DataError when there is none."""
        from uqbench.data.structures import Structures

        chosen = self.labelled
        if not chosen:
            first = next(iter(self.failures.values()), "there were no frames")
            raise DataError(f"{origin}: no frame could be labelled: {first}")
        frames = [self.frames[i] for i in chosen]
        return Structures.from_arrays(
            np.concatenate([atoms.numbers for atoms in frames]),
            np.concatenate([atoms.positions for atoms in frames]),
            np.array([self.outcomes[i].energy for i in chosen]),
            np.concatenate([self.outcomes[i].forces for i in chosen]),
            np.cumsum([0, *map(len, frames)]),
            cells=np.stack([np.asarray(atoms.cell) for atoms in frames]),
            pbc=np.stack([atoms.pbc for atoms in frames]),
            origin=origin,
        )


class Oracle(abc.ABC):
    """A source of reference energies and forces for any geometry, one for each conf/oracle/*.yaml.

    Constructors only keep and check their arguments. An oracle may hold processes: close it, or use it as a context
    manager; it opens again by itself.
    """

    @abc.abstractmethod
    def label(self, frames: Sequence[Atoms] | Structures) -> Labels:
        """Label frames, of which numbers, positions, cell and pbc count and nothing else.

        A geometry that cannot be labelled is a Failure among the outcomes. Raises a UqbenchError when the oracle
        itself cannot work.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what the oracle holds; nothing by default."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(Oracle):
    """An oracle that computes: in worker processes, several at once, and no geometry twice.

    Labels are kept in `cache`, addressed by the geometry rounded to 1e-8 Å and by `settings` and `versions`, for all
    processes and all time; two processes that want the same label at once share the work. Failures are not kept,
    because a crash or a time limit says as much of the machine as of the geometry.

    Args:
        settings: what decides a label, handed to `engine` in the worker; plain values.
        packages: distributions whose versions decide a label.
        executor: `local` for processes of this machine, `slurm` for a SLURM job for each geometry.
        workers: processes or jobs at once; None for one on each core of this process. threads: of each process.
        timeout_s: wall time for one geometry, in seconds, after which its worker is killed and replaced.
        cache: folder of the labels; None for the place of the operating system.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        packages: Sequence[str],
        *,
        executor: Literal["local", "slurm"],
        workers: PositiveInt | None,
        threads: PositiveInt,
        timeout_s: PositiveFloat,
        cache: str | None,
    ) -> None:
        from uqbench.data.download import cache_folder

        target = f"{type(self).__module__}.{type(self).__qualname__}"
        versions = {name: provenance.version(name) for name in packages}
        identity = {"oracle": target, "settings": settings, "versions": versions}
        self.cache = LabelCache(cache_folder(cache) / "labels", identity)
        each = {"workers": workers or provenance.cores(), "threads": threads, "timeout_s": timeout_s}
        if executor == "slurm":
            self.pool = SlurmPool(target, settings, folder=cache_folder(cache) / "slurm", **each)
        else:
            self.pool = WorkerPool(target, settings, **each)

    @staticmethod
    @abc.abstractmethod
    def engine(**settings: Any) -> Compute:
        """Return the function that labels one geometry; called in the worker process.

        Raises ConfigError for settings with which no geometry could be labelled, or for software that is missing.
        """

    def label(self, frames: Sequence[Atoms] | Structures) -> Labels:
        """Label frames: from the cache, then in the worker processes; see `Oracle.label`."""
        frames = frames_of(frames)
        keys: list[str | Failure] = []
        wanted: dict[str, Geometry] = {}
        for atoms in frames:
            reason = _impossible(atoms)
            geometry = None if reason else geometry_of(atoms)
            keys.append(Failure(reason) if reason else self.cache.key(geometry))
            if geometry:
                wanted[keys[-1]] = geometry
        outcomes, computed = self._find(wanted)
        return Labels(frames, [key if isinstance(key, Failure) else outcomes[key] for key in keys], computed)

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()

    def _find(self, wanted: Mapping[str, Geometry]) -> tuple[dict[str, Label | Failure], int]:
        """Read or compute the labels of geometries by key; and how many were computed."""
        outcomes: dict[str, Label | Failure] = {}
        missing = {}
        for key, geometry in wanted.items():
            label = self.cache.read(key, geometry)
            outcomes |= {} if label is None else {key: label}
            missing |= {key: geometry} if label is None else {}
        computed = 0
        while missing:
            claims: dict[str, Reservation] = {}
            tasks = self._claimed(missing, claims, outcomes)
            try:
                with contextlib.closing(self.pool.run(tasks)) as answers:
                    for key, (fine, content) in answers:
                        outcomes[key] = outcome = _outcome(fine, content, missing[key])
                        if isinstance(outcome, Label):
                            self.cache.write(key, missing[key], outcome)
                            computed += 1
                        else:
                            log.warning("a geometry could not be labelled: %s", outcome.reason)
                        claims.pop(key).release()
            finally:
                for claim in claims.values():
                    claim.release()
            # What is left is with another process: wait for its labels, or take over where it has failed.
            before = len(missing)
            missing = {key: geometry for key, geometry in missing.items() if key not in outcomes}
            if missing and len(missing) == before:
                time.sleep(POLL_S)
        return outcomes, computed

    def _claimed(
        self, missing: Mapping[str, Geometry], claims: dict[str, Reservation], outcomes: dict[str, Label | Failure]
    ) -> Iterator[tuple[str, Geometry]]:
        """Yield what no other process is labelling, each claimed at the moment that it can start."""
        for key, geometry in missing.items():
            claim = self.cache.claim(key)
            if claim is None:
                continue
            claims[key] = claim
            label = self.cache.read(key, geometry)
            if label is None:
                yield key, geometry
            else:
                outcomes[key] = label
                claims.pop(key).release()


def frames_of(frames: Sequence[Atoms] | Structures) -> list[Atoms]:
    """Give frames of either kind as ASE's."""
    from uqbench.data.structures import Structures

    return frames.to_atoms() if isinstance(frames, Structures) else list(frames)


def single_point(make_calculator: Callable[[], Calculator]) -> Compute:
    """Label with an ASE calculator, a new one for each geometry: no memory of the last one enters a label."""

    def compute(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
        atoms.calc = make_calculator()
        return atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)

    return compute


def _outcome(fine: bool, content: Any, geometry: Geometry) -> Label | Failure:
    if not fine:
        return Failure(content)
    energy, forces = content
    if forces.shape != (len(geometry["numbers"]), 3):
        return Failure(f"the engine returned forces of shape {forces.shape}")
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return Failure("the engine returned an energy or forces that are not finite")
    return Label(energy, forces)


def _impossible(atoms: Atoms) -> str | None:
    """Why no engine should be asked for a geometry."""
    from scipy.spatial import cKDTree

    from uqbench.data.geometry import with_near_images
    from uqbench.data.structures import MIN_DISTANCE

    if len(atoms) == 0:
        return "there are no atoms"
    if not (np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()):
        return "positions or cell are not finite"
    if np.any(atoms.numbers < 1):
        return "there are atoms of no element"
    frame = np.zeros(len(atoms), np.int64)
    owners, points = with_near_images(
        atoms.positions, np.asarray(atoms.cell)[None], atoms.pbc[None], frame, MIN_DISTANCE
    )
    pairs = cKDTree(points).query_pairs(MIN_DISTANCE, output_type="ndarray")
    if len(pairs):
        first, second = sorted(owners[pairs[0]].tolist())
        return f"atoms {first} and {second} are closer than {MIN_DISTANCE} Å"
    return None
