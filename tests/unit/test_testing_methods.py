"""check_method and check_layer find what is broken by the name of the property, and pass what is sound."""

import dataclasses

import pytest
import torch
from torch import nn

from uqbench.errors import CheckpointError
from uqbench.testing import check_layer, check_method
from uqbench.testing.methods import CHECKS, LAYER_CHECKS, OF_ALL
from uqbench.uq.base import Losses, Method, Prediction, absolute_errors, mean_over_atoms, residuals
from uqbench.uq.layer import Layer

pytestmark = pytest.mark.numerics


class Sound(Method):
    """A potential with a head that predicts a variance of forces, in units of the scale, and one of energies."""

    family = "single"

    def __init__(self, build_potential):
        super().__init__()
        self.potential = build_potential(None, {"variance": 1})

    def variance(self, output):
        raw = output.heads["variance"].squeeze(-1)
        return (nn.functional.softplus(raw) + 1e-3) * self.potential.scale.square()

    def losses(self, batch, point_loss):
        output = self.potential(batch, create_graph=torch.is_grad_enabled())
        energy, forces = residuals(output, batch)
        log_variance = self.variance(output).log()
        errors = absolute_errors(output.energy, output.forces, batch)
        return Losses(energy.abs(), point_loss(forces) * torch.exp(-log_variance / 2) + log_variance / 2, *errors)

    def predict(self, batch, *, create_graph=False, stress=False):
        output = self.potential(batch, create_graph=create_graph, stress=stress)
        variance = self.variance(output)
        mean = mean_over_atoms(variance, batch)
        return Prediction(
            **{"energy": output.energy, "forces": output.forces, "score": variance, "energy_score": mean},
            **{"force_variance": variance, "energy_variance": batch.n_atoms * mean, "stress": output.stress},
        )


class Changed(Sound):
    """The sound method with something done to its predictions."""

    def predict(self, batch, *, create_graph=False, stress=False):
        prediction = super().predict(batch, create_graph=create_graph, stress=stress)
        return dataclasses.replace(prediction, **self.changes(prediction, batch))

    def changes(self, prediction, batch):
        raise NotImplementedError


class InheritsItsFamily(Sound):
    pass


class TwoNetworksOfOne(Sound):
    family = "single"
    n_models = 2


class VarianceOfEachComponent(Changed):
    family = "single"

    def changes(self, prediction, batch):
        return {"force_variance": prediction.force_variance[:, None].expand(-1, 3)}


class NegativeVariance(Changed):
    family = "single"

    def changes(self, prediction, batch):
        return {"energy_variance": -prediction.energy_variance}


class SaysItKnowsNothing(Sound):
    family = "baseline"
    informed = False


class NormOfComponents(Changed):
    """Takes the length of the components' squares for a measure of force."""

    family = "single"

    def changes(self, prediction, batch):
        force = prediction.forces.detach()
        return {"score": prediction.score * (1 + force.square().square().sum(-1))}


class ChiralScore(Changed):
    family = "single"

    def changes(self, prediction, batch):
        sums = [torch.zeros(len(batch), 3, dtype=torch.float64) for _ in range(3)]
        weights = [batch.numbers.double(), batch.numbers.double().square(), prediction.score.detach()]
        centred = batch.positions - mean(batch.positions, batch)[batch.system]
        sums = [s.index_add(0, batch.system, w[:, None] * centred) for s, w in zip(sums, weights, strict=True)]
        volume = torch.linalg.det(torch.stack(sums, -1))
        return {"energy_score": prediction.energy_score * torch.exp(torch.tanh(volume))}


def mean(values, batch):
    sums = values.new_zeros(len(batch), values.shape[-1]).index_add(0, batch.system, values)
    return sums / batch.n_atoms[:, None]


class CountsTheAtoms(Changed):
    family = "single"

    def changes(self, prediction, batch):
        place_in_frame = torch.arange(len(batch.numbers)) - batch.ptr[batch.system]
        return {"force_variance": prediction.force_variance * (1 + place_in_frame)}


class ComparesWithinTheBatch(Changed):
    family = "single"

    def changes(self, prediction, batch):
        return {"energy_score": prediction.energy_score / prediction.energy_score.max()}


class SumsOverTheWrongAxis(Changed):
    """Gives every structure of a batch the mean of all."""

    family = "single"

    def changes(self, prediction, batch):
        return {"energy_variance": prediction.energy_variance.mean(0, keepdim=True).expand(len(batch))}


