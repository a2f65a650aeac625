"""A model of every method as an ASE calculator, by ASE's conventions."""

import pytest
from helpers import fitted_method, options

from uqbench.inference.trained_model import TrainedModel
from uqbench.testing import check_calculator
from uqbench.testing.calculators import default_structures

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("uq", options("uq"))
def test_energy_forces_stress_and_uncertainties_of_a_calculator(uq, ethanol):
    model = TrainedModel(fitted_method(ethanol, "painn_small", uq), calibration=None, device="cpu")
    check_calculator(model.calculator)


def test_the_default_structures_have_a_stress_across_their_cell(ethanol):
    """Otherwise the test above would see nothing of periodic cells."""
    model = TrainedModel(fitted_method(ethanol, "painn_small", "deterministic"), calibration=None, device="cpu")
    _, periodic = default_structures()
    alone = periodic.copy()
    alone.pbc = False
    energies = []
    for atoms in (periodic, alone):
        atoms.calc = model.calculator()
        energies.append(atoms.get_potential_energy())
    assert abs(energies[0] - energies[1]) > 1e-3
    assert abs(periodic.get_stress()).max() > 1e-5
