"""The mixture's density against scikit-learn, its fit, and its way through checkpoints."""

import numpy as np
import pytest
import torch
from helpers import graphs_of, small_method
from sklearn.mixture import GaussianMixture

from uqbench.errors import CheckpointError, TrainingError
from uqbench.seeding import derive
from uqbench.uq import gmm
from uqbench.uq.gmm import Mixtures

pytestmark = pytest.mark.numerics


def method_of(structures, *, fit=True, seed=0, **changes):
    changes = {f"uq.{key}": value for key, value in changes.items()}
    method = small_method(structures, "painn_small", "gmm", **changes).eval()
    if fit:
        method.fit(structures, batch_size=16, seed=seed)
    return method


def latents_of(method, structures):
    graphs = graphs_of(structures)
    batch = graphs.batch(range(len(graphs)))
    return method.potential(batch).latents.numpy(), batch


def sklearn_fit(latents, k, group=0, seed=0):
    """What the YAML asks for, and its stream."""
    state = derive(seed, "gmm", group, k) % 2**32
    return GaussianMixture(k, random_state=state, reg_covar=1e-6, n_init=1, max_iter=200, tol=1e-3).fit(latents)


def test_score_is_that_of_scikit_learn(ethanol):
    train, test = ethanol[:40], ethanol[40:]
    method = method_of(train, components=3)
    reference = sklearn_fit(latents_of(method, train)[0], 3)
    latents, batch = latents_of(method, test)
    prediction = method.predict(batch)
    expected = -reference.score_samples(latents)
    np.testing.assert_allclose(prediction.score, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(prediction.energy_score, expected.reshape(-1, 9).mean(1), rtol=1e-10)
    assert prediction.force_variance is None and prediction.energy_variance is None


def test_every_element_has_its_own_mixture(ethanol):
    method = method_of(ethanol, per_element=True, components=2)
    latents, batch = latents_of(method, ethanol)
    score, numbers = method.predict(batch).score.numpy(), batch.numbers.numpy()
    for group, element in enumerate((1, 6, 8)):
        own = numbers == element
        reference = sklearn_fit(latents[own], 2, group)
        np.testing.assert_allclose(score[own], -reference.score_samples(latents[own]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("true", [1, 3])
def test_the_information_criterion_finds_the_number_of_components(ethanol, true):
    method = method_of(ethanol, fit=False, components=[1, 2, 3, 5])
    generator = np.random.default_rng(0)
    centres = 20 * generator.normal(size=(true, 4))
    points = centres[generator.integers(true, size=600)] + generator.normal(size=(600, 4))
    assert method.fit_mixture(points, 0, seed=0).n_components == true


@pytest.fixture
def ragged():
    """Mixtures of 1 and 3 components in 4 dimensions, as scikit-learn objects and as ours, and points to score."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(200, 4)) @ generator.normal(size=(4, 4))
    fitted = [GaussianMixture(k, random_state=0).fit(points) for k in (1, 3)]
    ours = Mixtures(2, 4)
    ours.take_mixtures(fitted)
    return fitted, ours, points


def test_groups_may_differ_in_their_number_of_components(ragged):
    fitted, ours, points = ragged
    group = np.arange(len(points)) % 2
    expected = np.where(group == 0, *(mixture.score_samples(points) for mixture in fitted))
    x = torch.tensor(points, requires_grad=True)
    found = ours(x, torch.tensor(group))
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().min() > 0


def test_evaluation_in_pieces_is_the_same(ragged, monkeypatch):
    _, ours, points = ragged
    x, group = torch.tensor(points), torch.arange(len(points)) % 2
    whole = ours(x, group)
    monkeypatch.setattr(gmm, "CHUNK", 7 * 3 * 4)
    torch.testing.assert_close(ours(x, group), whole, rtol=1e-13, atol=1e-13)


def test_blocks_of_features_give_the_density_and_its_derivatives(ragged, monkeypatch):
    """Second derivatives too, which attacks on forces need; one group has no atoms, one block a single feature."""
    fitted, _, points = ragged
    monkeypatch.setattr(gmm, "BLOCK", 3)
    ours = Mixtures(2, 4)
    ours.take_mixtures(fitted)
    x, group = torch.tensor(points, requires_grad=True), torch.ones(len(points), dtype=torch.int64)
    np.testing.assert_allclose(ours(x, group).detach(), fitted[1].score_samples(points), rtol=1e-12)
    few = torch.cat([x[:3].detach(), ours.means[1]]).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: ours(x, group[: len(few)]), few)
    assert torch.autograd.gradgradcheck(lambda x: ours(x, group[: len(few)]), few)


def test_far_points_neither_overflow_nor_tie(ragged):
    _, ours, points = ragged
    x = torch.tensor(points[:1]) * torch.tensor([[1e3], [1e6]], dtype=torch.float64)
    near, far = -ours(x, torch.ones(2, dtype=torch.int64))
    assert torch.isfinite(far) and far > 1e5 * near > 0


def test_the_density_stays_in_double_precision(ethanol):
    """Latents are nearly collinear: their covariances do not survive single precision."""
    method = method_of(ethanol)
    before = {name: value.clone() for name, value in method.mixtures.state_dict().items()}
    method.to(torch.float32)
    assert method.potential.scale.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in method.mixtures.state_dict().items())
    assert all(value.dtype == torch.float64 for value in before.values())


@pytest.mark.parametrize("per_element", [False, True])
def test_a_checkpoint_brings_its_number_of_components(ethanol, per_element):
    method = method_of(ethanol, components=3, per_element=per_element)
    fresh = method_of(ethanol, fit=False, components=[1, 3], per_element=per_element)
    fresh.load_state_dict(method.state_dict())
    batch = latents_of(method, ethanol[:3])[1]
    assert torch.equal(fresh.predict(batch).score, method.predict(batch).score)
    # Back to the state before the fit, as when a training resumes.
    fresh.load_state_dict(method_of(ethanol, fit=False, per_element=per_element).state_dict())
    assert fresh.mixtures.means.shape[1] == 0
    other = method_of(ethanol, fit=False, per_element=not per_element)
    with pytest.raises(RuntimeError, match="mixtures.means"):
        other.load_state_dict(method.state_dict())


def test_without_a_fit_there_is_no_score(ethanol):
    with pytest.raises(CheckpointError, match="no mixture has been fitted"):
        method_of(ethanol, fit=False).predict(latents_of(method_of(ethanol, fit=False), ethanol[:1])[1])


def test_the_fit_depends_on_the_seed_alone(ethanol):
    first, again, other = (method_of(ethanol, components=5, seed=seed).mixtures.means for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape == other.shape and not torch.allclose(first, other)


def test_a_fit_that_fails_says_what_to_do(ethanol):
    with pytest.raises(TrainingError, match="600 components .* 540 atoms .* lower uq.components"):
        method_of(ethanol, components=600)
    broken = method_of(ethanol, fit=False)
    with torch.no_grad():
        next(broken.potential.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        broken.fit(ethanol[:5], batch_size=5, seed=0)