class Forgetful(Sound):
    """Draws random numbers in each prediction; so few that only the last digits show it."""

    family = "single"

    def variance(self, output):
        return super().variance(output) * (1 + 1e-12 * torch.rand((), dtype=torch.float64))


class LearnsWhileItPredicts(Sound):
    family = "single"

    def predict(self, batch, **kwargs):
        with torch.no_grad():
            self.potential.heads["variance"].layers[-1].bias += 0.0
            self.register_buffer("seen", getattr(self, "seen", torch.zeros(())) + 1)
        return super().predict(batch, **kwargs)


class DetachesItsLatents(Sound):
    family = "single"

    def variance(self, output):
        raw = output.heads["variance"]
        return super().variance(dataclasses.replace(output, heads={"variance": 0.5 * raw + 0.5 * raw.detach()}))


class KeepsAPlainTensor(Sound):
    """What a prediction needs is no part of the state."""

    family = "single"

    def begin(self, n_train, seed):
        self.factor = 1.7

    def predict(self, batch, **kwargs):
        prediction = super().predict(batch, **kwargs)
        return dataclasses.replace(prediction, score=prediction.score * getattr(self, "factor", 1.0))


class ForgetsTheScale(Sound):
    family = "single"

    def variance(self, output):
        return super().variance(output) / self.potential.scale


class TakesAnyElement(Sound):
    family = "single"

    def __init__(self, build_potential):
        super().__init__(build_potential)
        species = self.potential.species_of_element
        species[species < 0] = 0


class AveragesOverTheBatch(Sound):
    family = "single"

    def losses(self, batch, point_loss):
        losses = super().losses(batch, point_loss)
        return dataclasses.replace(losses, energy=losses.energy / len(batch))


class ErrorsInOtherUnits(Sound):
    family = "single"

    def losses(self, batch, point_loss):
        losses = super().losses(batch, point_loss)
        return dataclasses.replace(losses, force_error=losses.force_error * 23.06)


class ClimbsItsLoss(Sound):
    """Its gradient has the wrong sign."""

    family = "single"

    def losses(self, batch, point_loss):
        losses = super().losses(batch, point_loss)
        return dataclasses.replace(losses, forces=2 * losses.forces.detach() - losses.forces)


class IdleHead(Sound):
    family = "single"

    def losses(self, batch, point_loss):
        losses = super().losses(batch, point_loss)
        output = self.potential(batch, create_graph=torch.is_grad_enabled())
        return dataclasses.replace(losses, forces=point_loss(residuals(output, batch)[1]))


class NeedsNoLabels(Sound):
    family = "single"

    def losses(self, batch, point_loss):
        if batch.energies is None:
            zero = torch.zeros(len(batch), dtype=torch.float64), torch.zeros_like(batch.positions)
            batch = dataclasses.replace(batch, energies=zero[0], forces=zero[1])
        return super().losses(batch, point_loss)


def names(text):
    """The checks that an error lists."""
    return {line.removeprefix("- ").split(":")[0] for line in text.splitlines()[1:]}


def failed(check, build):
    try:
        check(build)
    except AssertionError as error:
        return names(str(error))
    return set()


FAMILY = "the_family_is_declared_and_fits_the_number_of_networks"
SHAPES = "shapes_types_and_signs_are_right"
GRADIENT = "the_gradient_of_the_score_is_exact"
STATE = "saving_and_loading_give_the_same_bits"
TRACE = "a_second_prediction_gives_the_same_bits_and_leaves_no_trace"
OTHERS = "other_structures_in_the_batch_change_nothing"
ROTATION = "rotation_and_translation_turn_the_forces_and_nothing_else"
REFLECTION = "reflection_mirrors_the_forces_and_nothing_else"
UNITS = "labels_times_c_give_standard_deviations_times_c"
STEP = "a_step_against_the_gradient_lowers_the_losses"
PERMUTATION = "permutation_permutes"
# What must fail for each; a fault may break more than one property.
BROKEN = {
    InheritsItsFamily: {FAMILY},
    TwoNetworksOfOne: {FAMILY},
    VarianceOfEachComponent: {SHAPES},
    NegativeVariance: {SHAPES},
    SaysItKnowsNothing: {"scores_that_are_informed_differ", GRADIENT},
    NormOfComponents: {ROTATION, REFLECTION, GRADIENT},
    ChiralScore: {REFLECTION},
    CountsTheAtoms: {PERMUTATION},
    ComparesWithinTheBatch: {OTHERS},
    SumsOverTheWrongAxis: {OTHERS},
    Forgetful: {TRACE, STATE},
    LearnsWhileItPredicts: {TRACE, STATE},
    DetachesItsLatents: {GRADIENT},
    KeepsAPlainTensor: {STATE},
    ForgetsTheScale: {UNITS},
    TakesAnyElement: {"unknown_elements_are_refused"},
    AveragesOverTheBatch: {"losses_are_those_of_each_frame_alone"},
    ErrorsInOtherUnits: {"errors_of_the_losses_are_those_of_the_prediction"},
    ClimbsItsLoss: {STEP},
    IdleHead: {STEP},
    NeedsNoLabels: {"losses_need_labels"},
}


