"""What every uncertainty method must hold, and what layers must hold besides."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from uqbench import config
from uqbench.data.graph import Batch
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.families import FAMILIES
from uqbench.models.blocks import Backbone, Initialiser
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential
from uqbench.runs.checkpoints import load_best
from uqbench.runs.files import BEST, save_checkpoint
from uqbench.testing import frames
from uqbench.testing.backbones import BuildBackbone, batch_of
from uqbench.testing.checks import (
    CheckFailure,
    Checks,
    as_array,
    refusal,
    require,
    require_close,
    require_equal,
    require_slopes,
    spread,
)
from uqbench.testing.frames import unlabelled
from uqbench.uq.base import BuildPotential, Prediction, UQMethod, require_family
from uqbench.uq.layer import Layer

BuildMethod = Callable[[BuildPotential], UQMethod]

PAINN = {
    "_target_": "uqbench.models.painn.PaiNN",
    **{"features": 8, "layers": 2, "radial_functions": 16, "radial_basis": "bessel", "cutoff": 5.0},
    "activation": "silu",
}
FACTOR = 7.0  # of labels
PER_ATOM = ("score", "force_variance")
PER_STRUCTURE = ("energy", "energy_variance", "energy_score")


def small_backbone(n_species: int, init: Initialiser) -> Backbone:
    """Return a small PaiNN."""
    return config.build(OmegaConf.create(PAINN), slot="backbone", n_species=n_species, init=init)


def check_method(
    build: BuildMethod,
    *,
    backbone: BuildBackbone = small_backbone,
    activation: str = "silu",
    structures: Structures | None = None,
) -> None:
    """Check a method that changes the training: its family, predictions, symmetries, units, losses, checkpoints.

    Nothing is trained: what is checked holds for any weights.

    Args:
        build: called with `build_potential(members, heads)`, as a config's method is; returns a new method.
        backbone: of its potentials, called as by `check_backbone`; by default a small PaiNN.
        activation: of the heads' hidden layers.
        structures: ten or more with energies and forces; by default sixty frames of ethanol. A fifth of them is
            predicted, the others are the training frames.

    Raises AssertionError with all checks that failed and what they saw.

    Example:
        >>> from functools import partial
        >>> from uqbench.testing import check_method
        >>> from uqbench.uq.ensemble import Ensemble
        >>> check_method(partial(Ensemble, members=3, ddof=1, bootstrap=False))
    """
    CHECKS.run(Subject(build, frames.ethanol() if structures is None else structures, backbone, activation))


def check_layer(
    build: Callable[[Potential], Layer],
    *,
    backbone: BuildBackbone = small_backbone,
    activation: str = "silu",
    structures: Structures | None = None,
) -> None:
    """Check a layer as `check_method` does a method, and that it leaves the model below it as it is.

    Args:
        build: called with a potential, as a config's layer is; returns a new layer.
        backbone: of the potential, called as by `check_backbone`; by default a small PaiNN.
        activation: of the heads' hidden layers.
        structures: as in `check_method`; the layer is fitted to the training frames.

    Raises AssertionError with all checks that failed and what they saw.

    Example:
        >>> from uqbench.testing import check_layer
        >>> from uqbench.uq.constant import Constant
        >>> check_layer(Constant)
    """

    def from_plain(build_potential: BuildPotential) -> UQMethod:
        return build(build_potential(None, {}))

    subject = Subject(from_plain, frames.ethanol() if structures is None else structures, backbone, activation)
    LAYER_CHECKS.report(
        OF_ALL.failures(subject) | LAYER_CHECKS.failures(subject), len(OF_ALL.by_name) + len(LAYER_CHECKS.by_name)
    )


@dataclasses.dataclass
class Subject:
    """A kind of method and what it is fitted on and predicts.

    Attributes:
        build: returns a new method.
        structures: with labels.
        backbone: returns a new backbone.
        activation: of the heads.
    """

    build: BuildMethod
    structures: Structures
    backbone: BuildBackbone
    activation: str

    def make(self, training: Structures, seed: int = 0) -> UQMethod:
        """Return a new method in double precision with constants of the training frames, in evaluation mode."""
        normalisation = Normalisation.fit(training)

        def build_potential(members: int | None, heads: dict[str, int]) -> Potential:
            init = Initialiser(seed, members)
            backbone = self.backbone(n_species=len(normalisation.elements), init=init)
            kinds = {"normalisation": normalisation, "activation": self.activation, "init": init}
            return compile(Potential(backbone, heads=heads, **kinds))

        return self.build(build_potential).to(torch.float64).eval()

    def ready(self, training: Structures, seed: int = 0) -> UQMethod:
        """Return a new method that can predict: fitted, if it is a layer."""
        method = self.make(training, seed)
        if isinstance(method, Layer):
            method.fit(training, batch_size=16, seed=0)
        else:
            method.begin(len(training), seed=0)
        return method

    @property
    def predicted(self) -> Structures:
        """A fifth of the structures: to others than these, a distance to the training frames is zero, and noise."""
        return self.structures[: len(self.structures) // 5]

    @property
    def training(self) -> Structures:
        """The other structures."""
        return self.structures[len(self.structures) // 5 :]

    @functools.cached_property
    def method(self) -> UQMethod:
        """The method, ready to predict."""
        return self.ready(self.training)

    @functools.cached_property
    def batch(self) -> Batch:
        """The structures that are predicted as one graph."""
        return self.batch_of(self.predicted)

    @functools.cached_property
    def prediction(self) -> Prediction:
        """What the method says of them."""
        return self.method.predict(self.batch)

    def batch_of(self, structures: Structures) -> Batch:
        """Return structures as one graph."""
        return batch_of(structures, self.method.potential.backbone.cutoff)

    def predict(self, structures: Structures) -> Prediction:
        """Return what the method says of other structures."""
        return self.method.predict(self.batch_of(structures))


OF_ALL: Checks[Subject] = Checks("check_method")


def require_same(
    prediction: Prediction,
    expected: Prediction,
    *,
    order: NDArray | None = None,
    forces: Tensor | None = None,
    rtol: float = 1e-7,
) -> None:
    """Raise CheckFailure unless two predictions agree, that of atoms in another order and with other forces."""
    for name in (*PER_STRUCTURE, *PER_ATOM):
        value, wanted = getattr(prediction, name), getattr(expected, name)
        require((value is None) == (wanted is None), f"{name} is there only once")
        if wanted is not None:
            wanted = wanted if order is None or name in PER_STRUCTURE else wanted[order]
            require_close(value, wanted, name, rtol=rtol, atol=1e-10 * float(wanted.abs().max()))
    wanted = expected.forces if forces is None else forces
    require_close(prediction.forces, wanted, "forces", rtol=rtol, atol=1e-9 * float(wanted.abs().max()))


@OF_ALL
def the_family_is_declared_and_fits_the_number_of_networks(subject: Subject) -> None:
    method, kind = subject.method, type(subject.method)
    require("family" in vars(kind), f"{kind.__name__} does not declare its family itself")
    try:
        require_family(kind)
    except ConfigError as error:
        raise CheckFailure(str(error)) from None
    require(method.family in FAMILIES, f"family {method.family!r}")
    require(method.score_scale in ("ratio", "log"), f"score_scale {method.score_scale!r}")
    require(
        method.n_models == 1 or method.family == "ensemble", f"{method.n_models} networks, but family {method.family!r}"
    )
    require(
        method.informed or method.family == "baseline",
        f"its scores do not differ between structures, but it is of the family {method.family!r}",
    )


@OF_ALL
def shapes_types_and_signs_are_right(subject: Subject) -> None:
    prediction, n_atoms, n_frames = subject.prediction, len(subject.predicted.numbers), len(subject.predicted)
    shapes = {
        **{"energy": (n_frames,), "energy_score": (n_frames,), "energy_variance": (n_frames,)},
        **{"forces": (n_atoms, 3), "score": (n_atoms,), "force_variance": (n_atoms,)},
    }
    for name, shape in shapes.items():
        value = getattr(prediction, name)
        if value is None and name.endswith("variance"):
            continue
        require(isinstance(value, Tensor), f"{name} is no tensor")
        require(tuple(value.shape) == shape, f"{name} has shape {tuple(value.shape)}, expected {shape}")
        require(torch.isfinite(value).all(), f"{name} is not finite")
        require(value.dtype == torch.float64, f"{name} of a model in double precision is {value.dtype}")
        if name.endswith("variance"):
            require((value > 0).all(), f"{name} is not positive: {float(value.min()):.3g}")
        elif name.endswith("score") and subject.method.score_scale == "ratio":
            require((value >= 0).all(), f"{name} is negative, {float(value.min()):.3g}, but score_scale is 'ratio'")


@OF_ALL
def scores_that_are_informed_differ(subject: Subject) -> None:
    for name in ("score", "energy_score"):
        value = getattr(subject.prediction, name)
        differ = bool((value != value[0]).any())
        require(
            differ == subject.method.informed,
            f"{name} {'differs' if differ else 'is the same'}, but informed is not so",
        )


def require_moved(subject: Subject, matrix: NDArray) -> None:
    """Raise CheckFailure unless a motion of the structures turns the forces and changes nothing else."""
    structures = subject.predicted[:4]
    moved = subject.predict(frames.moved(structures, matrix, (5.0, -3.0, 1.0)))
    before = subject.predict(structures)
    require_same(moved, before, forces=before.forces @ torch.as_tensor(matrix.T))


@OF_ALL
def rotation_and_translation_turn_the_forces_and_nothing_else(subject: Subject) -> None:
    require_moved(subject, frames.ROTATION)


@OF_ALL
def reflection_mirrors_the_forces_and_nothing_else(subject: Subject) -> None:
    require_moved(subject, frames.REFLECTION)


@OF_ALL
def permutation_permutes(subject: Subject) -> None:
    structures = subject.predicted[:2]
    order, before = frames.permutation(structures), subject.predict(structures)
    after = subject.predict(frames.permuted(structures, order))
    require_same(after, before, order=order, forces=before.forces[order])


@OF_ALL
def other_structures_in_the_batch_change_nothing(subject: Subject) -> None:
    """Also where they have other numbers of atoms."""
    frames_of_batch = subject.predicted[:3].to_atoms()
    frames_of_batch[1] = frames_of_batch[1][: max(1, 2 * len(frames_of_batch[1]) // 3)]
    structures = unlabelled(*frames_of_batch)
    together = subject.predict(structures)
    for s in range(len(structures)):
        parts, atoms = {}, slice(*structures.ptr[s : s + 2])
        for field in dataclasses.fields(Prediction):
            value = getattr(together, field.name)
            rows = slice(s, s + 1) if field.name in (*PER_STRUCTURE, "stress") else atoms
            parts[field.name] = None if value is None else value[rows]
        require_same(subject.predict(structures[[s]]), Prediction(**parts), rtol=1e-8)


@OF_ALL
def a_second_prediction_gives_the_same_bits_and_leaves_no_trace(subject: Subject) -> None:
    state = {name: value.clone() for name, value in subject.method.state_dict().items()}
    first, second = (subject.method.predict(subject.batch) for _ in range(2))
    for field in dataclasses.fields(Prediction):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if a is not None:
            require_equal(b, a, field.name)
            require(not a.requires_grad, f"{field.name} keeps a graph that was not asked for")
    for name, value in subject.method.state_dict().items():
        require_equal(value, state[name], name)
    graded = [name for name, parameter in subject.method.named_parameters() if parameter.grad is not None]
    require(not graded, f"a prediction has left gradients at {', '.join(graded)}")


@OF_ALL
def the_gradient_of_the_score_is_exact(subject: Subject) -> None:
    """Attacks climb the score."""
    batch = subject.batch_of(subject.predicted[:2])

    def total(positions: Tensor) -> Tensor:
        return subject.method.predict(batch.with_positions(positions), create_graph=True).score.sum()

    positions = batch.positions.clone().requires_grad_(True)
    score = total(positions)
    require(
        score.requires_grad == subject.method.informed,
        f"the score has {'a' if score.requires_grad else 'no'} gradient, but informed is {subject.method.informed}",
    )
    if subject.method.informed:
        (gradient,) = torch.autograd.grad(score, positions)
        require(gradient.abs().max() > 0, "the gradient is zero everywhere")

        def value(x: NDArray) -> float:
            with torch.no_grad():
                return float(total(torch.as_tensor(x)))

        entries = spread(len(positions), 3)
        require_slopes(gradient, value, batch.positions.numpy(), entries, "gradient of Σ score", rtol=1e-4)


@OF_ALL
def saving_and_loading_give_the_same_bits(subject: Subject) -> None:
    """What a prediction needs is all in the state dict, as plain tensors."""
    fresh = subject.make(subject.training, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / BEST, {"epoch": 1, "method": subject.method.state_dict()})
        load_best(Path(folder), fresh)
    loaded = fresh.predict(subject.batch)
    for name in (*PER_STRUCTURE, "forces", *PER_ATOM):
        value, wanted = getattr(loaded, name), getattr(subject.prediction, name)
        require((value is None) == (wanted is None), f"{name} is there only once")
        if wanted is not None:
            require_equal(value, wanted, name)


@OF_ALL
def labels_times_c_give_standard_deviations_times_c(subject: Subject) -> None:
    """A wrong constant in a variance would pass every ranking metric; it does not pass this."""
    labels = subject.training
    scaled = dataclasses.replace(labels, energies=labels.energies * FACTOR, forces=labels.forces * FACTOR)
    method, before = subject.ready(scaled), subject.prediction
    after = method.predict(subject.batch)
    for name in ("force_variance", "energy_variance"):
        wanted = getattr(before, name)
        if wanted is not None:
            require_close(getattr(after, name), FACTOR**2 * wanted, name, rtol=1e-5)
    if method.informed:
        orders = [as_array(prediction.score).argsort(kind="stable") for prediction in (before, after)]
        ranked = [as_array(before.score)[order] for order in orders]
        largest = np.abs(ranked[0]).max()
        require_close(
            ranked[1], ranked[0], "scores in the order of those of scaled labels", rtol=1e-6, atol=1e-6 * largest
        )


@OF_ALL
def unknown_elements_are_refused(subject: Subject) -> None:
    known = subject.structures.elements
    unknown = next(z for z in range(1, len(chemical_symbols)) if z not in known)
    pair = unlabelled(Atoms([known[0], unknown], [[0, 0, 0], [0, 0, 1.5]]))
    message = refusal(lambda: subject.predict(pair), f"a frame with {chemical_symbols[unknown]}")
    require(f"was not trained on {chemical_symbols[unknown]}" in message, f"the message is: {message}")


CHECKS: Checks[Subject] = Checks("check_method")
CHECKS.by_name |= OF_ALL.by_name


def point_loss(residual: Tensor) -> Tensor:
    """Return the length (..., N) of force residuals (..., N, 3)."""
    return torch.sqrt(residual.square().sum(-1) + 1e-12)


@CHECKS
def losses_are_those_of_each_frame_alone(subject: Subject) -> None:
    """Losses are not reduced, so that any split over processes averages to the same number."""
    losses = subject.method.losses(subject.batch, point_loss)
    alone = [
        subject.method.losses(subject.batch_of(subject.predicted[[s]]), point_loss)
        for s in range(len(subject.predicted))
    ]
    sizes = {"energy": len(subject.predicted), "forces": len(subject.predicted.numbers)}
    for name, size in (*sizes.items(), ("energy_error", sizes["energy"]), ("force_error", sizes["forces"])):
        value = getattr(losses, name)
        require(value.shape[-1] == size, f"{name} have shape {tuple(value.shape)}, expected (..., {size})")
        require_close(value, torch.cat([getattr(loss, name) for loss in alone], dim=-1), name, rtol=1e-8)


@CHECKS
def errors_of_the_losses_are_those_of_the_prediction(subject: Subject) -> None:
    losses, batch = subject.method.losses(subject.batch, point_loss), subject.batch
    require_close(losses.energy_error, (subject.prediction.energy - batch.energies).abs(), "energy_error")
    require_close(
        losses.force_error, (subject.prediction.forces - batch.forces).abs().mean(-1), "force_error", rtol=1e-8
    )


@CHECKS
def a_step_against_the_gradient_lowers_the_losses(subject: Subject) -> None:
    """That of energies and that of forces, in evaluation mode, in which epochs are compared; no parameter is idle."""
    method, batch = copy.deepcopy(subject.method), subject.batch_of(subject.training[:4])
    names, parameters = zip(*method.named_parameters(), strict=True)
    size = math.sqrt(sum(float(parameter.detach().square().sum()) for parameter in parameters))
    idle = set(names)

    def mean(kind: str) -> Tensor:
        return getattr(method.losses(batch, point_loss), kind).mean(-1).sum()

    for kind in ("energy", "forces"):
        with torch.enable_grad():
            loss = mean(kind)
        require(loss.requires_grad, f"the loss of {kind} does not depend on the parameters")
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        idle -= {name for name, gradient in zip(names, gradients, strict=True) if gradient.any()}
        step = 1e-6 * size / math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        values = []
        for factor in (-1, 2, -1):  # forwards, back beyond the start, and to the start
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter += factor * step * gradient
                values.append(float(mean(kind)))
        lower, higher = values[:2]
        require(lower < higher, f"the loss of {kind} is {lower:.10g} a step down its gradient, {higher:.10g} a step up")
    require(not idle, f"no gradient for {', '.join(sorted(idle))}")


@CHECKS
def losses_need_labels(subject: Subject) -> None:
    batch = dataclasses.replace(subject.batch, energies=None, forces=None)
    try:
        subject.method.losses(batch, point_loss)
    except DataError as error:
        require("no labels" in str(error), f"the message is: {error}")
    else:
        raise CheckFailure("losses of a batch without labels")


LAYER_CHECKS: Checks[Subject] = Checks("check_layer")


def plain_potential(subject: Subject) -> Potential:
    """Return the potential of `subject.method` as it was before the layer came."""
    potentials: list[Potential] = []

    def keep(build_potential: BuildPotential) -> UQMethod:
        potentials.append(build_potential(None, {}).to(torch.float64).eval())
        return torch.nn.Module()

    dataclasses.replace(subject, build=keep).make(subject.training)
    return potentials[0]


@LAYER_CHECKS
def the_weights_of_the_model_stay(subject: Subject) -> None:
    potential = plain_potential(subject)
    layer = subject.method
    layer.predict(subject.batch)
    after = layer.potential.state_dict()
    require(after.keys() == potential.state_dict().keys(), "tensors of the model were added or removed")
    for name, value in potential.state_dict().items():
        require_equal(after[name], value, name)


@LAYER_CHECKS
def energies_and_forces_are_those_of_the_model(subject: Subject) -> None:
    output = plain_potential(subject)(subject.batch)
    require_equal(subject.prediction.energy, output.energy, "energy")
    require_equal(subject.prediction.forces, output.forces, "forces")


@LAYER_CHECKS
def a_second_fit_gives_the_same_bits(subject: Subject) -> None:
    first, second = subject.method.fitted_state(), subject.ready(subject.training).fitted_state()
    require(first.keys() == second.keys(), "other tensors were fitted")
    for name, value in first.items():
        require_equal(second[name], value, name)


@LAYER_CHECKS
def what_was_fitted_can_be_handed_on(subject: Subject) -> None:
    """`fitted_state` holds all that a fit has made: another layer on the same model that takes it predicts the same."""
    fresh = subject.make(subject.training)
    fresh.load_fitted(subject.method.fitted_state())
    prediction = fresh.predict(subject.batch)
    require_equal(prediction.score, subject.prediction.score, "score")
    require_equal(prediction.energy_score, subject.prediction.energy_score, "energy_score")


@LAYER_CHECKS
def an_ensemble_below_it_is_refused(subject: Subject) -> None:
    def on_two(build_potential: BuildPotential) -> UQMethod:
        return subject.build(lambda members, heads: build_potential(2, heads))

    message = refusal(
        lambda: dataclasses.replace(subject, build=on_two).make(subject.training), "a model with two members"
    )
    require("needs a single model" in message, f"the message is: {message}")
