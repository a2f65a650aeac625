"""Minimum energy paths: climbing-image nudged elastic bands on any energy surface, with ASE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic, get_distances
from ase.mep import NEB, NEBTools
from ase.optimize import BFGS, FIRE, LBFGS, MDMin
from ase.utils.forcecurve import fit_images
from numpy.typing import NDArray

from uqbench.data.structures import MIN_DISTANCE
from uqbench.errors import ConfigError, OracleError, UqbenchError
from uqbench.evaluations.reactions import laid_on, same_geometry

OPTIMIZERS = {"BFGS": BFGS, "FIRE": FIRE, "LBFGS": LBFGS, "MDMin": MDMin}

Array = NDArray[np.float64]
Attach = Callable[[Sequence[Atoms]], None]
"""Gives every image a calculator of its own."""


@dataclasses.dataclass(frozen=True)
class BandSettings:
    """How a path is found; see conf/evaluation/neb.yaml.

    Sources: Henkelman, Uberuaga and Jónsson, J. Chem. Phys. 113, 9901 (2000), climbing image; Henkelman and Jónsson,
    J. Chem. Phys. 113, 9978 (2000), improved tangents; Smidstrup et al., J. Chem. Phys. 140, 214106 (2014), IDPP.
    """

    images: int
    interpolation: Literal["linear", "idpp"]
    spring: float
    climb_below: float | None
    optimizer: Literal["BFGS", "FIRE", "LBFGS", "MDMin"]
    fmax: float
    steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A path of n images over one energy surface.

    Attributes:
        images: frames whose calculators hold energy and forces; without those where the search has broken down.
        problems: why the path is not to be trusted, one line each; empty when it has converged.
        fmax: largest force left on an image of the band, eV/Å; NaN where the search has broken down.
        climbed: whether the highest image sits on the saddle, rather than near it.
    """

    images: list[Atoms]
    problems: list[str]
    fmax: float
    climbed: bool

    @property
    def known(self) -> bool:
        """Whether there are energies at all."""
        return all(image.calc is not None for image in self.images)

    @property
    def energies(self) -> Array:
        """(n,) eV, NaN where unknown."""
        return np.array([image.get_potential_energy() if self.known else np.nan for image in self.images])

    @property
    def lengths(self) -> Array:
        """(n,) way from the first image in Å: the sum of the distances between neighbours in 3N dimensions."""
        steps = [_displacement(a, b) for a, b in zip(self.images[:-1], self.images[1:], strict=True)]
        return np.concatenate([[0.0], np.cumsum([np.linalg.norm(step) for step in steps])])

    @property
    def saddle(self) -> int:
        """Index of the highest image."""
        return int(np.argmax(self.energies))

    def barriers(self) -> tuple[float, float]:
        """Barriers in eV from the first image and from the last one; NaN where unknown.

        The energy of the climbing image; of the highest point of ASE's cubic fit where none has climbed.
        """
        if not self.known:
            return np.nan, np.nan
        barrier, difference = NEBTools(self.images).get_barrier(fit=not self.climbed)
        return float(barrier), float(barrier - difference)

    def profile(self, points: int) -> tuple[Array, Array]:
        """Reaction coordinate from 0 to 1 and energy in eV from that of the first image, (points,) each.

        A cubic through energies and forces of the images.
        """
        coordinate = np.linspace(0.0, 1.0, points)
        if not self.known:
            return coordinate, np.full(points, np.nan)
        fit = fit_images(self.images)
        return coordinate, np.interp(coordinate, fit.fit_path / fit.fit_path[-1], fit.fit_energies)