def test_a_sound_method_passes():
    check_method(Sound)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_method_fails_by_the_name_of_what_is_broken(kind):
    assert failed(check_method, kind) == BROKEN[kind]


def test_every_check_of_methods_finds_something():
    assert set().union(*BROKEN.values()) == CHECKS.by_name.keys()


class SoundLayer(Layer):
    """Distance of an atom's latents to the mean of those of the training atoms."""

    family = "layer"

    def __init__(self, potential):
        super().__init__(potential)
        self.register_buffer("centre", torch.full((potential.backbone.features,), torch.nan, dtype=torch.float64))

    def fit(self, training, *, batch_size, seed):
        self.centre = self.training_latents(training, batch_size)[0].mean(0)

    def score(self, output, batch):
        return (output.latents - self.centre).square().sum(-1)


class FitsByChance(SoundLayer):
    family = "layer"

    def fit(self, training, *, batch_size, seed):
        super().fit(training, batch_size=batch_size, seed=seed)
        self.centre = self.centre + 1e-6 * torch.rand_like(self.centre)


class TrainsTheModel(SoundLayer):
    family = "layer"

    def fit(self, training, *, batch_size, seed):
        super().fit(training, batch_size=batch_size, seed=seed)
        with torch.no_grad():
            self.potential.heads["energy"].layers[-1].bias += 0.1


class CorrectsTheForces(SoundLayer):
    family = "layer"

    def predict(self, batch, **kwargs):
        prediction = super().predict(batch, **kwargs)
        return dataclasses.replace(prediction, forces=1.01 * prediction.forces)


class FitsAnEnsemble(SoundLayer):
    family = "layer"

    def __init__(self, potential):
        members, potential.members = potential.members, None
        super().__init__(potential)
        potential.members = members


class KeepsItsFitElsewhere(SoundLayer):
    """As a state dict it is whole, but what is handed on to another layer lacks something."""

    family = "layer"

    def fitted_state(self):
        return {name: torch.zeros_like(value) for name, value in super().fitted_state().items()}


class OutOfUnits(SoundLayer):
    """Its score depends on the unit of energy."""

    family = "layer"

    def score(self, output, batch):
        return super().score(output, batch) + self.potential.scale * output.forces.square().sum(-1)


BITS = "a_second_fit_gives_the_same_bits"
BROKEN_LAYERS = {
    FitsByChance: {BITS},
    TrainsTheModel: {"the_weights_of_the_model_stay", "energies_and_forces_are_those_of_the_model"},
    CorrectsTheForces: {"energies_and_forces_are_those_of_the_model"},
    FitsAnEnsemble: {"an_ensemble_below_it_is_refused"},
    KeepsItsFitElsewhere: {"what_was_fitted_can_be_handed_on"},
    OutOfUnits: {UNITS},
}


def test_a_sound_layer_passes():
    check_layer(SoundLayer)


@pytest.mark.parametrize("kind", BROKEN_LAYERS, ids=lambda kind: kind.__name__)
def test_a_broken_layer_fails_by_the_name_of_what_is_broken(kind):
    assert failed(check_layer, kind) == BROKEN_LAYERS[kind]


def test_every_check_of_layers_finds_something():
    assert set().union(*BROKEN_LAYERS.values()) >= LAYER_CHECKS.by_name.keys()


def test_one_error_counts_the_checks_of_layers_and_of_all_methods():
    class NotFitted(SoundLayer):
        family = "layer"

        def predict(self, batch, **kwargs):
            raise CheckpointError("nothing has been fitted")

    with pytest.raises(AssertionError) as caught:
        check_layer(NotFitted)
    first, *lines = str(caught.value).splitlines()
    assert f"of {len(OF_ALL.by_name) + len(LAYER_CHECKS.by_name)} checks failed" in first
    assert int(first.split()[1]) == len(lines)
    assert sum("CheckpointError: nothing has been fitted (" in line for line in lines) >= len(lines) - 2
