"""The message functions against naive sums over edges under plain autograd, to the third order and for every pass."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import graphs_of

from uqbench.models import painn as painn_backbone
from uqbench.models import schnet as schnet_backbone
from uqbench.models.blocks import Initialiser
from uqbench.models.compiled import Pairs, Wanted, painn, painn_message, pairs, schnet_message
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential

pytestmark = [
    pytest.mark.numerics,
    pytest.mark.usefixtures("kernels"),
    pytest.mark.parametrize("kernels", ["torch", "native"], indirect=True),
]

N_ATOMS, N_PAIRS, FEATURES, RADIAL = 5, 9, 3, 2


def edges(graph):
    """Both directions of all pairs as (receivers, senders)."""
    return torch.cat([graph.first, graph.second]), torch.cat([graph.second, graph.first])


def naive_painn(graph, directions, basis, weights, scalars, vectors, *, wanted=None):
    receivers, senders = edges(graph)
    unit = torch.cat([directions, -directions], dim=1)
    filters = torch.einsum("mpk,mbkf->mbpf", basis, weights).repeat(1, 1, 2, 1)
    delta_q = filters[:, 1] * scalars[:, 1, senders]
    delta_mu = torch.einsum("mec,mef->mcef", unit, filters[:, 0] * scalars[:, 0, senders])
    if vectors is not None:
        delta_mu = delta_mu + filters[:, 2:] * vectors[:, :, senders]
    zeros = torch.zeros_like(scalars[:, :1]).expand(-1, 3, -1, -1)
    return torch.zeros_like(scalars[:, 0]).index_add(1, receivers, delta_q), zeros.index_add(2, receivers, delta_mu)


def naive_schnet(graph, filters, features, *, wanted=None, first=None):
    receivers, senders = edges(graph)
    return torch.zeros_like(features).index_add(1, receivers, filters.repeat(1, 2, 1) * features[:, senders])


def draw(kind, members, generator):
    """Random pairs and arguments; an atom may be its own neighbour, two atoms may be several pairs."""

    def randn(*shape):
        return torch.randn(members, *shape, generator=generator, dtype=torch.float64).requires_grad_(True)

    atoms = torch.randint(N_ATOMS, (2, N_PAIRS), generator=generator)
    graph = Pairs(atoms[0], atoms[1], N_ATOMS, members)
    if kind == "schnet":
        return graph, [randn(N_PAIRS, FEATURES), randn(N_ATOMS, FEATURES)]
    geometry = [randn(N_PAIRS, 3), randn(N_PAIRS, RADIAL)]
    if kind == "painn_first":
        return graph, [*geometry, randn(2, RADIAL, FEATURES), randn(2, N_ATOMS, FEATURES)]
    return graph, [*geometry, randn(3, RADIAL, FEATURES), randn(2, N_ATOMS, FEATURES), randn(3, N_ATOMS, FEATURES)]


def functions(kind, graph):
    """The fast and the naive function of all arguments, as one flat result."""

    def joined(function, **keywords):
        def call(*arguments):
            if kind == "painn_first":
                arguments = (*arguments, None)
            results = function(graph, *arguments, wanted=Wanted(), **keywords)
            return results if kind == "schnet" else torch.cat([results[0].unsqueeze(1), results[1]], dim=1)

        return call

    if kind == "schnet":
        return joined(schnet_message, first=False), joined(naive_schnet, first=False)
    return joined(painn_message), joined(naive_painn)


KINDS = ["painn", "painn_first", "schnet"]


@pytest.fixture(params=[2, 4, 1000])
def chunk(request, monkeypatch):
    """Pieces smaller than a member, of several members, and everything at once."""
    monkeypatch.setattr(pairs, "CHUNK", request.param)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives_to_the_third_order_are_the_naive_ones(kind, members, chunk):
    generator = torch.Generator().manual_seed(1)
    graph, arguments = draw(kind, members, generator)
    fast, naive = functions(kind, graph)
    torch.testing.assert_close(fast(*arguments), naive(*arguments), rtol=1e-12, atol=1e-12)

    def randn_like(tensors):
        return [torch.randn(t.shape, generator=generator, dtype=t.dtype).requires_grad_(True) for t in tensors]

    (g,) = randn_like([fast(*arguments)])
    first = randn_like(arguments)
    second = randn_like([*arguments, g])
    levels = [(arguments, [g]), ([*arguments, g], first), ([*arguments, g, *first], second)]

    def derivatives(function, orders):
        found = function(*arguments)
        for order, (inputs, cotangents) in enumerate(levels[:orders], start=1):
            found = torch.autograd.grad(found, inputs, cotangents, create_graph=order < orders)
        return found

    # Asked for two orders, the second comes from the fused function; asked for three, from the composed one.
    for orders in (1, 2, 3):
        for a, b in zip(derivatives(fast, orders), derivatives(naive, orders), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    graph, arguments = draw(kind, 2, torch.Generator().manual_seed(2))
    fast, _ = functions(kind, graph)
    assert torch.autograd.gradcheck(fast, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(fast, arguments, fast_mode=True)


def test_no_pairs_give_no_message():
    nothing = torch.zeros(0, dtype=torch.int64)
    graph = Pairs(nothing, nothing, N_ATOMS, 2)
    filters, features = torch.zeros(2, 0, FEATURES), torch.ones(2, N_ATOMS, FEATURES)
    assert schnet_message(graph, filters, features, wanted=Wanted(), first=True).abs().max() == 0


@pytest.fixture(scope="module")
def batch(ethanol):
    return graphs_of(ethanol[:3]).batch([0, 1, 2])


def potential(kind, members, ethanol):
    init = Initialiser(0, members)
    constants = Normalisation.fit(ethanol)
    sizes = dict(features=6, layers=3, radial_functions=5, cutoff=5.0, n_species=len(constants.elements), init=init)
    if kind == "painn":
        net = painn_backbone.PaiNN(radial_basis="bessel", activation="silu", **sizes)
    else:
        net = schnet_backbone.SchNet(radial_basis="gaussian", activation="shifted_softplus", **sizes)
    return Potential(net, heads={}, normalisation=constants, activation="silu", init=init).double()


def passes(model, batch, *, attack, order):
    """Gradients of a loss by all parameters, and by the positions where they are attacked."""
    batch = batch.with_positions(batch.positions.clone().requires_grad_(attack))
    output = model(batch, create_graph=True)
    loss = output.energy.square().sum() + output.forces.square().sum()
    inputs = [*model.parameters(), *([batch.positions] if attack else [])]
    for _ in range(order - 2):
        loss = sum(g.square().sum() for g in torch.autograd.grad(loss, inputs, create_graph=True))
    return output.forces, *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("attack", [False, True])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_leaving_out_what_a_pass_does_not_need_changes_no_gradient(
    kind, order, attack, members, ethanol, batch, monkeypatch
):
    model = potential(kind, members, ethanol)
    fast = passes(model, batch, attack=attack, order=order)
    monkeypatch.setattr(painn_backbone, "painn_message", naive_painn)
    monkeypatch.setattr(schnet_backbone, "schnet_message", naive_schnet)
    naive = passes(model, batch, attack=attack, order=order)
    for a, b in zip(fast, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * b.detach().abs().max().item())


def test_passes_compute_only_what_they_need(ethanol, batch, monkeypatch):
    """PaiNN's arguments are directions, basis | filter weights | scalars, vectors."""
    asked = []
    form = painn.PAINN

    def pullback(graph, arguments, g, needs):
        asked.append(needs)
        return form.pullback(graph, arguments, g, needs)

    watched, chosen = dataclasses.replace(form, pullback=pullback), painn.chosen
    monkeypatch.setattr(
        painn, "chosen", lambda reference, like: watched if reference is form else chosen(reference, like)
    )
    model = potential("painn", None, ethanol)

    def needs(run):
        asked.clear()
        run()
        return asked[:]

    forces = [(True, True, False, True, True), (True, True, False, True, True), (True, True, False, False)]
    loss = [(False, False, True, True, True), (False, False, True, True, True), (False, False, True, True)]
    attack = [(True, True, True, True, True), (True, True, True, True, True), (True, True, True, True)]
    assert needs(lambda: model(batch)) == forces
    output = model(batch, create_graph=True)
    assert needs(lambda: output.forces.square().sum().backward()) == loss
    moving = batch.with_positions(batch.positions.clone().requires_grad_(True))
    output = model(moving, create_graph=True)
    assert needs(lambda: output.forces.square().sum().backward()) == attack
    # Frozen parameters cost nothing; the first layer's scalars then depend on nothing.
    model.requires_grad_(False)
    output = model(moving, create_graph=True)
    assert needs(lambda: output.forces.square().sum().backward()) == forces


def test_single_precision_agrees(ethanol):
    generator = torch.Generator().manual_seed(0)
    for kind in KINDS:
        graph, arguments = draw(kind, 2, generator)
        fast, naive = functions(kind, graph)
        single = fast(*(a.detach().float() for a in arguments))
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, naive(*arguments).detach(), rtol=1e-5, atol=1e-5)
