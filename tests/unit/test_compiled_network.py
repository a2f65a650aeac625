"""The compiled network against autograd through the plain one."""

import contextlib
import copy
import dataclasses
import pickle

import pytest
import torch
from helpers import small_method

from uqbench.data.graph import GraphSet
from uqbench.errors import ConfigError, DataError
from uqbench.models import compiled
from uqbench.models.blocks import MLP, Initialiser
from uqbench.models.compiled import network, potential
from uqbench.models.compiled.potential import CompiledPotential, compile
from uqbench.models.compiled.verification import Verification
from uqbench.models.normalisation import Normalisation
from uqbench.models.painn import PaiNN
from uqbench.models.potential import Potential
from uqbench.models.schnet import SchNet

pytestmark = pytest.mark.numerics

# Relative to the largest value: roundings of about a hundred operations in a row, and room in double precision.
FORCES = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def native(monkeypatch):
    for known in ("verified_results", "verified_gradients"):
        monkeypatch.setattr(potential, known, copy.deepcopy(getattr(potential, known)))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(compiled.using("native"))
        except ConfigError as reason:
            pytest.skip(str(reason))
        yield


def build(kind, ethanol, members=None, *, features=24, layers=3, basis="bessel", activation="silu"):
    constants, init = Normalisation.fit(ethanol), Initialiser(1, members)
    backbone = {"painn": PaiNN, "schnet": SchNet}[kind](
        features=features,
        layers=layers,
        radial_functions=7,
        radial_basis=basis,
        cutoff=4.0,
        activation=activation,
        n_species=len(constants.elements),
        init=init,
    )
    heads = {"variance": 2}
    model = compile(Potential(backbone, heads=heads, normalisation=constants, activation=activation, init=init))
    assert type(model) is CompiledPotential
    # Biases begin as zero, which would hide what is done with them.
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter += 0.05 * torch.sin(torch.arange(parameter.numel()).add(k).view_as(parameter))
    return model.eval()


def outputs(model, batch, *, stress=False):
    """What the compiled network and what autograd give; the former counts as verified."""
    compiled.use("native")
    compiled_network = model.compiled_network(batch)
    potential.verified_results.add(compiled_network)
    found = model(batch, stress=stress)
    compiled.use("torch")
    assert model.compiled_network(batch) is None
    return found, model(batch, stress=stress)


