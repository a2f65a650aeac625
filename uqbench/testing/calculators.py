"""What every ASE calculator must hold: energy, forces and stress by ASE's conventions, and uncertainties."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from uqbench.testing import frames
from uqbench.testing.checks import Checks, require, require_close, require_equal, require_slopes, spread

# Of the uncertainties, those of the whole system and those of each atom; `score` may have any sign.
UNCERTAINTIES = {"energy_std": False, "forces_std": True, "score": True}
STEP = 1e-3  # Å, of finite differences of the energy


def check_calculator(
    build: Callable[[], Calculator], *, structures: Sequence[Atoms] | None = None, rtol: float = 1e-5
) -> None:
    """Check an ASE calculator: forces and stress as derivatives of the energy, symmetries, repeated calls, far copies.

    Uncertainties among its properties (`energy_std`, `forces_std`, `score`) must have the right shapes, not be
    negative (but for `score`) and stay under rotation.

    Args:
        build: returns a new calculator, in double precision.
        structures: of the elements that it knows, at least one that is not periodic; by default a distorted molecule
            of ethanol and one in a skewed periodic cell.
        rtol: of comparisons with finite differences, relative to the largest force or stress. An engine that iterates
            to a tolerance of its own needs more than the default.

    Raises AssertionError with all checks that failed and what they saw.

    Example:
        >>> from functools import partial
        >>> from ase.calculators.lj import LennardJones
        >>> from uqbench.testing import check_calculator
        >>> check_calculator(partial(LennardJones, sigma=1.2, rc=5.0, smooth=True))
    """
    CHECKS.run(Subject(build, list(default_structures() if structures is None else structures), rtol))


def default_structures() -> list[Atoms]:
    """Return a distorted molecule of ethanol, and one in a periodic cell that it interacts across."""
    free, periodic = frames.rattled([molecule("CH3CH2OH")] * 2, 0.05)
    periodic.set_cell([[6.0, 0.0, 0.0], [0.7, 6.2, 0.0], [0.3, -0.5, 6.4]])
    periodic.pbc = True
    return [free, periodic]


@dataclasses.dataclass
class Subject:
    """A kind of calculator, and the structures and accuracy that it is checked with."""

    build: Callable[[], Calculator]
    structures: list[Atoms]
    rtol: float

    @functools.cached_property
    def calculator(self) -> Calculator:
        """One for all checks, which sees one structure after the other."""
        return self.build()

    def results(self, atoms: Atoms, calculator: Calculator | None = None) -> dict[str, Any]:
        """Return energy, forces, and the stress and uncertainties that there are, of a copy of the atoms."""
        calculator = self.calculator if calculator is None else calculator
        atoms = atoms.copy()
        atoms.calc = calculator
        values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(apply_constraint=False)}
        optional = [*UNCERTAINTIES, *(["stress"] if atoms.cell.rank == 3 and atoms.pbc.all() else [])]
        for name in optional:
            if name in calculator.implemented_properties:
                try:
                    values[name] = calculator.get_property(name, atoms)
                except PropertyNotImplementedError:
                    continue
        return values

    @functools.cached_property
    def expected(self) -> list[dict[str, Any]]:
        """The results of all structures, each of a new calculator."""
        return [self.results(atoms, self.build()) for atoms in self.structures]

    def pairs(self) -> list[tuple[Atoms, dict[str, Any]]]:
        """All structures with their results."""
        return list(zip(self.structures, self.expected, strict=True))


CHECKS: Checks[Subject] = Checks("check_calculator")


def require_results(
    results: dict[str, Any], expected: dict[str, Any], *, forces: NDArray, order: NDArray | None = None
) -> None:
    """Raise CheckFailure unless results are as expected, with other forces and another order of the atoms."""
    require(results.keys() >= expected.keys() - {"stress"}, f"results are {', '.join(results)}")
    largest = float(np.abs(forces).max())
    require_close(results["energy"], expected["energy"], "energy", rtol=1e-9)
    require_close(results["forces"], forces, "forces", rtol=1e-7, atol=1e-8 * largest)
    for name, per_atom in UNCERTAINTIES.items():
        if name in expected:
            wanted = expected[name][order] if per_atom and order is not None else expected[name]
            require_close(results[name], wanted, name, rtol=1e-6, atol=1e-7 * float(np.abs(wanted).max()))


@CHECKS
def results_have_the_shapes_of_ase(subject: Subject) -> None:
    for atoms, results in subject.pairs():
        shapes = {"energy": (), "forces": (len(atoms), 3), "stress": (6,)}
        shapes |= {name: (len(atoms),) if per_atom else () for name, per_atom in UNCERTAINTIES.items()}
        for name, value in results.items():
            require(np.shape(value) == shapes[name], f"{name} has shape {np.shape(value)}, expected {shapes[name]}")
            require(np.isfinite(value).all(), f"{name} is not finite")


@CHECKS
def forces_are_minus_the_gradient_of_the_energy(subject: Subject) -> None:
    for atoms, results in subject.pairs():

        def energy(positions: NDArray, atoms: Atoms = atoms) -> float:
            moved = atoms.copy()
            moved.positions = positions
            moved.calc = subject.calculator
            return float(moved.get_potential_energy())

        slopes, largest = -results["forces"], float(np.abs(results["forces"]).max())
        tolerances = {"rtol": subject.rtol, "atol": subject.rtol * largest, "step": STEP}
        require_slopes(slopes, energy, atoms.positions, spread(len(atoms), 4), "-force", **tolerances)


@CHECKS
def the_stress_is_the_gradient_by_strain(subject: Subject) -> None:
    """Positive under tension, in the order xx, yy, zz, yz, xz, xy."""
    for atoms, results in subject.pairs():
        if "stress" not in results:
            continue

        def energy(component: tuple[int, int], size: float, atoms: Atoms = atoms) -> float:
            moved = frames.strained(atoms, component, size)
            moved.calc = subject.calculator
            return float(moved.get_potential_energy())

        expected, size = np.zeros((3, 3)), 2e-4
        for component in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
            near, far = (energy(component, k * size) - energy(component, -k * size) for k in (1, 2))
            slope = (8 * near - far) / (12 * size) / atoms.get_volume()
            expected[component] = expected[component[::-1]] = slope
        wanted = full_3x3_to_voigt_6_stress(expected)
        largest = float(np.abs(wanted).max())
        require_close(results["stress"], wanted, "stress", rtol=10 * subject.rtol, atol=10 * subject.rtol * largest)


def require_motion(subject: Subject, matrix: NDArray) -> None:
    """Raise CheckFailure unless a motion of the atoms and their cell turns the forces and changes nothing else."""
    for atoms, results in subject.pairs():
        moved = atoms.copy()
        moved.set_cell(atoms.cell @ matrix.T, scale_atoms=False)
        moved.positions = atoms.positions @ matrix.T + [3.0, -2.0, 7.0]
        require_results(subject.results(moved), results, forces=results["forces"] @ matrix.T)


@CHECKS
def rotation_and_translation_turn_the_forces_and_nothing_else(subject: Subject) -> None:
    require_motion(subject, frames.ROTATION)


@CHECKS
def reflection_mirrors_the_forces_and_nothing_else(subject: Subject) -> None:
    require_motion(subject, frames.REFLECTION)


@CHECKS
def permutation_permutes(subject: Subject) -> None:
    for atoms, results in subject.pairs():
        order = np.random.default_rng(0).permutation(len(atoms))
        require_results(subject.results(atoms[order]), results, forces=results["forces"][order], order=order)


@CHECKS
def far_copies_add_up(subject: Subject) -> None:
    for atoms, results in subject.pairs():
        if atoms.pbc.any():
            continue
        copy = atoms.copy()
        copy.positions += [60.0, 0.0, 0.0]
        both = subject.results(atoms + copy)
        largest = float(np.abs(results["forces"]).max())
        require_close(both["energy"], 2 * results["energy"], "energy of two copies")
        twice = np.concatenate([results["forces"]] * 2)
        require_close(both["forces"], twice, "forces of two copies", rtol=1e-7, atol=1e-8 * largest)


@CHECKS
def a_calculator_that_is_used_again_gives_what_a_new_one_gives(subject: Subject) -> None:
    """After other atoms, another number of them, and moves of the same object: nothing is kept that has changed."""
    for atoms, results in subject.pairs():
        calculator = subject.build()
        atoms = atoms.copy()
        atoms.calc = calculator
        for name in ("energy", "forces"):
            value = calculator.get_property(name, atoms)
            require_close(value, results[name], f"{name} of a new calculator", rtol=1e-8)
        swapped = atoms.numbers.copy()
        swapped[[0, -1]] = swapped[[-1, 0]]
        changes = {"positions": atoms.positions + 0.05 * np.sin(np.arange(3 * len(atoms))).reshape(-1, 3)}
        changes |= {"numbers": swapped} if (swapped != atoms.numbers).any() else {}
        changes |= {"cell": atoms.cell.array * 1.02} if atoms.pbc.any() else {}
        for name, value in changes.items():
            original = np.array(getattr(atoms, name))
            setattr(atoms, name, value)
            after = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            fresh = subject.results(atoms, subject.build())
            setattr(atoms, name, original)
            largest = float(np.abs(fresh["forces"]).max())
            for key in after:
                atol = 1e-8 * largest if key == "forces" else 0.0
                require_close(after[key], fresh[key], f"{key} after a change of {name}", rtol=1e-8, atol=atol)
        largest = float(np.abs(results["forces"]).max())
        back = atoms.get_forces()
        require_close(back, results["forces"], "forces after going back", rtol=1e-8, atol=1e-8 * largest)


@CHECKS
def a_second_call_gives_the_same_bits(subject: Subject) -> None:
    """Also after somebody has written into the arrays that the first one returned."""
    atoms = subject.structures[0].copy()
    atoms.calc = subject.build()
    first = atoms.get_forces()
    kept = first.copy()
    first *= 0
    require_equal(atoms.get_forces(), kept, "forces")
    energy = atoms.get_potential_energy()
    require(atoms.get_potential_energy() == energy, "the energy has changed")


@CHECKS
def the_atoms_are_left_as_they_were(subject: Subject) -> None:
    for atoms in subject.structures:
        atoms = atoms.copy()
        before = atoms.copy()
        subject.results(atoms)
        atoms.calc = subject.build()
        atoms.get_forces()
        for name in ("positions", "numbers", "cell", "pbc"):
            require_equal(np.array(getattr(atoms, name)), np.array(getattr(before, name)), name)
        require(atoms.arrays.keys() == before.arrays.keys(), "arrays of the atoms were added or removed")


@CHECKS
def standard_deviations_are_not_negative(subject: Subject) -> None:
    for _, results in subject.pairs():
        for name in UNCERTAINTIES.keys() & results.keys() - {"score"}:
            require(np.min(results[name]) >= 0, f"{name} is {np.min(results[name]):.3g}")
