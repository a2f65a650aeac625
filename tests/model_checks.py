"""What every potential must hold, one function for each property: it raises AssertionError where the property fails.

All take a potential in float64 that knows H, C, N, O and Mg. `tests/unit/test_model_checks.py` shows that each of them
finds potentials without its property.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation
from torch import Tensor

from uqbench.data.graph import Batch, GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.models.potential import Output, Potential

CHECKS: dict[str, Callable[[Potential], None]] = {}


def check(function: Callable[[Potential], None]) -> Callable[[Potential], None]:
    CHECKS[function.__name__] = function
    return function


def labelled(*frames: Atoms) -> Structures:
    """Frames with made-up labels, for predictions only."""
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.ones_like(atoms.positions)
    return Structures.from_atoms(list(frames), origin="test", energy_key="energy", force_key="forces")


def known_elements() -> Structures:
    """Frames that hold the elements that the checked potentials know."""
    return labelled(molecule("CH3CONH2"), bulk("MgO", "rocksalt", a=4.3))


@functools.cache
def frames() -> Structures:
    """Three distorted molecules, and a crystal whose cell is 3.0 Å wide: less than any cutoff."""
    rng = np.random.default_rng(0)
    made = [molecule(name) for name in ("CH3CH2OH", "H2O", "CH3CONH2")] + [bulk("MgO", "rocksalt", a=4.3)]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return labelled(*made)


def batch_of(structures: Structures, cutoff: float, dtype: torch.dtype = torch.float64) -> Batch:
    return GraphSet(structures, cutoff, dtype=dtype).batch(range(len(structures)))


def evaluate(potential: Potential, structures: Structures) -> Output:
    return potential(batch_of(structures, potential.backbone.cutoff))


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    assert torch.isfinite(a).all() and torch.isfinite(b).all()
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-11 * float(b.detach().abs().max()))


@check
def a_batch_equals_its_frames_one_by_one(potential: Potential) -> None:
    together = evaluate(potential, frames())
    alone = [evaluate(potential, frames()[[s]]) for s in range(len(frames()))]
    close(together.energy, torch.cat([output.energy for output in alone]))
    close(together.forces, torch.cat([output.forces for output in alone]))
    close(together.latents, torch.cat([output.latents for output in alone]))


def check_transformed(potential: Potential, matrix: np.ndarray) -> None:
    moved = dataclasses.replace(frames(), positions=frames().positions @ matrix.T, cells=frames().cells @ matrix.T)
    a, b = evaluate(potential, frames()), evaluate(potential, moved)
    close(b.energy, a.energy)
    close(b.forces, a.forces @ torch.as_tensor(matrix.T))
    close(b.latents, a.latents)


@check
def rotation_turns_the_forces_and_nothing_else(potential: Potential) -> None:
    check_transformed(potential, Rotation.from_euler("xyz", [0.4, 1.3, -2.0]).as_matrix())


@check
def reflection_mirrors_the_forces_and_nothing_else(potential: Potential) -> None:
    normal = np.array([[2.0, -1.0, 2.0]]) / 3
    check_transformed(potential, np.eye(3) - 2 * normal.T @ normal)


@check
def translation_changes_nothing(potential: Potential) -> None:
    moved = dataclasses.replace(frames(), positions=frames().positions + [3.0, -2.0, 7.0])
    a, b = evaluate(potential, frames()), evaluate(potential, moved)
    close(b.energy, a.energy)
    close(b.forces, a.forces)


@check
def permutation_permutes(potential: Potential) -> None:
    rng = np.random.default_rng(0)
    order = np.concatenate(
        [rng.permutation(n) + start for n, start in zip(frames().n_atoms, frames().ptr, strict=False)]
    )
    moved = dataclasses.replace(frames(), positions=frames().positions[order], numbers=frames().numbers[order])
    a, b = evaluate(potential, frames()), evaluate(potential, moved)
    close(b.energy, a.energy)
    close(b.forces, a.forces[order])
    close(b.latents, a.latents[order])


@check
def wrapping_atoms_into_the_cell_changes_nothing(potential: Potential) -> None:
    crystal = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    crystal.positions += np.random.default_rng(0).normal(0, 0.1, crystal.positions.shape)
    moved = crystal.copy()
    # Along x and y half of the atoms leave the cell through a face and come back at the opposite one.
    moved.positions += np.array([3.0, -1.0, 9.2])
    moved.wrap()
    a, b = evaluate(potential, labelled(crystal)), evaluate(potential, labelled(moved))
    close(b.energy, a.energy)
    close(b.forces, a.forces)


@check
def a_cell_smaller_than_the_cutoff_equals_its_supercell(potential: Potential) -> None:
    """Images of an atom are neighbours of its own."""
    primitive = bulk("MgO", "rocksalt", a=4.3)
    primitive.positions += np.random.default_rng(0).normal(0, 0.1, primitive.positions.shape)
    large = primitive.repeat((3, 2, 2))
    a, b = evaluate(potential, labelled(primitive)), evaluate(potential, labelled(large))
    close(b.energy, 12 * a.energy)
    close(b.forces, a.forces.repeat(12, 1))


@check
def far_molecules_add_up(potential: Potential) -> None:
    both = molecule("H2O") + Atoms("N2", [[50.0, 0, 0], [51.1, 0, 0]])
    parts = evaluate(potential, labelled(molecule("H2O"), both[3:]))
    whole = evaluate(potential, labelled(both))
    close(whole.energy, parts.energy.sum(0, keepdim=True))
    close(whole.forces, parts.forces)


@check
def no_gradient_passes_between_frames(potential: Potential) -> None:
    """Neither of energies nor of forces, to the last bit."""
    batch = batch_of(frames(), potential.backbone.cutoff)
    positions = batch.positions.clone().requires_grad_(True)
    output = potential(batch.with_positions(positions), create_graph=True)
    for s in range(len(batch)):
        own = batch.system == s
        for value in (output.energy[s], output.forces[own].square().sum()):
            (gradient,) = torch.autograd.grad(value, positions, retain_graph=True)
            assert gradient[own].abs().max() > 0
            assert not gradient[~own].any(), f"frame {s} feels others"


@check
def forces_are_minus_the_gradient_of_the_energy(potential: Potential) -> None:
    batch = batch_of(frames(), potential.backbone.cutoff)
    forces = potential(batch).forces

    def energy(positions: Tensor) -> Tensor:
        return potential(batch.with_positions(positions)).energy.sum()

    entries = ((0, 0), (5, 1), (10, 2), (14, 0), (len(forces) - 1, 2))
    compare_with_differences(-forces, energy, batch.positions, entries, rtol=1e-6)


@check
def the_interaction_ends_smoothly_at_the_cutoff(potential: Potential) -> None:
    cutoff = potential.backbone.cutoff

    def pair(distance: float) -> tuple[float, float]:
        output = evaluate(potential, labelled(Atoms("NO", [[0, 0, 0], [distance, 0, 0]])))
        return float(output.energy[0]), float(output.forces[0, 0])

    apart, inside = pair(cutoff + 1.0), pair(cutoff - 0.5)
    assert apart[1] == 0.0 and pair(cutoff + 1e-3) == apart, "interaction beyond the cutoff"
    assert inside[0] != apart[0] and inside[1] != 0.0, "no interaction within the cutoff"
    for gap, share in ((1e-3, 1e-2), (1e-4, 1e-3)):
        energy, force = pair(cutoff - gap)
        assert abs(force) < share * abs(inside[1]), "a force at the cutoff"
        assert abs(energy - apart[0]) < share * abs(inside[0] - apart[0]), "an energy at the cutoff"


@check
def nothing_jumps_when_an_atom_crosses_the_cutoff(potential: Potential) -> None:
    """Of three atoms in line the outer two, which both have a neighbour in common, cross each other's cutoff."""

    def chain(gap: float) -> Tensor:
        ends = potential.backbone.cutoff - gap
        output = evaluate(potential, labelled(Atoms("NCO", [[0, 0, 0], [0.45 * ends, 0.1, 0], [ends, 0, 0]])))
        return torch.cat([output.energy, output.forces.flatten()])

    # What is continuous changes a hundred times less over a hundredth of the way.
    far, near = ((chain(gap) - chain(-gap)).abs().max() for gap in (1e-3, 1e-5))
    assert 0 < near < 0.05 * far