def find_path(frames: Sequence[Atoms], attach: Attach, settings: BandSettings) -> Path:
    """Relax both ends, and the band between them, under the constraints of the frames.

    frames: at least two, aligned, all with the same constraints; further ones are on the way. What goes wrong on this
    surface is a problem of the path, and no exception, unless the calculators cannot be used at all (ConfigError,
    OracleError).
    """
    ends = [frames[0].copy(), frames[-1].copy()]
    problems: list[str] = []
    images = ends
    try:
        attach(ends)
        for name, atoms in zip(("first", "last"), ends, strict=True):
            with OPTIMIZERS[settings.optimizer](atoms, logfile=None) as optimizer:
                if not optimizer.run(fmax=settings.fmax, steps=settings.steps):
                    problems.append(f"the {name} end is not relaxed after {settings.steps} steps")
        ends = [laid_on(ends[0], ends[0]), laid_on(ends[1], ends[0])]
        if len(frames) == 2 and same_geometry(*ends):
            return _broken(ends, [*problems, "both ends relax into the same geometry: there is no barrier between"])
        images = _interpolated([ends[0], *frames[1:-1], ends[1]], settings)
        closest = min(_closest(image) for image in images)
        if closest < MIN_DISTANCE:
            advice = "take another interpolation, or give frames on the way"
            return _broken(images, [*problems, f"atoms come as close as {closest:.2f} Å on the first path; {advice}"])
        attach(images)
        fmax, climbed = _relax_band(images, settings)
        results = [
            {"energy": image.get_potential_energy(), "forces": image.get_forces(apply_constraint=False)}
            for image in images
        ]
    except (ConfigError, OracleError):
        raise
    except UqbenchError as error:
        return _broken(images, [*problems, str(error)])
    if fmax >= settings.fmax:
        problems.append(f"not converged after {settings.steps} steps: a force of {fmax:.3g} eV/Å is left on the band")
    if settings.climb_below is not None and not climbed:
        problems.append("no image has climbed to the saddle")
    for image, values in zip(images, results, strict=True):
        image.calc = SinglePointCalculator(image, **values)
    return Path(images, problems, fmax, climbed)


def _relax_band(images: list[Atoms], settings: BandSettings) -> tuple[float, bool]:
    """Relax in place; returns the largest force that is left in eV/Å, and whether an image has climbed."""
    neb = NEB(images, k=settings.spring, climb=False, method="improvedtangent")
    make = OPTIMIZERS[settings.optimizer]
    left = settings.steps
    if settings.climb_below is not None:
        # A new optimiser when the climbing starts: what the old one knows of the forces is no longer true.
        with make(neb, logfile=None) as optimizer:
            optimizer.run(fmax=max(settings.climb_below, settings.fmax), steps=left)
            left -= optimizer.nsteps
        neb.climb = left > 0
    if left > 0:
        with make(neb, logfile=None) as optimizer:
            optimizer.run(fmax=settings.fmax, steps=left)
    return float(np.linalg.norm(neb.get_forces(), axis=1).max()), neb.climb


def _interpolated(frames: list[Atoms], settings: BandSettings) -> list[Atoms]:
    """Frames (>= 2) to evenly spaced images, along straight lines; two frames also by IDPP."""
    points = [frames[0].positions]
    for earlier, later in zip(frames[:-1], frames[1:], strict=True):
        points.append(points[-1] + _displacement(earlier, later))
    lengths = np.cumsum([0.0, *(np.linalg.norm(b - a) for a, b in zip(points[:-1], points[1:], strict=True))])
    ways = np.linspace(0.0, lengths[-1], settings.images)
    columns = np.reshape(points, (len(points), -1)).T
    positions = np.transpose([np.interp(ways, lengths, column) for column in columns])
    images = [frames[0].copy() for _ in ways]
    for image, x in zip(images, positions, strict=True):
        image.positions = x.reshape(-1, 3)
    if settings.interpolation == "idpp" and len(frames) == 2:
        mic = bool(images[0].pbc.any())
        NEB(images, method="improvedtangent").interpolate("idpp", mic=mic, apply_constraint=False)
    return images


def _displacement(first: Atoms, second: Atoms) -> Array:
    return find_mic(second.positions - first.positions, first.cell, first.pbc)[0]


def _closest(atoms: Atoms) -> float:
    """Smallest distance of two atoms in Å; infinite for a single one."""
    distances = get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1]
    return float(distances[np.triu_indices(len(atoms), k=1)].min(initial=np.inf))


def _broken(images: Sequence[Atoms], problems: list[str]) -> Path:
    bare = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc, constraint=a.constraints) for a in images]
    return Path(bare, problems, float("nan"), False)