def equal(found, expected, tolerance):
    for name in ("energy", "forces", "latents", "stress"):
        a, b = getattr(found, name), getattr(expected, name)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()), msg=name)
    assert found.heads.keys() == expected.heads.keys()
    for name, values in expected.heads.items():
        torch.testing.assert_close(found.heads[name], values, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", FORCES, ids=str)
@pytest.mark.parametrize("members", [None, 1, 3])
@pytest.mark.parametrize("features", [6, 40, 64])
@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_it_is_the_network(kind, features, members, dtype, ethanol):
    model = build(kind, ethanol, members, features=features).to(dtype)
    batch = GraphSet(ethanol[:3], 4.0, dtype=dtype).batch([0, 1, 2])
    equal(*outputs(model, batch), FORCES[dtype])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("activation", ["silu", "shifted_softplus"])
@pytest.mark.parametrize("basis", ["bessel", "gaussian"])
@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_every_choice_of_its_parts(kind, basis, activation, layers, ethanol):
    model = build(kind, ethanol, layers=layers, basis=basis, activation=activation).double()
    batch = GraphSet(ethanol[:2], 4.0, dtype=torch.float64).batch([0, 1])
    equal(*outputs(model, batch), 1e-12)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_stress_and_images_of_a_small_cell(kind, ethanol):
    atoms = ethanol[:1].to_atoms()[0]
    atoms.set_cell([4.5, 5.0, 4.0])
    atoms.pbc = True
    periodic = type(ethanol).from_atoms([atoms], origin="crystal")
    batch = GraphSet(periodic, 4.0, dtype=torch.float64).batch([0])
    assert len(batch.first) > len(batch.numbers) ** 2
    equal(*outputs(build(kind, ethanol).double(), batch, stress=True), 1e-12)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_atoms_without_neighbours(kind, ethanol):
    model = build(kind, ethanol).double()
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    nothing = batch.first[:0]
    lonely = dataclasses.replace(batch, first=nothing, second=nothing, shifts=batch.shifts[:0])
    found, expected = outputs(model, lonely)
    equal(found, expected, 1e-12)
    assert not found.forces.any()


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_threads_do_not_change_a_bit(kind, ethanol):
    batch = GraphSet(ethanol[:40], 4.0, dtype=torch.float32).batch(range(40))
    before, found = torch.get_num_threads(), []
    try:
        for members in (None, 3):
            model = build(kind, ethanol, members)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(outputs(model, batch)[0])
    finally:
        torch.set_num_threads(before)
    for one, two in (found[:2], found[2:]):
        assert torch.equal(one.forces, two.forces) and torch.equal(one.energy, two.energy)


def test_new_weights_count(ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    outputs(model, batch)
    with torch.no_grad():
        model.backbone.interactions[1].context.layers[0].weight += 0.1
    equal(*outputs(model, batch), 1e-12)
    model.load_state_dict(build("painn", ethanol[20:]).double().state_dict())
    equal(*outputs(model, batch), 1e-12)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.heads["energy"].layers[1].bias += 1.0
    equal(*outputs(copied, batch), 1e-12)
    equal(*outputs(model, batch), 1e-12)


def replace_module(model):
    interaction = model.backbone.interactions[1]
    interaction.context = copy.deepcopy(interaction.context)
    interaction.context.layers[0].weight.data += 0.1


def replace_parameter(model):
    layer = model.heads["variance"].layers[1]
    layer.weight = torch.nn.Parameter(2 * layer.weight.detach())


def replace_memory(model):
    parameter = model.backbone.embedding.weight
    parameter.data = 2 * parameter.data


def change_a_buffer(model):
    model.references += 1.0


@pytest.mark.parametrize("change", [replace_module, replace_parameter, replace_memory, change_a_buffer])
def test_whatever_changes_counts(change, ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    before, _ = outputs(model, batch)
    assert (compiled.use("native"), model.compiled_network(batch))[1] is model.compiled_network(batch)
    change(model)
    found, expected = outputs(model, batch)
    equal(found, expected, 1e-12)
    names = ("energy", "forces")
    values = [(getattr(before, name), getattr(found, name)) for name in names]
    values.append((before.heads["variance"], found.heads["variance"]))
    assert any(not torch.equal(a, b) for a, b in values)


def test_training_steps_between_evaluations_count(ethanol):
    """Fused optimisers do not count versions of what they change."""
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        equal(*outputs(model.eval(), batch), 1e-12)
        model.train()
        compiled.use("native")
        optimizer.zero_grad()
        model(batch, create_graph=True).forces.square().sum().backward()
        optimizer.step()
    equal(*outputs(model, batch), 1e-12)


@pytest.mark.parametrize("what", ["forces", "energy", "latents", "heads"])
def test_a_compiled_network_that_is_off_is_not_used(what, ethanol, monkeypatch, caplog):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    compiled.use("torch")
    expected = model(batch)
    compiled.use("native")
    exact = network.CompiledNetwork.__call__

    def off(self, batch, *, virials):
        found = exact(self, batch, virials=virials)
        values = getattr(found, what)
        values = [1.01 * value for value in values] if what == "heads" else 1.01 * values
        return dataclasses.replace(found, **{what: values})

    monkeypatch.setattr(potential, "verified_results", Verification("results"))
    monkeypatch.setattr(network.CompiledNetwork, "__call__", off)
    for _ in range(2):
        equal(model(batch), expected, 1e-12)
    assert len(caplog.messages) == 1 and "painn in torch" in caplog.text and "off by" in caplog.text


class Dropping(MLP):
    """A head with dropout, of the size of one without."""

    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5, training=True))


class Doubling(PaiNN):
    """A backbone with another last step and the weights of the one it is derived from."""

    def forward(self, geometry):
        return 2 * super().forward(geometry)


def dropping(model):
    old = model.heads["energy"]
    widths = [old.layers[0].weight.shape[-2], old.layers[0].weight.shape[-1], 1]
    model.heads["energy"] = Dropping(widths, old.activation, Initialiser(1, None)).double()
    model.heads["energy"].load_state_dict(old.state_dict())


def doubling(model):
    model.backbone.__class__ = Doubling


def other_activation(model):
    model.heads["energy"].activation = torch.tanh


def hooked(model):
    model.backbone.register_forward_hook(lambda module, inputs, output: 2 * output)


def another_child(model):
    model.backbone.add_module("extra", torch.nn.Dropout(0.5))


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "trained"])
@pytest.mark.parametrize("change", [dropping, doubling, other_activation, hooked, another_child])
def test_a_network_of_the_same_sizes_that_computes_something_else_is_not_taken_for_the_plain_one(
    change, training, ethanol
):
    """The plain network is verified in this process when the other one comes along."""
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    plain, other = (build("painn", ethanol).double().train(training) for _ in range(2))
    verified_gradients(plain, batch)
    assert other.compiled_network(batch) is not None, "the plain network is compiled"
    change(other.train(training))
    torch.manual_seed(0)
    found = other(batch, create_graph=training)
    compiled.use("torch")
    torch.manual_seed(0)
    expected = other(batch, create_graph=training)
    assert not torch.allclose(expected.energy, plain(batch).energy, rtol=1e-9) or change is another_child
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-9, atol=1e-9)
    compiled.use("native")
    assert other.compiled_network(batch) is None


