"""What the energy's last layer acts on, its derivative by the positions, and several last layers on one trunk."""

import copy
import dataclasses

import pytest
import torch
from helpers import graphs_of, small_method
from scipy.spatial.transform import Rotation

from uqbench.data.graph import GraphSet
from uqbench.uq.likelihoods import HEAD

BACKBONES = ["painn", "schnet", "nequip"]
MEMBERS = 2


def perturbed(potential):
    """Biases begin as zero, which would hide what is done with them."""
    with torch.no_grad():
        for k, parameter in enumerate(potential.heads.parameters()):
            parameter += 0.1 * torch.sin(torch.arange(parameter.numel()).add(k).view_as(parameter))
    return potential


@pytest.fixture(scope="module", params=BACKBONES)
def potential(request, ethanol):
    return perturbed(small_method(ethanol, request.param, "mve").potential).eval()


@pytest.fixture(scope="module", params=BACKBONES)
def ensemble(request, ethanol):
    return perturbed(small_method(ethanol, request.param, "ensemble", **{"uq.members": MEMBERS}).potential).eval()


@pytest.fixture(scope="module")
def batch(ethanol):
    return graphs_of(ethanol[:3]).batch([0, 1, 2])


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def single_head(potential, weights, bias):
    """The model with another last layer, evaluated by `forward`."""
    single = copy.deepcopy(potential)
    layer = single.heads["energy"].layers[-1]
    with torch.no_grad():
        layer.weight.copy_(weights.unsqueeze(-1))
        layer.bias.copy_(bias.unsqueeze(-1))
    return single


def test_energy_and_forces_are_linear_in_the_features(potential, batch):
    output, features = potential(batch), potential.features(batch)
    gradients = potential.feature_gradients(batch)
    width = potential.readout.shape[-1]
    assert features.hidden.shape == (len(batch.numbers), width) and gradients.shape == (len(batch.numbers), 3, width)
    assert features.summed.shape == (3, width) and features.constant.shape == (3,)
    assert not features.summed.requires_grad and not gradients.requires_grad
    close(features.latents, output.latents, 1e-12)
    close(features.constant + features.summed @ potential.readout, output.energy, 1e-12)
    close(gradients @ potential.readout, output.forces, 1e-10)


def test_features_of_latents_that_are_there(potential, batch):
    expected = potential.features(batch)
    features = potential.features(batch, latents=potential(batch).latents)
    for field in dataclasses.fields(features):
        close(getattr(features, field.name), getattr(expected, field.name), 1e-12)


def test_gradients_are_those_of_central_differences(potential, batch):
    gradients, step = potential.feature_gradients(batch), 1e-5
    for atom in (0, 5, len(batch.numbers) - 1):
        for x in range(3):
            moved = torch.zeros_like(batch.positions)
            moved[atom, x] = step
            up, down = (potential.features(batch.with_positions(batch.positions + s * moved)).summed for s in (1, -1))
            slope = (up - down)[batch.system[atom]] / (2 * step)
            assert torch.equal((up - down).any(-1).nonzero().flatten(), batch.system[atom : atom + 1])
            torch.testing.assert_close(-gradients[atom, x], slope, rtol=0, atol=1e-6 * float(gradients.abs().max()))


def test_gradients_sum_to_zero_over_a_structure(potential, batch):
    gradients = potential.feature_gradients(batch)
    sums = gradients.new_zeros(len(batch), *gradients.shape[1:]).index_add(0, batch.system, gradients)
    assert float(sums.abs().max()) < 1e-12 * float(gradients.abs().max())


def test_rotation_turns_gradients_and_nothing_else(potential, ethanol, batch):
    matrix = Rotation.from_euler("xyz", [0.4, 1.3, -2.0]).as_matrix()
    for turn in (matrix, -matrix):
        turned = dataclasses.replace(ethanol[:3], positions=ethanol[:3].positions @ turn.T)
        other = graphs_of(turned).batch([0, 1, 2])
        close(potential.features(other).summed, potential.features(batch).summed, 1e-10)
        expected = torch.einsum("xy,ayp->axp", torch.as_tensor(turn), potential.feature_gradients(batch))
        close(potential.feature_gradients(other), expected, 1e-9)


