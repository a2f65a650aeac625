"""The Gaussian likelihood against scipy, beta-NLL, and the warm-up."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import graphs_of, short_training, small_method
from scipy import stats

from uqbench.errors import TrainingError
from uqbench.runs.run_dir import load_checkpoint
from uqbench.training.loop import POINT_LOSSES, train
from uqbench.uq.base import KCAL_PER_MOL
from uqbench.uq.likelihoods import HEAD, gaussian_nll

pytestmark = pytest.mark.numerics

LIKELIHOODS = ("vector", "norm")


def mve(structures, **changes):
    return small_method(structures, "painn_small", "mve", **{f"uq.{key}": value for key, value in changes.items()})


def scipy_nll(residual, variance, likelihood):
    """Per atom, from scipy's densities; residual (N, 3), variance (N,) per component in the same units."""
    if likelihood == "vector":
        pairs = zip(residual, variance, strict=True)
        return [-stats.multivariate_normal(np.zeros(3), v * np.eye(3)).logpdf(error) for error, v in pairs]
    return -stats.norm(scale=np.sqrt(3 * variance)).logpdf(np.linalg.norm(residual, axis=1))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihood_is_that_of_scipy(likelihood):
    generator = np.random.default_rng(0)
    residual, variance = 3 * generator.normal(size=(50, 3)), np.exp(4 * generator.normal(size=50))
    found = gaussian_nll(torch.tensor(residual), torch.tensor(variance), likelihood)
    np.testing.assert_allclose(found, scipy_nll(residual, variance, likelihood), rtol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_both_likelihoods_want_the_mean_squared_component(likelihood):
    """A constant wrong by a factor of three between the two would go unseen in every ranking."""
    residual = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    best = (residual.square().sum(-1) / 3).requires_grad_(True)
    (slope,) = torch.autograd.grad(gaussian_nll(residual, best, likelihood).sum(), best)
    assert abs(float(slope)) < 1e-12
    for factor in (0.8, 1.25):
        assert gaussian_nll(residual, factor * best, likelihood) > gaussian_nll(residual, best, likelihood)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_loss_judges_the_variance_that_is_reported(ethanol, likelihood):
    """From the prediction, in eV/Å, scipy finds the very loss that training minimises, in kcal/mol/Å."""
    method = mve(ethanol, likelihood=likelihood).eval()
    batch = graphs_of(ethanol).batch([0, 20, 40])
    prediction = method.predict(batch)
    residual = (prediction.forces - batch.forces).numpy() / KCAL_PER_MOL
    variance = prediction.force_variance.numpy() / KCAL_PER_MOL**2
    losses = method.losses(batch, POINT_LOSSES["norm"])
    np.testing.assert_allclose(losses.forces.detach(), scipy_nll(residual, variance, likelihood), rtol=1e-9)
    energy = (prediction.energy - batch.energies).abs() / KCAL_PER_MOL
    torch.testing.assert_close(losses.energy.detach(), energy)
    assert prediction.energy_variance is None
    np.testing.assert_allclose(prediction.energy_score, prediction.score.reshape(3, 9).mean(1))


def test_the_variance_never_falls_below_its_floor(ethanol):
    method = mve(ethanol, floor=1e-3)
    lowest = method.variance(torch.tensor([[-1e4], [0.0]], dtype=torch.float64)) / method.potential.scale.square()
    np.testing.assert_allclose(lowest.numpy(), [1e-3, np.log(2) + 1e-3], rtol=1e-12)


def test_beta_gives_the_mean_the_gradient_of_a_squared_error(ethanol):
    residual = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = torch.linspace(-3, 3, 40, dtype=torch.float64).unsqueeze(-1)

    def slope(beta, training=True):
        method = mve(ethanol, beta=beta).train(training)
        force = residual.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(method.negative_log_likelihood(raw, force).sum(), force)
        return gradient, (method.variance(raw) / KCAL_PER_MOL**2).unsqueeze(-1)

    for beta in (0.0, 0.5, 1.0):
        gradient, variance = slope(beta)
        torch.testing.assert_close(gradient, residual * variance.detach() ** (beta - 1))
    # The weight is a constant: the variance keeps the minimum of the likelihood.
    head = raw.clone().requires_grad_(True)
    method = mve(ethanol, beta=0.5).train()
    (weighted,) = torch.autograd.grad(method.negative_log_likelihood(head, residual).sum(), head)
    (plain,) = torch.autograd.grad(mve(ethanol).negative_log_likelihood(head, residual).sum(), head)
    weights = method.variance(raw).sqrt() / KCAL_PER_MOL
    torch.testing.assert_close(weighted, plain * weights.detach().unsqueeze(-1))
    # The validation loss stays the likelihood, whatever the weights.
    torch.testing.assert_close(slope(1.0, training=False)[0], slope(0.0)[0])


def gradients(method, batch):
    losses = method.losses(batch, POINT_LOSSES["norm"])
    method.zero_grad()
    (losses.energy.sum() + losses.forces.sum()).backward()
    return {name: p.grad.clone() for name, p in method.potential.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("uq", ["mve", "evidential"])
def test_the_mean_comes_first_and_the_variance_later(ethanol, uq):
    """In the warm-up the potential feels the point loss alone, and the head its likelihood alone."""
    batch = graphs_of(ethanol).batch([0, 20, 40])
    method = small_method(ethanol, "painn_small", uq, **{"uq.warmup": 0.5}).train()
    plain = gradients(small_method(ethanol, "painn_small", "deterministic").train(), batch)
    method.begin_epoch(4, 10)
    warming = gradients(method, batch)
    for name, gradient in plain.items():
        torch.testing.assert_close(warming[name], gradient, rtol=1e-9, atol=1e-12)
    method.begin_epoch(5, 10)
    later = gradients(method, batch)
    assert any(not torch.allclose(later[name], plain[name]) for name in plain)
    heads = [name for name in later if name.startswith(f"heads.{HEAD}")]
    assert heads and all(warming[name].abs().sum() > 0 for name in heads)
    for name in heads:  # which sees the same errors before and after
        torch.testing.assert_close(warming[name], later[name])


def test_the_warm_up_does_not_touch_the_validation_loss(ethanol):
    batch = graphs_of(ethanol).batch([0, 20])
    method = mve(ethanol, warmup=1.0).eval()
    method.begin_epoch(0, 10)
    warming = method.losses(batch, POINT_LOSSES["norm"]).forces
    torch.testing.assert_close(warming, mve(ethanol).eval().losses(batch, POINT_LOSSES["norm"]).forces)


def run(structures, folder, uq="mve", epochs=4, **changes):
    folder.mkdir(exist_ok=True)
    method = small_method(structures, "painn_small", uq, **{f"uq.{key}": value for key, value in changes.items()})
    settings = short_training(precision="float64", epochs=epochs, gradient_clip=None)
    train(method, structures[:24], structures[24:36], settings, 0, folder)
    return load_checkpoint(folder / "last.pt")["model"]


def test_the_loop_warms_up_and_resumes_to_the_same_bits(ethanol, tmp_path, monkeypatch):
    whole = run(ethanol, tmp_path / "whole", warmup=0.5)
    cold = run(ethanol, tmp_path / "cold", warmup=0.0)
    assert any(not torch.equal(whole[name], cold[name]) for name in whole)

    from uqbench.training import loop

    original, seen = loop.validate, []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == 2:  # within the warm-up, so that the second half has to find its end
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(ethanol, tmp_path / "cut", warmup=0.5)
    monkeypatch.undo()
    resumed = run(ethanol, tmp_path / "cut", warmup=0.5)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole/history.csv").read_bytes() == (tmp_path / "cut/history.csv").read_bytes()


def test_a_warm_up_to_the_end_trains_the_deterministic_model(ethanol, tmp_path):
    plain, warm = run(ethanol, tmp_path / "plain", "deterministic"), run(ethanol, tmp_path / "warm", warmup=1.0)
    for name in plain:
        torch.testing.assert_close(warm[name], plain[name], rtol=1e-9, atol=1e-12)
    history = pd.read_csv(tmp_path / "warm" / "history.csv")
    # Without learning the same frames keep their loss, to rounding.
    assert history.train_loss.iloc[-1] < 0.99 * history.train_loss.iloc[0], "the head learns as well"


@pytest.mark.parametrize("uq", ["mve", "evidential"])
def test_a_head_that_is_not_finite_stops_the_training(ethanol, tmp_path, uq):
    method = small_method(ethanol, "painn_small", uq)
    with torch.no_grad():
        method.potential.heads[HEAD].layers[-1].bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="diverged in epoch 1: the loss is nan"):
        train(method, ethanol[:24], ethanol[24:36], short_training(precision="float64"), 0, tmp_path)
