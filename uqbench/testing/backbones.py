"""What every backbone must hold as a potential: symmetries, forces as derivatives, the cutoff, members."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from uqbench.data.graph import Batch, GraphSet
from uqbench.data.structures import Structures
from uqbench.models.blocks import Backbone, Initialiser
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Output, Potential
from uqbench.testing import frames
from uqbench.testing.checks import Checks, refusal, require, require_close, require_slopes, spread
from uqbench.testing.frames import rattled, unlabelled

BuildBackbone = Callable[..., Backbone]

SEED = 3


def check_backbone(build: BuildBackbone, *, activation: str = "silu", structures: Structures | None = None) -> None:
    """Check a backbone as the potential that it makes: symmetries, forces, periodicity, the cutoff, members.

    Args:
        build: called as `build(n_species=..., init=...)`, as a config's backbone is; returns a new backbone whose
            parameters are drawn from `init`.
        activation: of the heads' hidden layer.
        structures: what else it is evaluated on, such as crystals of yours; by default three distorted molecules and a
            crystal whose cell is smaller than the cutoff.

    Raises AssertionError with all checks that failed and what they saw.

    Example:
        >>> from functools import partial
        >>> from uqbench.models.schnet import SchNet
        >>> from uqbench.testing import check_backbone
        >>> size = {"features": 8, "layers": 1, "radial_functions": 8, "radial_basis": "gaussian", "cutoff": 4.0}
        >>> check_backbone(partial(SchNet, **size, activation="shifted_softplus"))
    """
    elements = sorted({*frames.ELEMENTS, *(() if structures is None else structures.elements)})
    normalisation = Normalisation(tuple(elements), tuple(-0.1 * z for z in elements), 1.3)

    def make(members: int | None, first_member: int) -> Potential:
        init = Initialiser(SEED, members, first_member)
        backbone = build(n_species=len(elements), init=init)
        potential = Potential(backbone, heads={}, normalisation=normalisation, activation=activation, init=init)
        return compile(potential).double()

    CHECKS.run(Subject(make, frames.varied() if structures is None else structures))


@dataclasses.dataclass
class Subject:
    """A kind of potential and what it is evaluated on.

    Attributes:
        make: returns a new potential in double precision of (members or None, number of the first member).
        structures: which it knows the elements of.
    """

    make: Callable[[int | None, int], Potential]
    structures: Structures

    @functools.cached_property
    def potential(self) -> Potential:
        """A single model with lively parameters: some of them begin as zeros, and would hide what they do."""
        potential = self.make(None, 0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in potential.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        return potential.eval()

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.potential.backbone.cutoff

    @functools.cached_property
    def batch(self) -> Batch:
        """All structures as one graph."""
        return batch_of(self.structures, self.cutoff)

    @functools.cached_property
    def output(self) -> Output:
        """What the potential computes for all structures."""
        return self.potential(self.batch)

    def evaluate(self, structures: Structures) -> Output:
        """Return what the potential computes for other structures."""
        return self.potential(batch_of(structures, self.cutoff))


CHECKS: Checks[Subject] = Checks("check_backbone")


def batch_of(structures: Structures, cutoff: float, dtype: torch.dtype = torch.float64) -> Batch:
    """Return structures as one graph."""
    return GraphSet(structures, cutoff, dtype=dtype).batch(range(len(structures)))


@CHECKS
def a_batch_equals_its_frames_one_by_one(subject: Subject) -> None:
    alone = [subject.evaluate(subject.structures[[s]]) for s in range(len(subject.structures))]
    for name in ("energy", "forces", "latents"):
        together = getattr(subject.output, name)
        require_close(together, torch.cat([getattr(output, name) for output in alone]), name)


def require_transformed(subject: Subject, matrix: NDArray) -> None:
    """Raise CheckFailure unless energies and latents stay and forces turn where structures are turned by a matrix."""
    moved = subject.evaluate(frames.moved(subject.structures, matrix))
    require_close(moved.energy, subject.output.energy, "energy")
    require_close(moved.forces, subject.output.forces @ torch.as_tensor(matrix.T), "forces")
    require_close(moved.latents, subject.output.latents, "latents")


@CHECKS
def rotation_turns_the_forces_and_nothing_else(subject: Subject) -> None:
    require_transformed(subject, frames.ROTATION)


@CHECKS
def reflection_mirrors_the_forces_and_nothing_else(subject: Subject) -> None:
    require_transformed(subject, frames.REFLECTION)


@CHECKS
def translation_changes_nothing(subject: Subject) -> None:
    moved = subject.evaluate(frames.moved(subject.structures, np.eye(3), (3.0, -2.0, 7.0)))
    require_close(moved.energy, subject.output.energy, "energy")
    require_close(moved.forces, subject.output.forces, "forces")


@CHECKS
def permutation_permutes(subject: Subject) -> None:
    order = frames.permutation(subject.structures)
    moved = subject.evaluate(frames.permuted(subject.structures, order))
    require_close(moved.energy, subject.output.energy, "energy")
    require_close(moved.forces, subject.output.forces[order], "forces")
    require_close(moved.latents, subject.output.latents[order], "latents")


@CHECKS
def wrapping_atoms_into_the_cell_changes_nothing(subject: Subject) -> None:
    [crystal] = rattled([bulk("MgO", "rocksalt", a=4.3, cubic=True)], 0.1)
    wrapped = crystal.copy()
    # Along x and y half of the atoms leave the cell through a face and come back at the opposite one.
    wrapped.positions += np.array([3.0, -1.0, 9.2])
    wrapped.wrap()
    before, after = subject.evaluate(unlabelled(crystal)), subject.evaluate(unlabelled(wrapped))
    require_close(after.energy, before.energy, "energy")
    require_close(after.forces, before.forces, "forces")


@CHECKS
def a_cell_smaller_than_the_cutoff_equals_its_supercell(subject: Subject) -> None:
    """Images of an atom are neighbours of its own."""
    [primitive] = rattled([bulk("MgO", "rocksalt", a=4.3)], 0.1)
    small, large = subject.evaluate(unlabelled(primitive)), subject.evaluate(unlabelled(primitive.repeat((3, 2, 2))))
    require_close(large.energy, 12 * small.energy, "energy")
    require_close(large.forces, small.forces.repeat(12, 1), "forces")


@CHECKS
def far_molecules_add_up(subject: Subject) -> None:
    water, nitrogen = molecule("H2O"), Atoms("N2", [[50.0, 0, 0], [51.1, 0, 0]])
    parts, both = subject.evaluate(unlabelled(water, nitrogen)), subject.evaluate(unlabelled(water + nitrogen))
    require_close(both.energy, parts.energy.sum(0, keepdim=True), "energy")
    require_close(both.forces, parts.forces, "forces")


@CHECKS
def no_gradient_passes_between_frames(subject: Subject) -> None:
    """Neither of energies nor of forces, to the last bit."""
    positions = subject.batch.positions.clone().requires_grad_(True)
    output = subject.potential(subject.batch.with_positions(positions), create_graph=True)
    for s in range(len(subject.batch)):
        inside = subject.batch.system == s
        for name, value in (("energy", output.energy[s]), ("forces", output.forces[inside].square().sum())):
            (gradient,) = torch.autograd.grad(value, positions, retain_graph=True)
            require(gradient[inside].abs().max() > 0, f"{name} of frame {s} does not depend on its atoms")
            require(not gradient[~inside].any(), f"{name} of frame {s} depends on other frames")


@CHECKS
def forces_are_minus_the_gradient_of_the_energy(subject: Subject) -> None:
    def energy(positions: NDArray) -> float:
        return float(subject.potential(subject.batch.with_positions(torch.as_tensor(positions))).energy.sum())

    entries = spread(len(subject.output.forces), 5)
    require_slopes(-subject.output.forces, energy, subject.batch.positions.numpy(), entries, "-force", rtol=1e-6)


@CHECKS
def the_stress_is_the_gradient_by_strain(subject: Subject) -> None:
    """In cells smaller and larger than the cutoff, skewed, and periodic in some directions only; all in one batch."""
    slab = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    slab.set_cell([4.3, 4.3, 12.0])
    slab.pbc = (True, True, False)
    skewed = Atoms("MgO", [[0, 0, 0], [1.5, 1.5, 1.0]], cell=[[3, 0, 0], [2.5, 3, 0], [1, 2, 4]], pbc=True)
    primitive = bulk("MgO", "rocksalt", a=4.3)
    systems = rattled([primitive, slab, skewed, primitive.repeat(2)], 0.1)
    batch = batch_of(unlabelled(*systems), subject.cutoff)
    plain, output = subject.potential(batch), subject.potential(batch, stress=True)
    require(plain.stress is None, "a stress that was not asked for")
    require(output.stress.shape == (len(systems), 3, 3), f"shape {tuple(output.stress.shape)}")
    require_close(output.forces, plain.forces, "forces with stresses")
    require_close(output.energy, plain.energy, "energy with stresses")
    volumes = np.array([atoms.get_volume() for atoms in systems])
    step, largest = 1e-5, float(output.stress.abs().max())  # the curvature may jump where a pair crosses the cutoff
    for component in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        up, down = (
            subject.evaluate(unlabelled(*[frames.strained(atoms, component, sign * step) for atoms in systems])).energy
            for sign in (1, -1)
        )
        expected = (up - down).numpy() / (2 * step) / volumes
        for entry in (component, component[::-1]):
            require_close(
                output.stress[:, *entry], expected, f"stress {entry} by strain", rtol=1e-6, atol=1e-6 * largest
            )


@CHECKS
def the_interaction_ends_smoothly_at_the_cutoff(subject: Subject) -> None:
    def pair(distance: float) -> tuple[float, float]:
        output = subject.evaluate(unlabelled(Atoms("NO", [[0, 0, 0], [distance, 0, 0]])))
        return float(output.energy[0]), float(output.forces[0, 0])

    apart, inside = pair(subject.cutoff + 1.0), pair(subject.cutoff - 0.5)
    require(apart[1] == 0.0 and pair(subject.cutoff + 1e-3) == apart, "two atoms interact beyond the cutoff")
    require(inside[0] != apart[0] and inside[1] != 0.0, "two atoms do not interact within the cutoff")
    # Whatever the weights, what ends smoothly is a hundred times smaller, or less, a hundred times nearer to its end.
    far, near = (pair(subject.cutoff - depth) for depth in (1e-3, 1e-5))
    for k, name in enumerate(("energy", "force")):
        outer, inner = abs(near[k] - apart[k]), abs(far[k] - apart[k])
        require(outer <= 0.05 * inner, f"1e-5 Å within the cutoff the {name} is {outer:.3g}, at 1e-3 Å {inner:.3g}")


@CHECKS
def nothing_jumps_when_an_atom_crosses_the_cutoff(subject: Subject) -> None:
    """Of three atoms in line the outer two, which both have a neighbour in common, cross each other's cutoff."""

    def chain(depth: float) -> Tensor:
        length = subject.cutoff - depth
        output = subject.evaluate(unlabelled(Atoms("NCO", [[0, 0, 0], [0.45 * length, 0.1, 0], [length, 0, 0]])))
        return torch.cat([output.energy, output.forces.flatten()])

    # What is continuous changes a hundred times less over a hundredth of the way.
    far, near = (float((chain(depth) - chain(-depth)).abs().max()) for depth in (1e-3, 1e-5))
    require(0 < near < 0.05 * far, f"over 2e-5 Å energy or forces change by {near:.3g}, over 2e-3 Å by {far:.3g}")


