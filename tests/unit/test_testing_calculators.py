"""check_calculator finds what is broken by the name of the property, and passes what is sound."""

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from uqbench.data.graph import neighbour_lists
from uqbench.data.structures import Structures
from uqbench.testing import check_calculator
from uqbench.testing.calculators import CHECKS, UNCERTAINTIES

pytestmark = pytest.mark.numerics

CUTOFF = 4.0


class Sound(Calculator):
    """Pairs with energy Z₁ Z₂ (1 - r / r_c)⁴ / 100, an atom as unsure as it has neighbours."""

    implemented_properties = ["energy", "forces", "stress", *UNCERTAINTIES]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = self.compute(self.atoms)

    def compute(self, atoms):
        structures = Structures.from_atoms([atoms], origin="test", labels="none")
        first, second, shifts, _ = neighbour_lists(structures, CUTOFF)
        vectors = atoms.positions[second] + shifts - atoms.positions[first]
        lengths = np.linalg.norm(vectors, axis=1)
        charges = atoms.numbers[first] * atoms.numbers[second] / 100
        pull = 4 * charges / CUTOFF * (1 - lengths / CUTOFF) ** 3  # of the pair's energy, minus its slope
        along = pull[:, None] * vectors / lengths[:, None]
        forces, crowd = np.zeros_like(atoms.positions), np.zeros(len(atoms))
        np.add.at(forces, second, along)
        np.add.at(forces, first, -along)
        for ends in (first, second):
            np.add.at(crowd, ends, (1 - lengths / CUTOFF) ** 2)
        results = {"energy": float((charges * (1 - lengths / CUTOFF) ** 4).sum()), "forces": forces}
        results |= {"forces_std": 0.1 * crowd, "score": crowd - 1, "energy_std": float(np.sqrt((crowd**2).sum()))}
        if atoms.cell.rank == 3:
            virial = -(along[:, :, None] * vectors[:, None, :]).sum(0)
            results["stress"] = full_3x3_to_voigt_6_stress(virial / atoms.get_volume())
        return results


class Changed(Sound):
    """The sound calculator with something done to its results."""

    def compute(self, atoms):
        results = super().compute(atoms)
        return results | self.changes(results, atoms)

    def changes(self, results, atoms):
        raise NotImplementedError


class ForcesUphill(Changed):
    def changes(self, results, atoms):
        return {"forces": -results["forces"]}


class PressureForStress(Changed):
    def changes(self, results, atoms):
        return {"stress": -results["stress"]} if "stress" in results else {}


class OtherOrderOfTheStress(Changed):
    """xx, yy, zz, xy, yz, xz, as other codes have it."""

    def changes(self, results, atoms):
        return {"stress": results["stress"][[0, 1, 2, 5, 3, 4]]} if "stress" in results else {}


class FlatForces(Changed):
    def changes(self, results, atoms):
        return {"forces": results["forces"].ravel()}


class OneStandardDeviationForEachComponent(Changed):
    def changes(self, results, atoms):
        return {"forces_std": np.repeat(results["forces_std"][:, None], 3, axis=1)}


class NegativeStandardDeviation(Changed):
    def changes(self, results, atoms):
        return {"energy_std": -results["energy_std"]}


class UnsureAlongX(Changed):
    def changes(self, results, atoms):
        return {"score": results["forces"][:, 0]}


class ChiralUncertainty(Changed):
    def changes(self, results, atoms):
        moments = [
            ((atoms.positions - atoms.positions.mean(0)) * weight[:, None]).sum(0)
            for weight in (atoms.numbers, atoms.numbers**2, results["score"])
        ]
        volume = np.linalg.det(moments)
        return {"energy_std": results["energy_std"] * (2 + np.tanh(volume / 1e3))}


class CountsTheAtoms(Changed):
    def changes(self, results, atoms):
        return {"forces_std": results["forces_std"] * (1 + np.arange(len(atoms)))}


class EnergyPerAtom(Changed):
    """Of which forces and stress are the derivatives."""

    def changes(self, results, atoms):
        names = ("energy", "forces", "stress")
        return {name: results[name] / len(atoms) for name in names if name in results}


class KeepsResults(Sound):
    """Looks at positions and cell, not at the elements, to see whether something has changed."""

    def check_state(self, atoms, tol=1e-15):
        return [name for name in super().check_state(atoms, tol) if name in ("positions", "cell")]


class HandsOutItsArrays(Sound):
    def get_property(self, name, atoms=None, allow_calculation=True):
        super().get_property(name, atoms, allow_calculation)
        return self.results[name]


class WrapsTheAtoms(Sound):
    """Moves the user's atoms instead of a copy."""

    def get_property(self, name, atoms=None, allow_calculation=True):
        if atoms is not None:
            atoms.positions -= atoms.positions.mean(0)
        return super().get_property(name, atoms, allow_calculation)


SHAPES = "results_have_the_shapes_of_ase"
FORCES = "forces_are_minus_the_gradient_of_the_energy"
STRESS = "the_stress_is_the_gradient_by_strain"
ROTATION = "rotation_and_translation_turn_the_forces_and_nothing_else"
REFLECTION = "reflection_mirrors_the_forces_and_nothing_else"
PERMUTATION = "permutation_permutes"
BROKEN = {
    ForcesUphill: {FORCES},
    PressureForStress: {STRESS},
    OtherOrderOfTheStress: {STRESS},
    OneStandardDeviationForEachComponent: {SHAPES},
    NegativeStandardDeviation: {"standard_deviations_are_not_negative"},
    UnsureAlongX: {ROTATION, REFLECTION},
    ChiralUncertainty: {REFLECTION},
    CountsTheAtoms: {PERMUTATION},
    EnergyPerAtom: {"far_copies_add_up"},
    KeepsResults: {"a_calculator_that_is_used_again_gives_what_a_new_one_gives"},
    HandsOutItsArrays: {"a_second_call_gives_the_same_bits"},
    WrapsTheAtoms: {"the_atoms_are_left_as_they_were"},
}


def failed(build):
    try:
        check_calculator(build)
    except AssertionError as error:
        return {line.removeprefix("- ").split(":")[0] for line in str(error).splitlines()[1:]}
    return set()


def test_a_sound_calculator_passes():
    check_calculator(Sound)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_calculator_fails_by_the_name_of_what_is_broken(kind):
    assert failed(kind) == BROKEN[kind]


def test_every_check_of_calculators_finds_something():
    assert set().union(*BROKEN.values()) == CHECKS.by_name.keys()


def test_forces_of_the_wrong_shape_fail_by_that_name():
    """And other checks with them, which cannot compute with such an array."""
    assert failed(FlatForces) >= {SHAPES, ROTATION}
