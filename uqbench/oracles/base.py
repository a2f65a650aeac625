"""The contract of an oracle, and labelling by an engine in worker processes with a cache on disk."""

from __future__ import annotations

import abc
import collections
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
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.config.annotations import UnitInterval
from uqbench.errors import DataError, OracleError
from uqbench.oracles.cache import Geometry, Label, LabelCache, Reservation, geometry_of
from uqbench.oracles.cluster import SlurmPool
from uqbench.oracles.plausibility import KnownLabels
from uqbench.oracles.pool import FAULT, OUT_OF_MEMORY, TIMEOUT, WorkerPool
from uqbench.oracles.worker import LABEL
from uqbench.runs import provenance

# Workers import this module with their engine: what is slow to import, above all scipy, is imported where it is used.
if TYPE_CHECKING:
    from uqbench.data.structures import Structures

log = logging.getLogger(__name__)

POLL_S = 0.2  # between looks at what another process is labelling
FIRST = 20  # geometries after which a larger number is not gone through if fewer than half of them have labels
REMEDIES = {TIMEOUT: "oracle.timeout_s", OUT_OF_MEMORY: "oracle.memory_gb"}  # by how a reason begins

Compute = Callable[[Atoms], tuple[float, NDArray[np.float64]]]
"""Energy in eV and forces (n, 3) in eV/Å of a geometry, from nothing but the geometry."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no label for a geometry, in one line, and how often it was tried."""

    reason: str
    attempts: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """What an oracle said of some frames.

    Attributes:
        frames: as given. outcomes: a Label or a Failure for each, in the same order.
        computed: geometries that were labelled anew; all others were known, repeated, or failed.
        max_failed: share of them that may fail where they are frames to train on.
    """

    frames: list[Atoms]
    outcomes: list[Label | Failure]
    computed: int
    max_failed: float = 1.0

    @property
    def labelled(self) -> list[int]:
        """Indices of the frames that have a label."""
        return [i for i, outcome in enumerate(self.outcomes) if isinstance(outcome, Label)]

    @property
    def failures(self) -> dict[int, str]:
        """The reason of every failure by the index of its frame."""
        return {i: outcome.reason for i, outcome in enumerate(self.outcomes) if isinstance(outcome, Failure)}

    def require_enough(self, names: Sequence[str], record: str) -> None:
        """Raise OracleError where more than `max_failed` of the frames have no label.

        names: of the frames. record: of the message, where all reasons are to be found.
        """
        failures, total = self.failures, len(self.outcomes)
        if len(failures) <= self.max_failed * total:
            return
        kinds = collections.Counter(map(_kind, failures.values()))
        [(kind, count)] = kinds.most_common(1)
        example = next(i for i, reason in failures.items() if _kind(reason) == kind)
        remedy = next((f"a larger {key} or " for start, key in REMEDIES.items() if kind.startswith(start)), "")
        raise OracleError(
            f"oracle: {len(failures)} of {total} frames have no label ({len(failures) / total:.0%}; oracle.max_failed "
            f"allows {self.max_failed:.0%}), {count} of them like {names[example]}: {failures[example]}; all reasons: "
            f"{record}; labels are kept: repeat the command with {remedy}a larger oracle.max_failed"
        )

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
    def label(self, frames: Sequence[Atoms] | Structures, known: KnownLabels | None = None) -> Labels:
        """Label frames, of which numbers, positions, cell and pbc count and nothing else.

        A geometry that cannot be labelled is a Failure among the outcomes, and so is one whose answer is implausible
        beside the `known` labels. Raises a UqbenchError when the oracle itself cannot work.
        """

    def check(self, frames: Sequence[Atoms] | Structures) -> None:  # noqa: B027 - most take any frame
        """Raise ConfigError for frames that no engine with these settings could label; nothing is computed."""

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
    because a crash or a time limit says as much of the machine as of the geometry. For the same reason such a geometry
    is tried again, after all others, and so is one with a nonsensical answer. What the engine itself refuses, such as a
    calculation that does not converge, it would refuse again: engines keep no memory of what they did before.

    Args:
        settings: what decides a label, handed to `engine` in the worker; plain values.
        packages: distributions whose versions decide a label.
        executor: `local` for processes of this machine, `slurm` for a SLURM job for each geometry.
        workers: processes or jobs at once; None for one on each core of this process. threads: of each process.
        timeout_s: wall time for one geometry, in seconds, after which its worker is killed and replaced.
        memory_gb: private memory of each process (RLIMIT_DATA of Linux), 1e9 bytes, of which Python and its
            packages take 0.1 to 0.15; the operating system refuses more. None for no limit.
        retries: how often a geometry is tried again whose worker died, hung or ran out of memory, or whose answer is
            not finite, of a wrong shape or implausible.
        max_failed: share of the frames of a data set or a generation that may stay without a label.
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
        memory_gb: PositiveFloat | None,
        retries: NonNegativeInt,
        max_failed: UnitInterval,
        cache: str | None,
    ) -> None:
        from uqbench.data.download import cache_folder

        target = f"{type(self).__module__}.{type(self).__qualname__}"
        versions = {name: provenance.version(name) for name in packages}
        identity = {"oracle": target, "settings": settings, "versions": versions}
        self.cache = LabelCache(cache_folder(cache) / "labels", identity)
        self.retries, self.max_failed = retries, max_failed
        each = {"workers": workers or provenance.cores(), "threads": threads}
        each |= {"timeout_s": timeout_s, "memory_gb": memory_gb}
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

    def label(self, frames: Sequence[Atoms] | Structures, known: KnownLabels | None = None) -> Labels:
        """Label frames: from the cache, then in the worker processes; see `Oracle.label`."""
        frames = frames_of(frames)
        self.check(frames)
        keys: list[str | Failure] = []
        wanted: dict[str, Geometry] = {}
        for atoms in frames:
            reason = _impossible(atoms)
            geometry = None if reason else geometry_of(atoms)
            keys.append(Failure(reason) if reason else self.cache.key(geometry))
            if geometry:
                wanted[keys[-1]] = geometry
        outcomes, computed = self._find(wanted, known)
        in_order = [key if isinstance(key, Failure) else outcomes[key] for key in keys]
        return Labels(frames, in_order, computed, self.max_failed)

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()

    def _find(
        self, wanted: Mapping[str, Geometry], known: KnownLabels | None
    ) -> tuple[dict[str, Label | Failure], int]:
        """Read or compute the labels of geometries by key; and how many were computed."""
        outcomes: dict[str, Label | Failure] = {}
        missing = {}
        for key, geometry in wanted.items():
            label = self._read(key, geometry, known)
            outcomes |= {} if label is None else {key: label}
            missing |= {key: geometry} if label is None else {}
        attempts: collections.Counter[str] = collections.Counter()
        computed = 0
        while missing:
            before = len(outcomes), attempts.total()
            claims: dict[str, Reservation] = {}
            tasks = self._claimed(missing, claims, outcomes, known)
            try:
                with contextlib.closing(self.pool.run(tasks)) as answers:
                    for key, (kind, content) in answers:
                        attempts[key] += 1
                        reason, again = content, kind == FAULT
                        if kind == LABEL:
                            label = Label(*content)
                            reason, again = _objection(label, missing[key], known), True
                        if reason is not None:
                            self._require_some(attempts.total(), computed, len(wanted), reason)
                        if reason is None:
                            self.cache.write(key, missing[key], label)
                            outcomes[key] = label
                            computed += 1
                        elif again and attempts[key] <= self.retries:
                            log.warning("a geometry will be tried again: %s", reason)
                        else:
                            log.warning("a geometry could not be labelled: %s", reason)
                            outcomes[key] = Failure(reason, attempts[key])
                        claims.pop(key).release()
            finally:
                for claim in claims.values():
                    claim.release()
            # What is left is tried again, or with another process: wait for its labels, or take over where it failed.
            missing = {key: geometry for key, geometry in missing.items() if key not in outcomes}
            if missing and before == (len(outcomes), attempts.total()):
                time.sleep(POLL_S)
        return outcomes, computed

    def _require_some(self, asked: int, labelled: int, total: int, reason: str) -> None:
        """Raise OracleError where of the first geometries of a larger number fewer than half have a label."""
        if FIRST <= asked < 1.5 * FIRST and asked < total and labelled < asked / 2 and self.max_failed < 0.5:
            raise OracleError(
                f"oracle: {asked - labelled} of the first {asked} of {total} geometries have failed, like this one: "
                f"{reason}; look at the settings of the oracle, or go on whatever happens with oracle.max_failed=1"
            )

    def _read(self, key: str, geometry: Geometry, known: KnownLabels | None) -> Label | None:
        """The label in the cache, unless it is one that would not be taken today."""
        label = self.cache.read(key, geometry)
        return None if label is None or _objection(label, geometry, known) else label

    def _claimed(
        self,
        missing: Mapping[str, Geometry],
        claims: dict[str, Reservation],
        outcomes: dict[str, Label | Failure],
        known: KnownLabels | None,
    ) -> Iterator[tuple[str, Geometry]]:
        """Yield what no other process is labelling, each claimed at the moment that it can start."""
        for key, geometry in missing.items():
            claim = self.cache.claim(key)
            if claim is None:
                continue
            claims[key] = claim
            label = self._read(key, geometry, known)
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


def _kind(reason: str) -> str:
    """What reasons of one kind have in common."""
    return reason.partition(":")[0]


def _objection(label: Label, geometry: Geometry, known: KnownLabels | None) -> str | None:
    """Why an answer is no label of a geometry; None where it is one."""
    n_atoms = len(geometry["numbers"])
    if label.forces.shape != (n_atoms, 3):
        return f"the engine returned forces of shape {label.forces.shape} for {n_atoms} atoms"
    if not (np.isfinite(label.energy) and np.isfinite(label.forces).all()):
        return "the engine returned an energy or forces that are not finite"
    return None if known is None else known.objection(geometry["numbers"], label)


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
        return f"overlap: atoms {first} and {second} are closer than {MIN_DISTANCE} Å"
    return None