@CHECKS
def an_isolated_atom_has_an_energy_and_no_force(subject: Subject) -> None:
    output = subject.evaluate(unlabelled(Atoms("C")))
    require(torch.isfinite(output.energy).all() and torch.isfinite(output.latents).all(), "not finite")
    require(not output.forces.any(), f"a force of {float(output.forces.abs().max()):.3g}")


@CHECKS
def reference_energies_are_added(subject: Subject) -> None:
    """Other reference energies of the elements shift the energies by just that, and change nothing else."""
    other, shift = copy.deepcopy(subject.potential), 1.5
    other.references += shift
    output = other(subject.batch)
    require_close(output.energy, subject.output.energy + shift * subject.batch.n_atoms, "energy")
    require_close(output.forces, subject.output.forces, "forces")


@CHECKS
def unknown_elements_are_refused(subject: Subject) -> None:
    known = subject.potential.species_of_element.ge(0).nonzero().flatten().tolist()
    unknown = next(z for z in range(1, len(chemical_symbols)) if z not in known)
    symbol, names = chemical_symbols[unknown], ", ".join(chemical_symbols[z] for z in known)
    pair = Atoms([known[0], unknown], [[0, 0, 0], [0, 0, 1.5]])
    message = refusal(lambda: subject.evaluate(unlabelled(pair)), f"a frame with {symbol}")
    require(f"was not trained on {symbol}; it knows {names}" in message, f"the message is: {message}")


