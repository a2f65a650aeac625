"""The checks of model_checks find potentials that lack a property, and pass a sound one and what is still sound."""

import dataclasses

import pytest
import torch
from model_checks import CHECKS, check_members, known_elements
from torch import nn

from uqbench.errors import DataError
from uqbench.models import blocks
from uqbench.models.blocks import Embedding, Initialiser, Linear
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential

pytestmark = pytest.mark.numerics

FEATURES = 4


class Sound(nn.Module):
    """A small backbone with every property: densities and dipoles of the neighbours, mixed with the element."""

    def __init__(self, n_species, init):
        super().__init__()
        self.features, self.cutoff = FEATURES, 5.0
        self.embedding = Embedding(n_species, FEATURES, init)
        self.mix = Linear(3 * FEATURES, FEATURES, init)
        self.out = Linear(FEATURES, FEATURES, init)

    def forward(self, geometry):
        receivers, senders = geometry.pairs.edges
        distances = torch.cat([geometry.distances] * 2, dim=-1)
        directions = torch.cat([geometry.directions, -geometry.directions], dim=-2)
        own = self.embedding(geometry.species)
        exponents = torch.arange(1, FEATURES + 1, dtype=distances.dtype) / 10
        radial = torch.exp(-exponents * distances.unsqueeze(-1)) * self.envelope(distances).unsqueeze(-1)
        messages = radial * own.index_select(-2, senders)

        def gather(values):
            zeros = values.new_zeros(*values.shape[:-2], len(geometry.species), FEATURES)
            return zeros.index_add(-2, receivers, values)

        dipoles = [gather(directions[..., k : k + 1] * messages) for k in range(3)]
        invariants = self.invariants(own, gather(messages), torch.stack(dipoles, dim=-1), geometry)
        return self.out(torch.tanh(self.mix(torch.cat(invariants, dim=-1))))

    def envelope(self, distances):
        return blocks.cosine_cutoff(distances, self.cutoff)

    def invariants(self, own, density, dipoles, geometry):
        return own, density, dipoles.square().sum(-1)


class SeesTheXAxis(Sound):
    def invariants(self, own, density, dipoles, geometry):
        return own, density, dipoles[..., 0]


class TellsLeftFromRight(Sound):
    def invariants(self, own, density, dipoles, geometry):
        volume = torch.linalg.det(dipoles[..., :3, :]).unsqueeze(-1)  # changes its sign under reflection
        return own, density + volume, dipoles.square().sum(-1)


class CountsTheAtoms(Sound):
    """Takes the number of an atom in its frame for a property."""

    def invariants(self, own, density, dipoles, geometry):
        numbers = torch.arange(own.shape[-2], dtype=own.dtype) % 3
        return own * (1 + 0.1 * numbers.unsqueeze(-1)), density, dipoles.square().sum(-1)


class SubtractsTheBatchMean(Sound):
    def invariants(self, own, density, dipoles, geometry):
        return own, density - density.mean(-2, keepdim=True), dipoles.square().sum(-1)


class EndsWithAStep(Sound):
    def envelope(self, distances):
        return torch.ones_like(distances)


class EndsWithAKink(Sound):
    """Its energy is continuous, its force is not."""

    def envelope(self, distances):
        return 1 - distances / self.cutoff


class DividesByTheNeighbours(Sound):
    def invariants(self, own, density, dipoles, geometry):
        counts = torch.bincount(geometry.pairs.edges[0], minlength=own.shape[-2]).unsqueeze(-1)
        return own, density / counts, dipoles.square().sum(-1)


class LosesAGradient(Sound):
    def invariants(self, own, density, dipoles, geometry):
        return own, density.detach(), dipoles.square().sum(-1)


class ForgetsTheSecondDerivative(Sound):
    def invariants(self, own, density, dipoles, geometry):
        return own, WrongSquare.apply(density), dipoles.square().sum(-1)