@check
def an_isolated_atom_has_an_energy_and_no_force(potential: Potential) -> None:
    output = evaluate(potential, labelled(Atoms("C")))
    assert torch.isfinite(output.energy).all() and torch.isfinite(output.latents).all()
    assert not output.forces.any()


@check
def unknown_elements_are_refused(potential: Potential) -> None:
    message = refusal(lambda: evaluate(potential, labelled(molecule("HF"))))
    assert "was not trained on F; it knows H, C, N, O, Mg" in message


@check
def coincident_atoms_are_refused(potential: Potential) -> None:
    """By the neighbour list, and where atoms move onto each other under a list that was made before."""
    two = Atoms("Mg2", [[0.1, 0, 0], [0.1, 0, 0]])
    assert "closer than" in (message := refusal(lambda: labelled(two))) or "coincident" in message
    batch = batch_of(frames(), potential.backbone.cutoff)
    moved = batch.positions.clone()
    moved[1] = moved[0]
    assert "closer than" in refusal(lambda: potential(batch.with_positions(moved)))


@check
def second_derivatives_by_positions_are_exact(potential: Potential) -> None:
    """Attacks differentiate functions of forces by positions, through everything."""
    batch = batch_of(frames()[:1], potential.backbone.cutoff)

    def objective(positions: Tensor) -> Tensor:
        return potential(batch.with_positions(positions), create_graph=True).forces.square().sum()

    positions = batch.positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(positions), positions)
    compare_with_differences(gradient, objective, batch.positions, ((0, 0), (4, 1), (8, 2)), rtol=1e-5)