@CHECKS
def coincident_atoms_are_refused(subject: Subject) -> None:
    """By the neighbour list, and where atoms move onto each other under a list that was made before."""
    refusal(lambda: unlabelled(Atoms("Mg2", [[0.1, 0, 0], [0.1, 0, 0]])), "two atoms at one point")
    positions = subject.batch.positions.clone()
    positions[1] = positions[0]
    moved = subject.batch.with_positions(positions)
    message = refusal(lambda: subject.potential(moved), "two atoms moved to one point")
    require("closer than" in message, f"the message is: {message}")


@CHECKS
def second_derivatives_by_positions_are_exact(subject: Subject) -> None:
    """Attacks differentiate functions of forces by positions, through everything."""
    batch = batch_of(subject.structures[:1], subject.cutoff)

    def objective(positions: Tensor) -> Tensor:
        return subject.potential(batch.with_positions(positions), create_graph=True).forces.square().sum()

    require_gradient(objective, batch.positions, 3, "gradient of Σ F²")


@CHECKS
def third_derivatives_by_positions_are_exact(subject: Subject) -> None:
    """Training on attacked structures differentiates a gradient of forces once more."""
    batch = batch_of(subject.structures[:1], subject.cutoff)

    def objective(positions: Tensor) -> Tensor:
        positions = positions if positions.requires_grad else positions.clone().requires_grad_(True)
        forces = subject.potential(batch.with_positions(positions), create_graph=True).forces
        (gradient,) = torch.autograd.grad(forces.square().sum(), positions, create_graph=True)
        return gradient.square().sum()

    require_gradient(objective, batch.positions, 2, "gradient of Σ (∂ Σ F²/∂x)²")