def test_a_hook_on_all_modules_takes_part(ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    plain = model(batch).energy

    def double(module, inputs, output):
        return 2 * output if module is model.backbone else None

    handle = torch.nn.modules.module.register_module_forward_hook(double)
    try:
        hooked = model(batch).energy
    finally:
        handle.remove()
    assert not torch.allclose(hooked, plain, rtol=1e-9)
    torch.testing.assert_close(model(batch).energy, plain)


def test_networks_that_differ_in_a_flag_alone_are_verified_apart(ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    first, second, third = (build("painn", ethanol).double() for _ in range(3))
    second.backbone.basis.cutoff = 3.9  # of the envelope alone, which no size tells
    keys = [model.compiled_network(batch).key for model in (first, second, third)]
    assert keys[0] == keys[2] != keys[1]


def test_an_unknown_element_is_named(ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    numbers = batch.numbers.clone()
    numbers[3] = 14
    model = build("painn", ethanol).double()
    outputs(model, batch)
    compiled.use("native")
    with pytest.raises(DataError, match="not trained on Si; it knows"):
        model(dataclasses.replace(batch, numbers=numbers))


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_a_frame_has_the_same_bits_alone_and_among_others(kind, ethanol):
    graphs = GraphSet(ethanol[:30], 4.0, dtype=torch.float32)
    model = build(kind, ethanol)
    together, alone = (outputs(model, graphs.batch(frames))[0] for frames in (range(30), [17]))
    n_atoms = len(alone.forces)
    assert torch.equal(together.forces[17 * n_atoms : 18 * n_atoms], alone.forces)
    assert torch.equal(together.energy[17:18], alone.energy)


def test_coincident_atoms_are_an_error(ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    positions = batch.positions.clone()
    positions[batch.second[0]] = positions[batch.first[0]]
    with pytest.raises(DataError, match="closer than"):
        outputs(build("painn", ethanol).double(), batch.with_positions(positions))


def gradients(model, batch, mode, *, order=1):
    """Energies, forces, and the gradient of something of all outputs by the parameters and the positions."""
    compiled.use(mode)
    batch = batch.with_positions(batch.positions.clone().requires_grad_(True))
    output = model(batch, create_graph=True)
    results = [output.energy, output.forces, output.latents, *output.heads.values()]
    inputs = [batch.positions, *(p for p in model.parameters() if p.requires_grad)]
    generator = torch.Generator().manual_seed(0)
    loss = sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in results)
    for k in range(order):
        found = torch.autograd.grad(loss, inputs, create_graph=k < order - 1, allow_unused=True, materialize_grads=True)
        loss = sum(gradient.square().sum() for gradient in found)
    return output.energy.detach(), output.forces.detach(), *found


def verified_gradients(model, batch):
    compiled.use("native")
    compiled_network = model.compiled_network(batch, gradient=True)
    assert compiled_network is not None
    potential.verified_gradients.add(compiled_network)


def same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("dtype", FORCES, ids=str)
@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("features", [6, 40, 64])
@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_its_gradient_is_autograds(kind, features, members, dtype, ethanol):
    model = build(kind, ethanol, members, features=features).to(dtype)
    batch = GraphSet(ethanol[:3], 4.0, dtype=dtype).batch([0, 1, 2])
    verified_gradients(model, batch)
    # A gradient by a parameter is a sum over all pairs and atoms, whose terms cancel.
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-11}[dtype]
    same(gradients(model, batch, "native"), gradients(model, batch, "torch"), tolerance)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("activation", ["silu", "shifted_softplus"])
@pytest.mark.parametrize("basis", ["bessel", "gaussian"])
@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_the_gradient_of_every_choice_of_its_parts(kind, basis, activation, layers, ethanol):
    model = build(kind, ethanol, layers=layers, basis=basis, activation=activation).double()
    batch = GraphSet(ethanol[:2], 4.0, dtype=torch.float64).batch([0, 1])
    verified_gradients(model, batch)
    same(gradients(model, batch, "native"), gradients(model, batch, "torch"), 1e-11)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_derivatives_of_higher_order_are_left_to_autograd(kind, ethanol):
    model = build(kind, ethanol, 2, features=6).double()
    batch = GraphSet(ethanol[:2], 4.0, dtype=torch.float64).batch([0, 1])
    verified_gradients(model, batch)
    for order in (2, 3):
        found, expected = (gradients(model, batch, mode, order=order) for mode in ("native", "torch"))
        same(found, expected, 1e-9)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_the_gradient_of_a_small_cell_with_images(kind, ethanol):
    atoms = ethanol[:1].to_atoms()[0]
    atoms.set_cell([4.5, 5.0, 3.9])
    atoms.pbc = True
    batch = GraphSet(type(ethanol).from_atoms([atoms], origin="crystal"), 4.0, dtype=torch.float64).batch([0])
    assert (batch.first == batch.second).any()
    model = build(kind, ethanol).double()
    verified_gradients(model, batch)
    same(gradients(model, batch, "native"), gradients(model, batch, "torch"), 1e-11)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_the_gradient_of_atoms_without_neighbours(kind, ethanol):
    model = build(kind, ethanol).double()
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    nothing = batch.first[:0]
    lonely = dataclasses.replace(batch, first=nothing, second=nothing, shifts=batch.shifts[:0])
    verified_gradients(model, lonely)
    found, expected = gradients(model, lonely, "native"), gradients(model, lonely, "torch")
    same(found, expected, 1e-11)
    assert not found[2].any() and any(gradient.any() for gradient in found[3:])


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_only_what_is_wanted_is_differentiated(kind, ethanol):
    """Some parameters frozen, all frozen, and cotangents of some results only."""
    model = build(kind, ethanol, 2).double()
    batch = GraphSet(ethanol[:2], 4.0, dtype=torch.float64).batch([0, 1])
    verified_gradients(model, batch)
    for kept in ("embedding", "filters", "s.1.", "heads.energy", "nothing"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(kept in name)
        same(gradients(model, batch, "native"), gradients(model, batch, "torch"), 1e-11)
    model.requires_grad_(True)
    for name in ("energy", "forces", "latents"):
        found = {}
        for mode in ("native", "torch"):
            compiled.use(mode)
            result = getattr(model(batch, create_graph=True), name)
            found[mode] = torch.autograd.grad(
                result.square().sum(), [*model.parameters()], allow_unused=True, materialize_grads=True
            )
        same(found["native"], found["torch"], 1e-11)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
def test_threads_do_not_change_a_bit_of_the_gradient(kind, ethanol):
    batch = GraphSet(ethanol[:40], 4.0, dtype=torch.float32).batch(range(40))
    before = torch.get_num_threads()
    for members in (None, 3):
        model, found = build(kind, ethanol, members), []
        verified_gradients(model, batch)
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(gradients(model, batch, "native"))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_compiled_gradient_that_is_off_is_not_used(ethanol, monkeypatch, caplog):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    expected, exact = gradients(model, batch, "torch"), network.CompiledNetwork.gradient

    def off(self, *arguments, **keywords):
        by_positions, by_weights = exact(self, *arguments, **keywords)
        return by_positions, [1.1 * one for one in by_weights]

    for name, what in (("verified_results", "results"), ("verified_gradients", "gradients")):
        monkeypatch.setattr(potential, name, Verification(what))
    monkeypatch.setattr(network.CompiledNetwork, "gradient", off)
    for _ in range(2):
        same(gradients(model, batch, "native"), expected, 1e-11)
    assert len(caplog.messages) == 1 and "gradients of the compiled network are off by" in caplog.text
    # Its results are not off.
    assert model.compiled_network(batch) is not None


def test_a_compiled_gradient_is_used_once_it_is_verified(ethanol, monkeypatch):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    monkeypatch.setattr(potential, "verified_gradients", Verification("gradients"))
    first = gradients(model, batch, "native")
    monkeypatch.setattr(Potential, "forward", None)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(model, batch, "native"), strict=True))


def test_weights_that_change_before_the_gradient_are_an_error(ethanol):
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("painn", ethanol).double()
    verified_gradients(model, batch)
    loss = model(batch, create_graph=True).forces.square().sum()
    with torch.no_grad():
        model.backbone.embedding.weight += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_other_networks_are_left_to_autograd(ethanol, monkeypatch):
    monkeypatch.setattr(network, "DIFFERENTIABLE", ("painn",))
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    model = build("schnet", ethanol).double()
    assert model.compiled_network(batch) is not None and model.compiled_network(batch, gradient=True) is None
    assert model(batch, create_graph=True).forces.requires_grad


def plain(ethanol, backbone_type=PaiNN, kind=Potential):
    constants, init = Normalisation.fit(ethanol), Initialiser(1, None)
    sizes = {"features": 6, "layers": 2, "radial_functions": 5, "cutoff": 4.0, "n_species": len(constants.elements)}
    backbone = backbone_type(**sizes, radial_basis="bessel", activation="silu", init=init)
    return kind(backbone, heads={"variance": 1}, normalisation=constants, activation="silu", init=init)


def test_a_compiled_potential_shares_everything_with_the_plain_one(ethanol):
    first = plain(ethanol)
    model = compile(first)
    assert type(model) is CompiledPotential and compile(model) is model
    assert list(model.state_dict()) == list(first.state_dict())
    for name, tensor in model.named_parameters():
        assert tensor is first.get_parameter(name)
    model.double()
    assert {p.dtype for p in first.parameters()} == {torch.float64} and first.scale is model.scale
    batch = GraphSet(ethanol[:1], 4.0, dtype=torch.float64).batch([0])
    outputs(model.eval(), batch)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.backbone is not model.backbone
        equal(*outputs(copied, batch), 1e-12)
    first.load_state_dict(model.state_dict())


class Shifted(Potential):
    """A potential that computes something else."""


def test_what_no_compiled_code_repeats_stays_as_it_is(ethanol):
    for model in (plain(ethanol, kind=Shifted), plain(ethanol, Doubling)):
        assert compile(model) is model
    extended = plain(ethanol)
    extended.backbone.add_module("extra", torch.nn.Dropout(0.5))
    assert compile(extended) is extended


def test_every_method_gets_a_compiled_potential(ethanol):
    assert type(small_method(ethanol, "painn", "mve").potential) is CompiledPotential
