"""What every backbone must hold as a potential: symmetries, forces as derivatives, the cutoff, members."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from helpers import graphs_of, options, small_config, small_method
from scipy.spatial.transform import Rotation

from uqbench.errors import ConfigError, DataError
from uqbench.model import build_method
from uqbench.potential import Normalisation, Potential
from uqbench.structures import Structures


def labelled(*frames: Atoms) -> Structures:
    """Frames with made-up labels, for predictions only."""
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.ones_like(atoms.positions)
    return Structures.from_atoms(list(frames), origin="test", energy_key="energy", force_key="forces")


@pytest.fixture(scope="module", params=options("backbone"))
def backbone(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def potential(backbone) -> Potential:
    """A potential for H, C, N, O, Mg with lively random weights in float64."""
    method = small_method(labelled(molecule("CH3CONH2"), bulk("MgO", "rocksalt", a=4.3)), backbone, "deterministic")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return method.potential


def evaluate(potential, frames):
    graphs = graphs_of(frames, potential.backbone.cutoff)
    return potential(graphs.batch(range(len(graphs))))


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    made = [molecule(name) for name in ("CH3CH2OH", "H2O", "CH3CONH2")]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return labelled(*made)


def close(a, b, rtol=1e-9):
    scale = float(b.abs().max())
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-11 * scale)


def test_a_batch_equals_its_frames_one_by_one(potential, frames):
    together = evaluate(potential, frames)
    alone = [evaluate(potential, frames[[s]]) for s in range(len(frames))]
    close(together.energy, torch.cat([output.energy for output in alone]))
    close(together.forces, torch.cat([output.forces for output in alone]))
    close(together.latents, torch.cat([output.latents for output in alone]))


def test_rotation_reflection_translation_and_permutation(potential, frames):
    matrix = -Rotation.from_euler("xyz", [0.4, 1.3, -2.0]).as_matrix()
    order = np.concatenate(
        [np.random.default_rng(s).permutation(n) + frames.ptr[s] for s, n in enumerate(frames.n_atoms)]
    )
    moved = dataclasses.replace(
        frames, positions=(frames.positions @ matrix.T + [3.0, -2.0, 7.0])[order], numbers=frames.numbers[order]
    )
    a, b = evaluate(potential, frames), evaluate(potential, moved)
    close(b.energy, a.energy)
    close(b.forces, (a.forces @ torch.as_tensor(matrix.T))[order])
    close(b.latents, a.latents[order])


def test_forces_are_minus_the_gradient_of_the_energy(potential, frames):
    forces = evaluate(potential, frames).forces
    step = 1e-4
    for atom, axis in ((0, 0), (5, 1), (10, 2), (14, 0)):
        energies = []
        for sign in (1, -1):
            positions = frames.positions.copy()
            positions[atom, axis] += sign * step
            energies.append(float(evaluate(potential, dataclasses.replace(frames, positions=positions)).energy.sum()))
        slope = (energies[0] - energies[1]) / (2 * step)
        assert float(forces[atom, axis]) == pytest.approx(-slope, rel=1e-6, abs=1e-6 * float(forces.abs().max()))


def test_far_molecules_do_not_feel_each_other(potential, frames):
    both = molecule("H2O") + Atoms("N2", [[50.0, 0, 0], [51.1, 0, 0]])
    parts = evaluate(potential, labelled(molecule("H2O"), both[3:]))
    whole = evaluate(potential, labelled(both))
    close(whole.energy, parts.energy.sum(0, keepdim=True))
    close(whole.forces, parts.forces)


def test_the_interaction_ends_smoothly_at_the_cutoff(potential):
    cutoff = potential.backbone.cutoff

    def pair(distance):
        output = evaluate(potential, labelled(Atoms("NO", [[0, 0, 0], [distance, 0, 0]])))
        return float(output.energy), float(output.forces[0, 0])

    apart = pair(cutoff + 1.0)
    assert apart[1] == 0.0
    assert pair(cutoff + 1e-3) == apart
    inside = pair(cutoff - 0.5)
    assert inside[0] != apart[0] and inside[1] != 0.0
    # The cosine cutoff and its slope vanish at the end.
    for gap, share in ((1e-3, 1e-2), (1e-4, 1e-3)):
        energy, force = pair(cutoff - gap)
        assert abs(force) < share * abs(inside[1])
        assert abs(energy - apart[0]) < share * abs(inside[0] - apart[0])


def test_an_isolated_atom_has_an_energy_and_no_force(potential):
    output = evaluate(potential, labelled(Atoms("C")))
    assert torch.isfinite(output.energy).all() and float(output.forces.abs().max()) == 0.0


def test_a_cell_smaller_than_the_cutoff_equals_its_supercell(potential):
    """Self images belong in the neighbour list: the primitive cell is a third of the cutoff wide."""
    primitive = bulk("MgO", "rocksalt", a=4.3)
    primitive.positions += np.random.default_rng(0).normal(0, 0.1, primitive.positions.shape)
    large = primitive.repeat((3, 2, 2))
    a, b = evaluate(potential, labelled(primitive)), evaluate(potential, labelled(large))
    close(b.energy, 12 * a.energy)
    close(b.forces, a.forces.repeat(12, 1))


def test_wrapping_atoms_into_the_cell_changes_nothing(potential):
    crystal = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    crystal.positions += np.random.default_rng(0).normal(0, 0.1, crystal.positions.shape)
    moved = crystal.copy()
    moved.positions += np.array([1.7, -3.1, 9.2])
    moved.wrap()
    a, b = evaluate(potential, labelled(crystal)), evaluate(potential, labelled(moved))
    close(b.energy, a.energy)
    close(b.forces, a.forces)


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
    graphs = graphs_of(labelled(*systems), potential.backbone.cutoff)
    batch = graphs.batch(range(len(systems)))
    plain, output = potential(batch), potential(batch, stress=True)
    assert plain.stress is None and output.stress.shape == (len(systems), 3, 3)
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


def test_an_unknown_element_is_refused(potential):
    with pytest.raises(DataError, match="was not trained on F; it knows H, C, N, O, Mg"):
        evaluate(potential, labelled(molecule("HF")))


def test_coincident_atoms_are_refused():
    atoms = Atoms("Mg2", [[0.1, 0, 0], [0.1, 0, 0]])
    with pytest.raises(DataError, match=r"closer than|coincident"):
        graphs_of(labelled(atoms))


def test_second_derivatives_by_positions_are_exact(potential, frames):
    """Attacks differentiate functions of forces by positions, through everything."""
    graphs = graphs_of(frames[:1], potential.backbone.cutoff)
    batch = graphs.batch([0])

    def objective(positions):
        return potential(batch.with_positions(positions), create_graph=True).forces.square().sum()

    positions = batch.positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(positions), positions)
    step = 1e-4
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        shift = torch.zeros_like(positions)
        shift[atom, axis] = step
        difference = objective(batch.positions + shift) - objective(batch.positions - shift)
        slope = float(difference.detach()) / (2 * step)
        assert float(gradient[atom, axis]) == pytest.approx(slope, rel=1e-5, abs=1e-6 * float(gradient.abs().max()))


def test_third_derivatives_by_positions_are_exact(potential, frames):
    """Training on attacked structures differentiates a gradient of forces once more."""
    batch = graphs_of(frames[:1], potential.backbone.cutoff).batch([0])

    def objective(positions):
        forces = potential(batch.with_positions(positions), create_graph=True).forces
        (gradient,) = torch.autograd.grad(forces.square().sum(), positions, create_graph=True)
        return gradient.square().sum()

    positions = batch.positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(positions), positions)
    step = 1e-4
    for atom, axis in ((1, 0), (3, 2)):
        shift = torch.zeros_like(positions)
        shift[atom, axis] = step
        ends = [objective((batch.positions + sign * shift).requires_grad_(True)).detach() for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert float(gradient[atom, axis]) == pytest.approx(slope, rel=1e-5, abs=1e-6 * float(gradient.abs().max()))


def test_gradients_of_a_force_loss_by_the_parameters_are_exact(potential, frames):
    """Training is second order; for some entries of every parameter, against finite differences."""
    graphs = graphs_of(frames, potential.backbone.cutoff)
    batch = graphs.batch([0, 1])

    def loss(create_graph):
        output = potential(batch, create_graph=create_graph)
        return output.forces.square().sum() + output.energy.sum()

    potential.zero_grad()
    loss(True).backward()
    largest = max(float(p.grad.abs().max()) for p in potential.parameters())
    for name, parameter in potential.named_parameters():
        entry = int(parameter.grad.abs().argmax())
        flat, step, values = parameter.data.view(-1), 1e-5, []
        kept = float(flat[entry])
        for sign in (1, -1):
            flat[entry] = kept + sign * step
            values.append(float(loss(False)))
        flat[entry] = kept
        slope = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad.view(-1)[entry]) == pytest.approx(slope, rel=1e-5, abs=1e-8 * largest), name


def test_members_equal_single_models_of_the_same_streams(backbone, ethanol):
    from uqbench.backbones.blocks import Initialiser
    from uqbench.config import build

    cfg = small_config(backbone, "deterministic")
    constants = Normalisation.fit(ethanol)

    def make(members, first):
        init = Initialiser(3, members, first)
        net = build(cfg.backbone, n_species=len(constants.elements), init=init)
        return Potential(net, heads={}, normalisation=constants, activation="silu", init=init).double()

    frames = ethanol[:3]
    ensemble = evaluate(make(3, 0), frames)
    for m in range(3):
        single = evaluate(make(None, m), frames)
        close(ensemble.energy[m], single.energy)
        close(ensemble.forces[m], single.forces, rtol=1e-8)


def test_float32_agrees_with_float64(backbone, frames):
    method = small_method(frames, backbone, "deterministic")
    exact = evaluate(method.potential, frames)
    from uqbench.graph import GraphSet

    single = method.to(torch.float32).potential
    rough = single(GraphSet(frames, single.backbone.cutoff, dtype=torch.float32).batch(range(len(frames))))
    assert rough.forces.dtype == torch.float32 and rough.energy.dtype == torch.float64
    torch.testing.assert_close(
        rough.forces.double(), exact.forces, rtol=1e-3, atol=1e-4 * float(exact.forces.abs().max())
    )


@pytest.mark.parametrize(
    "key", ["backbone.features", "backbone.layers", "backbone.radial_functions", "backbone.cutoff"]
)
def test_impossible_sizes_are_refused(backbone, ethanol, key):
    with pytest.raises(ConfigError):
        build_method(small_config(backbone, "deterministic", **{key: 0}), Normalisation.fit(ethanol))
