"""What every backbone must hold as a potential: symmetries, forces as derivatives, the cutoff, members."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from helpers import options, small_config, small_method
from model_checks import CHECKS, batch_of, check_members, evaluate, known_elements, labelled

from uqbench.config import build
from uqbench.models.blocks import Initialiser
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module", params=options("backbone"))
def backbone(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def potential(backbone) -> Potential:
    """A potential for H, C, N, O, Mg with lively random weights in float64."""
    method = small_method(known_elements(), backbone, "deterministic")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return method.potential


@pytest.mark.parametrize("name", CHECKS)
def test_it_holds_that(name, potential):
    CHECKS[name](potential)


def strained(atoms, component, size):
    """The atoms and their cell under a symmetric strain of one component of that size."""
    deformation = np.eye(3)
    deformation[component] += size / 2
    deformation[component[::-1]] += size / 2
    copy = atoms.copy()
    copy.set_cell(atoms.cell @ deformation, scale_atoms=False)
    copy.positions = atoms.positions @ deformation
    return copy


def test_the_stress_is_the_gradient_by_strain(potential):
    """In cells smaller and larger than the cutoff, skewed, and periodic in some directions only; all in one batch."""
    rng = np.random.default_rng(0)
    slab = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    slab.set_cell([4.3, 4.3, 12.0])
    slab.pbc = (True, True, False)
    skewed = Atoms("MgO", [[0, 0, 0], [1.5, 1.5, 1.0]], cell=[[3, 0, 0], [2.5, 3, 0], [1, 2, 4]], pbc=True)
    systems = [bulk("MgO", "rocksalt", a=4.3), slab, skewed, bulk("MgO", "rocksalt", a=4.3).repeat(2)]
    for atoms in systems:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    batch = batch_of(labelled(*systems), potential.backbone.cutoff)
    plain, output = potential(batch), potential(batch, stress=True)
    assert plain.stress is None and output.stress.shape == (len(systems), 3, 3)
    assert torch.isfinite(output.stress).all()
    assert torch.equal(output.forces, plain.forces) and torch.equal(output.energy, plain.energy)
    volumes = np.array([atoms.get_volume() for atoms in systems])
    step = 1e-5  # the curvature may jump where a pair crosses the cutoff
    for component in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        up, down = (
            evaluate(potential, labelled(*[strained(atoms, component, sign * step) for atoms in systems])).energy
            for sign in (1, -1)
        )
        expected = (up - down).numpy() / (2 * step) / volumes
        for entry in (component, component[::-1]):
            found = output.stress[:, *entry].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * float(output.stress.abs().max()))


def test_members_equal_single_models_of_the_same_streams(backbone):
    cfg = small_config(backbone, "deterministic")
    constants = Normalisation.fit(known_elements())

    def make(members, first):
        init = Initialiser(3, members, first)
        net = build(cfg.backbone, n_species=len(constants.elements), init=init)
        return compile(Potential(net, heads={}, normalisation=constants, activation="silu", init=init)).double()

    check_members(make)