def require_gradient(objective: Callable[[Tensor], Tensor], at: Tensor, count: int, what: str) -> None:
    """Raise CheckFailure unless so many entries of autograd's gradient by positions are finite differences."""
    positions = at.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(positions), positions)

    def value(x: NDArray) -> float:
        return float(objective(torch.as_tensor(x)).detach())

    require_slopes(gradient, value, at.numpy(), spread(len(at), count), what, rtol=1e-5)


@CHECKS
def gradients_of_a_force_loss_by_the_parameters_are_exact(subject: Subject) -> None:
    """Training is of second order; here for the entry of every parameter that matters most."""
    batch, potential = batch_of(subject.structures[:2], subject.cutoff), subject.potential

    def loss(create_graph: bool) -> Tensor:
        output = potential(batch, create_graph=create_graph)
        return output.forces.square().sum() + output.energy.sum()

    names, parameters = zip(*potential.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(True), parameters)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        entry = int(gradient.abs().argmax())
        before, step, values = parameter.detach().clone(), 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[entry] = before.view(-1)[entry] + sign * step
            values.append(float(loss(False)))
        with torch.no_grad():
            parameter.copy_(before)
        slope, exact = (values[0] - values[1]) / (2 * step), float(gradient.view(-1)[entry])
        require(
            abs(exact - slope) <= max(1e-5 * abs(slope), 1e-8 * largest),
            f"gradient by {name} {exact:.8g}; finite differences give {slope:.8g}",
        )


@CHECKS
def single_precision_agrees_with_double(subject: Subject) -> None:
    exact = subject.output
    for name in ("energy", "forces", "latents"):
        kind = getattr(exact, name).dtype
        require(kind == torch.float64, f"{name} of a model in double precision are {kind}")
    single = copy.deepcopy(subject.potential).to(torch.float32)
    rough = single(batch_of(subject.structures, subject.cutoff, torch.float32))
    for name, wanted in (("energy", torch.float64), ("forces", torch.float32), ("latents", torch.float32)):
        kind = getattr(rough, name).dtype
        require(kind == wanted, f"{name} of a model in single precision are {kind}, not {wanted}")
    again = single.to(torch.float64)(subject.batch)
    largest = float(exact.forces.abs().max())
    for what, output in (("forces in single precision", rough), ("forces in double precision again", again)):
        require_close(output.forces.double(), exact.forces, what, rtol=1e-3, atol=1e-4 * largest)


@CHECKS
def members_equal_single_models(subject: Subject) -> None:
    """Member m of an ensemble is the single model that begins with the random stream m."""
    ensemble = subject.make(3, 0)(subject.batch)
    for m in range(3):
        single = subject.make(None, m)(subject.batch)
        require_close(ensemble.energy[m], single.energy, f"energy of member {m}")
        require_close(ensemble.forces[m], single.forces, f"forces of member {m}", rtol=1e-8)
    difference = (ensemble.forces[0] - ensemble.forces[1]).abs().max()
    require(difference > 1e-3 * ensemble.forces.abs().max(), "two members are alike")
