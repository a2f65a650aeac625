"""check_backbone finds potentials that lack a property by the property's name, and passes what is sound."""

import dataclasses

import pytest
import torch
from torch import nn

from uqbench.errors import DataError
from uqbench.models import blocks
from uqbench.models.blocks import Embedding, Initialiser, Linear
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential
from uqbench.testing import check_backbone
from uqbench.testing.backbones import CHECKS, Subject
from uqbench.testing.frames import ELEMENTS, varied

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
        elements = self.embedding(geometry.species)
        exponents = torch.arange(1, FEATURES + 1, dtype=distances.dtype) / 10
        radial = torch.exp(-exponents * distances.unsqueeze(-1)) * self.envelope(distances).unsqueeze(-1)
        messages = radial * elements.index_select(-2, senders)

        def gather(values):
            zeros = values.new_zeros(*values.shape[:-2], len(geometry.species), FEATURES)
            return zeros.index_add(-2, receivers, values)

        dipoles = [gather(directions[..., k : k + 1] * messages) for k in range(3)]
        invariants = self.invariants(elements, gather(messages), torch.stack(dipoles, dim=-1), geometry)
        return self.out(torch.tanh(self.mix(torch.cat(invariants, dim=-1))))

    def envelope(self, distances):
        return blocks.cosine_cutoff(distances, self.cutoff)

    def invariants(self, elements, density, dipoles, geometry):
        return elements, density, dipoles.square().sum(-1)


class SeesTheXAxis(Sound):
    def invariants(self, elements, density, dipoles, geometry):
        return elements, density, dipoles[..., 0]


class TellsLeftFromRight(Sound):
    def invariants(self, elements, density, dipoles, geometry):
        volume = torch.linalg.det(dipoles[..., :3, :]).unsqueeze(-1)  # changes its sign under reflection
        return elements, density + volume, dipoles.square().sum(-1)


class CountsTheAtoms(Sound):
    """Takes the number of an atom in its frame for a property."""

    def invariants(self, elements, density, dipoles, geometry):
        numbers = torch.arange(elements.shape[-2], dtype=elements.dtype) % 3
        return elements * (1 + 0.1 * numbers.unsqueeze(-1)), density, dipoles.square().sum(-1)


class SubtractsTheBatchMean(Sound):
    def invariants(self, elements, density, dipoles, geometry):
        return elements, density - density.mean(-2, keepdim=True), dipoles.square().sum(-1)


class EndsWithAStep(Sound):
    def envelope(self, distances):
        return torch.ones_like(distances)


class EndsWithAKink(Sound):
    """Its energy is continuous, its force is not."""

    def envelope(self, distances):
        return 1 - distances / self.cutoff


class DividesByTheNeighbours(Sound):
    def invariants(self, elements, density, dipoles, geometry):
        counts = torch.bincount(geometry.pairs.edges[0], minlength=elements.shape[-2]).unsqueeze(-1)
        return elements, density / counts, dipoles.square().sum(-1)


class LosesAGradient(Sound):
    def invariants(self, elements, density, dipoles, geometry):
        return elements, density.detach(), dipoles.square().sum(-1)


class ForgetsTheSecondDerivative(Sound):
    def invariants(self, elements, density, dipoles, geometry):
        return elements, WrongSquare.apply(density), dipoles.square().sum(-1)


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
    def invariants(self, elements, density, dipoles, geometry):
        return elements, density.float().to(density.dtype), dipoles.square().sum(-1)


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

    def forward(self, batch, *, create_graph=False, stress=False):
        output = super().forward(batch, create_graph=create_graph, stress=stress)
        field = batch.positions[:, 0].to(output.energy.dtype)
        energy = output.energy.index_add(-1, batch.system, field.expand(*output.energy.shape[:-1], -1))
        forces = output.forces - torch.tensor([1.0, 0.0, 0.0], dtype=output.forces.dtype)
        return dataclasses.replace(output, energy=energy, forces=forces)


class FeelsTheSize(Potential):
    """The energy grows with the square of the number of atoms."""

    def forward(self, batch, *, create_graph=False, stress=False):
        output = super().forward(batch, create_graph=create_graph, stress=stress)
        return dataclasses.replace(output, energy=output.energy + batch.n_atoms.double().square())


class AnswersInDouble(Potential):
    def forward(self, batch, *, create_graph=False, stress=False):
        output = super().forward(batch, create_graph=create_graph, stress=stress)
        return dataclasses.replace(output, forces=output.forces.double())