class WrongSquare(torch.autograd.Function):
    """x² with a right first derivative that claims to be constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 2 * x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class RoundsToSingle(Sound):
    def invariants(self, own, density, dipoles, geometry):
        return own, density.float().to(density.dtype), dipoles.square().sum(-1)


class MixesMembers(Sound):
    def forward(self, geometry):
        latents = super().forward(geometry)
        return latents + latents.mean(0, keepdim=True) if latents.dim() == 3 else latents


class ForgetsSelfImages(Potential):
    def _geometry(self, batch, vectors):
        other = batch.first != batch.second
        pairs = {name: getattr(batch, name)[other] for name in ("first", "second", "shifts")}
        return super()._geometry(dataclasses.replace(batch, **pairs), vectors[..., other, :])


class ForgetsPeriodicity(Potential):
    """Leaves out every pair across a face of the cell."""

    def _geometry(self, batch, vectors):
        inside = ~batch.shifts.any(-1)
        pairs = {name: getattr(batch, name)[inside] for name in ("first", "second", "shifts")}
        return super()._geometry(dataclasses.replace(batch, **pairs), vectors[..., inside, :])


class SitsInAField(Potential):
    """The energy has a part that depends on where the frame is."""

    def forward(self, batch, *, create_graph=False):
        output = super().forward(batch, create_graph=create_graph)
        field = batch.positions[:, 0].to(output.energy.dtype)
        energy = output.energy.index_add(-1, batch.system, field)
        forces = output.forces - torch.tensor([1.0, 0.0, 0.0], dtype=output.forces.dtype)
        return dataclasses.replace(output, energy=energy, forces=forces)


class FeelsTheSize(Potential):
    """The energy grows with the square of the number of atoms."""

    def forward(self, batch, *, create_graph=False):
        output = super().forward(batch, create_graph=create_graph)
        return dataclasses.replace(output, energy=output.energy + batch.n_atoms.double().square())


class AnswersInDouble(Potential):
    def forward(self, batch, *, create_graph=False):
        output = super().forward(batch, create_graph=create_graph)
        return dataclasses.replace(output, forces=output.forces.double())


class ForcesUphill(Potential):
    def forward(self, batch, *, create_graph=False):
        output = super().forward(batch, create_graph=create_graph)
        return dataclasses.replace(output, forces=-output.forces)


class TakesAnyElement(Potential):
    def _geometry(self, batch, vectors):
        known = self.species_of_element[batch.numbers] >= 0
        return super()._geometry(dataclasses.replace(batch, numbers=batch.numbers.where(known, 6)), vectors)


class DividesByZero(Potential):
    """Evaluates coincident atoms, as NaN."""

    def _geometry(self, batch, vectors):
        try:
            return super()._geometry(batch, vectors)
        except DataError as error:
            if "closer" not in str(error):
                raise
            return super()._geometry(batch, vectors * float("nan"))


def potential_of(kind, members=None, first=0):
    init, constants = Initialiser(3, members, first), Normalisation.fit(known_elements())
    base, backbone = (kind, Sound) if issubclass(kind, Potential) else (Potential, kind)
    network = backbone(len(constants.elements), init)
    return base(network, heads={}, normalisation=constants, activation="silu", init=init).double()


def failing(kind):
    potential, names = potential_of(kind), set()
    for name, check in CHECKS.items():
        try:
            check(potential)
        except AssertionError:
            names.add(name)
    return names


def test_all_pass_for_a_sound_potential():
    for check in CHECKS.values():
        check(potential_of(Sound))


SYMMETRIES = {"rotation_turns_the_forces_and_nothing_else", "reflection_mirrors_the_forces_and_nothing_else"}
END_OF_A_PAIR = "the_interaction_ends_smoothly_at_the_cutoff"
END = {END_OF_A_PAIR, "nothing_jumps_when_an_atom_crosses_the_cutoff"}
ISOLATED = "an_isolated_atom_has_an_energy_and_no_force"
WRAPPING = "wrapping_atoms_into_the_cell_changes_nothing"
SUPERCELL = "a_cell_smaller_than_the_cutoff_equals_its_supercell"
FORCES = "forces_are_minus_the_gradient_of_the_energy"
HIGHER = {
    "second_derivatives_by_positions_are_exact",
    "third_derivatives_by_positions_are_exact",
    "gradients_of_a_force_loss_by_the_parameters_are_exact",
}
# What fails for each, and nothing else does.
BROKEN = {
    SeesTheXAxis: SYMMETRIES,
    TellsLeftFromRight: {"reflection_mirrors_the_forces_and_nothing_else"},
    CountsTheAtoms: {"permutation_permutes", SUPERCELL},
    SubtractsTheBatchMean: {"a_batch_equals_its_frames_one_by_one", "no_gradient_passes_between_frames"},
    FeelsTheSize: {"far_molecules_add_up", SUPERCELL},
    EndsWithAStep: END,
    EndsWithAKink: END,
    DividesByTheNeighbours: {ISOLATED, *END},
    LosesAGradient: {FORCES, *HIGHER},
    ForcesUphill: {FORCES},
    ForgetsTheSecondDerivative: HIGHER,
    RoundsToSingle: {FORCES, *HIGHER},
    AnswersInDouble: {"single_precision_agrees_with_double"},
    ForgetsSelfImages: {SUPERCELL},
    ForgetsPeriodicity: {WRAPPING, SUPERCELL},
    SitsInAField: {"translation_changes_nothing", WRAPPING, SUPERCELL, ISOLATED, *SYMMETRIES, END_OF_A_PAIR},
    TakesAnyElement: {"unknown_elements_are_refused"},
    DividesByZero: {"coincident_atoms_are_refused"},
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_fails_and_the_rest_passes(kind):
    assert failing(kind) == BROKEN[kind]


def test_every_check_has_found_something():
    assert set().union(*BROKEN.values()) == CHECKS.keys()


def test_members_that_mix_are_found():
    check_members(lambda members, first: potential_of(Sound, members, first))
    with pytest.raises(AssertionError):
        check_members(lambda members, first: potential_of(MixesMembers, members, first))
    with pytest.raises(AssertionError):
        check_members(lambda members, first: potential_of(Sound, members))