@check
def third_derivatives_by_positions_are_exact(potential: Potential) -> None:
    """Training on attacked structures differentiates a gradient of forces once more."""
    batch = batch_of(frames()[:1], potential.backbone.cutoff)

    def objective(positions: Tensor) -> Tensor:
        positions = positions if positions.requires_grad else positions.clone().requires_grad_(True)
        forces = potential(batch.with_positions(positions), create_graph=True).forces
        (gradient,) = torch.autograd.grad(forces.square().sum(), positions, create_graph=True)
        return gradient.square().sum()

    positions = batch.positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(positions), positions)
    compare_with_differences(gradient, objective, batch.positions, ((1, 0), (3, 2)), rtol=1e-5)


@check
def gradients_of_a_force_loss_by_the_parameters_are_exact(potential: Potential) -> None:
    """Training is of second order; here for the entry of every parameter that matters most."""
    batch = batch_of(frames()[:2], potential.backbone.cutoff)

    def loss(create_graph: bool) -> Tensor:
        output = potential(batch, create_graph=create_graph)
        return output.forces.square().sum() + output.energy.sum()

    names, parameters = zip(*potential.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(True), parameters)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        entry = int(gradient.abs().argmax())
        flat, step, values = parameter.data.view(-1), 1e-5, []
        kept = float(flat[entry])
        for sign in (1, -1):
            flat[entry] = kept + sign * step
            values.append(float(loss(False)))
        flat[entry] = kept
        slope, exact = (values[0] - values[1]) / (2 * step), float(gradient.view(-1)[entry])
        assert abs(exact - slope) <= max(1e-5 * abs(slope), 1e-8 * largest), name


@check
def single_precision_agrees_with_double(potential: Potential) -> None:
    exact = evaluate(potential, frames())
    assert exact.latents.dtype == exact.forces.dtype == exact.energy.dtype == torch.float64
    single = copy.deepcopy(potential).to(torch.float32)
    rough = single(batch_of(frames(), potential.backbone.cutoff, torch.float32))
    assert rough.latents.dtype == rough.forces.dtype == torch.float32, "the type of the positions is lost"
    assert rough.energy.dtype == torch.float64
    scale = float(exact.forces.abs().max())
    torch.testing.assert_close(rough.forces.double(), exact.forces, rtol=1e-3, atol=1e-4 * scale)
    again = evaluate(single.to(torch.float64), frames())
    torch.testing.assert_close(again.forces, exact.forces, rtol=1e-3, atol=1e-4 * scale)


def check_members(make: Callable[[int | None, int], Potential]) -> None:
    """Member m of `make(members, 0)` equals the single model `make(None, m)`."""
    ensemble = evaluate(make(3, 0), frames())
    for m in range(3):
        single = evaluate(make(None, m), frames())
        close(ensemble.energy[m], single.energy)
        close(ensemble.forces[m], single.forces, rtol=1e-8)
    assert (ensemble.forces[0] - ensemble.forces[1]).abs().max() > 1e-3 * ensemble.forces.abs().max()


def compare_with_differences(
    gradient: Tensor, function: Callable[[Tensor], Tensor], at: Tensor, entries: tuple, rtol: float
) -> None:
    """Compare entries (atom, axis) of a gradient with differences of the function, exact to the fourth order.

    The error of central differences, of second order, is beyond the tolerance where a potential bends sharply, which is
    a matter of its weights.
    """
    step, least = 1e-4, 1e-6 * float(gradient.abs().max())
    for entry in entries:
        shift = torch.zeros_like(at)
        shift[entry] = step
        near, far = (float((function(at + k * shift) - function(at - k * shift)).detach()) for k in (1, 2))
        slope = (8 * near - far) / (12 * step)
        assert abs(float(gradient[entry]) - slope) <= max(rtol * abs(slope), least), entry


def refusal(function: Callable[[], object]) -> str:
    """The message of the DataError that the function raises."""
    try:
        function()
    except DataError as error:
        return str(error)
    raise AssertionError("nothing was refused")