class ForcesUphill(Potential):
    def forward(self, batch, *, create_graph=False, stress=False):
        output = super().forward(batch, create_graph=create_graph, stress=stress)
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


class LeavesOutTheReferences(Potential):
    def _references(self, batch):
        return torch.zeros_like(super()._references(batch))


class StressUnderPressure(Potential):
    """Its stress has the sign of a pressure."""

    def forward(self, batch, *, create_graph=False, stress=False):
        output = super().forward(batch, create_graph=create_graph, stress=stress)
        return dataclasses.replace(output, stress=None if output.stress is None else -output.stress)


class AllMembersAlike(Sound):
    def __init__(self, n_species, init):
        super().__init__(n_species, init)
        for parameter in self.parameters():
            if init.members:
                parameter.data[:] = parameter.data[:1].clone()


def subject_of(kind):
    constants = Normalisation(ELEMENTS, tuple(-0.1 * z for z in ELEMENTS), 1.3)
    base, backbone = (kind, Sound) if issubclass(kind, Potential) else (Potential, kind)

    def make(members, first):
        init = Initialiser(3, members, first)
        network = backbone(len(constants.elements), init)
        return base(network, heads={}, normalisation=constants, activation="silu", init=init).double()

    return Subject(make, varied())


def test_a_sound_backbone_passes():
    check_backbone(Sound)


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
STRESS, REFERENCES, MEMBERS = (
    "the_stress_is_the_gradient_by_strain",
    "reference_energies_are_added",
    "members_equal_single_models",
)
# What fails for each, and nothing else does.
BROKEN = {
    SeesTheXAxis: {*SYMMETRIES, STRESS},
    TellsLeftFromRight: {"reflection_mirrors_the_forces_and_nothing_else"},
    CountsTheAtoms: {"permutation_permutes", SUPERCELL},
    SubtractsTheBatchMean: {"a_batch_equals_its_frames_one_by_one", "no_gradient_passes_between_frames", STRESS},
    FeelsTheSize: {"far_molecules_add_up", SUPERCELL},
    EndsWithAStep: END,
    EndsWithAKink: END,
    DividesByTheNeighbours: {ISOLATED, *END},
    LosesAGradient: {FORCES, STRESS, *HIGHER},
    ForcesUphill: {FORCES},
    ForgetsTheSecondDerivative: HIGHER,
    RoundsToSingle: {FORCES, STRESS, *HIGHER},
    AnswersInDouble: {"single_precision_agrees_with_double"},
    ForgetsSelfImages: {SUPERCELL},
    ForgetsPeriodicity: {WRAPPING, SUPERCELL},
    SitsInAField: {"translation_changes_nothing", WRAPPING, SUPERCELL, ISOLATED, *SYMMETRIES, STRESS, END_OF_A_PAIR},
    TakesAnyElement: {"unknown_elements_are_refused"},
    DividesByZero: {"coincident_atoms_are_refused"},
    LeavesOutTheReferences: {REFERENCES},
    StressUnderPressure: {STRESS},
    MixesMembers: {MEMBERS},
    AllMembersAlike: {MEMBERS},
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_fails_and_the_rest_passes(kind):
    assert CHECKS.failures(subject_of(kind)).keys() == BROKEN[kind]


def test_every_check_finds_something():
    assert set().union(*BROKEN.values()) == CHECKS.by_name.keys()


def test_one_error_lists_all_that_failed_and_what_they_saw():
    with pytest.raises(AssertionError) as caught:
        check_backbone(CountsTheAtoms)
    first, *lines = str(caught.value).splitlines()
    assert first == f"check_backbone: 2 of {len(CHECKS.by_name)} checks failed"
    names, messages = zip(*(line.removeprefix("- ").split(": ", 1) for line in lines), strict=True)
    assert set(names) == BROKEN[CountsTheAtoms]
    assert all("numbers differ, at [" in message and " instead of " in message for message in messages)


@pytest.mark.parametrize("error", [RuntimeError("not\nready"), AssertionError("not\nready")], ids=repr)
def test_a_backbone_that_raises_fails_the_checks_and_not_the_report(error):
    class Raises(Sound):
        def envelope(self, distances):
            raise error

    message = rf"rotation\w+: {type(error).__name__}: not ready \(.*test_testing_backbones.py"
    with pytest.raises(AssertionError, match=message):
        check_backbone(Raises)