@pytest.mark.parametrize("count", [1, 3, 9], ids=lambda count: f"{count} heads")
def test_heads_equal_models_with_one_each(potential, batch, count):
    """Nine heads are more than there are features: then the forces come from the gradients of these."""
    weights, biases = drawn(count, potential.readout.shape[-1]), drawn(2, count)[1]
    output = potential.linear_heads(batch, weights, biases)
    assert output.energy.shape == (count, 3) and output.forces.shape == (count, len(batch.numbers), 3)
    assert not output.forces.requires_grad
    for k in range(count):
        expected = single_head(potential, weights[k], biases[k])(batch)
        close(output.energy[k], expected.energy, 1e-12)
        close(output.forces[k], expected.forces, 1e-10)
    expected = potential(batch)
    close(output.latents, expected.latents, 1e-12)
    close(output.heads[HEAD], expected.heads[HEAD], 1e-12)


def test_without_biases_heads_have_the_models_own(potential, batch):
    output, expected = potential.linear_heads(batch, potential.readout.detach()[None]), potential(batch)
    close(output.energy[0], expected.energy, 1e-12)
    close(output.forces[0], expected.forces, 1e-10)


def loss_gradients(model, batch, heads):
    """Gradients by positions, weights, biases and the trunk of a loss on energies and forces of K heads."""
    batch = batch.with_positions(batch.positions.clone().requires_grad_(True))
    weights = drawn(heads, model.readout.shape[-1]).requires_grad_(True)
    biases = drawn(heads).requires_grad_(True)
    trunk = [*model.backbone.parameters(), *model.heads["energy"].layers[0].parameters()]
    inputs = [batch.positions, weights, biases, *trunk]

    def gradients(results):
        loss = sum((k + 1) * (e.sin().sum() + f.square().sum()) for k, (e, f) in enumerate(results))
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    output = model.linear_heads(batch, weights, biases, create_graph=True)
    return gradients(list(zip(output.energy, output.forces, strict=True))), gradients(
        [separately(model, batch, w, b) for w, b in zip(weights, biases, strict=True)]
    )


def separately(model, batch, weights, bias):
    """Energy and forces of one head, straight from the definition."""
    features = model.features(batch, create_graph=True)
    another = (bias - model.heads["energy"].layers[-1].bias.detach()) * model.scale * batch.n_atoms
    energy = features.constant.detach() + another + features.summed @ weights
    return energy, -torch.autograd.grad(energy.sum(), batch.positions, create_graph=True)[0]


@pytest.mark.parametrize("count", [2, 9], ids=lambda count: f"{count} heads")
def test_heads_can_be_trained_and_attacked(potential, batch, count):
    together, alone = loss_gradients(potential, batch, count)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()) + 1e-12)


def test_gradients_stay_differentiable(potential, batch):
    """Forces by way of the gradients have the derivatives that forces have."""
    batch = batch.with_positions(batch.positions.clone().requires_grad_(True))
    inputs = [batch.positions, *potential.backbone.parameters()]
    some = {
        "gradients": potential.feature_gradients(batch, create_graph=True) @ potential.readout,
        "forward": potential(batch, create_graph=True).forces,
    }
    a, b = (
        torch.autograd.grad(forces.square().sum(), inputs, allow_unused=True, materialize_grads=True)
        for forces in some.values()
    )
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-8 * float(y.abs().max()) + 1e-12)


def test_members_have_features_of_their_own(ensemble, batch):
    output, features = ensemble(batch), ensemble.features(batch)
    gradients, w = ensemble.feature_gradients(batch), ensemble.readout
    n_atoms, width = len(batch.numbers), w.shape[-1]
    assert features.summed.shape == (MEMBERS, 3, width) and gradients.shape == (MEMBERS, n_atoms, 3, width)
    close(features.constant + (features.summed @ w.unsqueeze(-1)).squeeze(-1), output.energy, 1e-12)
    close(torch.einsum("maxp,mp->max", gradients, w), output.forces, 1e-10)
    for count in (2, 9):
        weights, biases = drawn(count, MEMBERS, width), drawn(count, MEMBERS)
        heads = ensemble.linear_heads(batch, weights, biases)
        for k in range(count):
            expected = single_head(ensemble, weights[k], biases[k])(batch)
            close(heads.energy[k], expected.energy, 1e-12)
            close(heads.forces[k], expected.forces, 1e-10)


def test_in_single_precision_sums_are_double(ethanol):
    potential = small_method(ethanol, "painn", "deterministic").potential.float().eval()
    batch = GraphSet(ethanol[:2], 5.0, dtype=torch.float32).batch([0, 1])
    features, output = potential.features(batch), potential(batch)
    assert features.summed.dtype == features.constant.dtype == torch.float64 and features.hidden.dtype == torch.float32
    close(features.constant + features.summed @ potential.readout.double(), output.energy, 1e-8)
    heads = potential.linear_heads(batch, potential.readout.detach().double()[None])
    assert heads.forces.dtype == torch.float32 and heads.energy.dtype == torch.float64
    close(heads.forces[0], output.forces, 1e-4)
