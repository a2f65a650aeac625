"""The normal-inverse-gamma likelihood against scipy's Student-t, its variances, and lambda."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import graphs_of, short_training, small_method
from scipy import stats
from scipy.special import gammaln

from uqbench.training.loop import POINT_LOSSES, train
from uqbench.uq.base import KCAL_PER_MOL
from uqbench.uq.likelihoods import HEAD, log_gamma_half_step, nig_nll

pytestmark = pytest.mark.numerics


def evidential(structures, **changes):
    return small_method(
        structures, "painn_small", "evidential", **{f"uq.{key}": value for key, value in changes.items()}
    )


def student(nu, alpha, beta):
    return stats.t(df=2 * alpha, scale=np.sqrt(beta * (1 + nu) / (nu * alpha)))


@pytest.fixture
def parameters():
    """Errors (n,) and nu, alpha, beta (n,) over many decades."""
    generator = np.random.default_rng(0)
    error, nu, excess, beta = np.exp(3 * generator.normal(size=(4, 300)))
    return error * generator.choice([-1, 1], 300), nu, 1 + excess, beta


def test_likelihood_is_that_of_a_student_t(parameters):
    error, *others = parameters
    found = nig_nll(*map(torch.tensor, (error**2, *others)))
    np.testing.assert_allclose(found, -student(*others).logpdf(error), rtol=1e-9, atol=1e-9)


def test_likelihood_is_the_published_expression(parameters):
    error, nu, alpha, beta = parameters
    omega = 2 * beta * (1 + nu)
    expected = 0.5 * np.log(np.pi / nu) - alpha * np.log(omega) + (alpha + 0.5) * np.log(nu * error**2 + omega)
    expected += gammaln(alpha) - gammaln(alpha + 0.5)
    np.testing.assert_allclose(nig_nll(*map(torch.tensor, (error**2, nu, alpha, beta))), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("nu", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize("alpha", [1.000001, 29.9, 30.1, 1e4, 1e8])
def test_extreme_evidence_keeps_its_digits(nu, alpha, dtype, tolerance):
    """Differences of lgamma, or of alpha ln Omega, would leave nothing of the result in single precision."""
    beta, error = alpha * 0.7, 1.3 * np.sqrt(1 + 1 / nu)
    arguments = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (error**2, nu, alpha, beta)]
    loss = nig_nll(*arguments)
    reference = stats.norm(scale=np.sqrt(0.7 * (1 + 1 / nu))) if alpha > 1e7 else student(nu, alpha, beta)
    assert loss.item() == pytest.approx(-reference.logpdf(error), rel=tolerance, abs=max(tolerance, 1 / alpha**2))
    assert all(torch.isfinite(g) for g in torch.autograd.grad(loss, arguments))


@pytest.mark.parametrize("x", [1.0, 7.3, 29.99, 30.01, 35.0, 100.0])
def test_the_ratio_of_gamma_functions_is_exact_on_both_sides_of_the_series(x):
    expected = math.lgamma(x + 0.5) - math.lgamma(x)
    assert log_gamma_half_step(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(expected, abs=2e-13)


def test_variances_are_those_of_the_distribution(ethanol):
    """Epistemic: of the mean, itself a Student-t. Aleatoric: mean of an inverse gamma. Predictive: of the marginal."""
    method = evidential(ethanol)
    raw = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    nu, excess, beta = (x.numpy() for x in method.parameters_of(raw))
    found = {name: value.numpy() for name, value in method.variances(raw).items()}
    alpha = 1 + excess
    expected = {
        "epistemic": stats.t(df=2 * alpha, scale=np.sqrt(beta / (nu * alpha))).var(),
        "aleatoric": stats.invgamma(alpha, scale=beta).mean(),
        "predictive": student(nu, alpha, beta).var(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
    # A ratio of means, instead of the mean of ratios, is something else.
    assert (beta.mean() / excess.mean()) != pytest.approx(found["aleatoric"].mean(), rel=0.1)


@pytest.mark.parametrize("uncertainty", ["epistemic", "aleatoric", "predictive"])
def test_the_chosen_uncertainty_is_variance_and_score(ethanol, uncertainty):
    method = evidential(ethanol, uncertainty=uncertainty).eval()
    batch = graphs_of(ethanol[:2]).batch([0, 1])
    prediction = method.predict(batch)
    expected = method.variances(method.potential(batch).heads[HEAD])[uncertainty]
    torch.testing.assert_close(prediction.force_variance, expected)
    torch.testing.assert_close(prediction.score, expected)
    torch.testing.assert_close(prediction.energy_score, expected.reshape(2, 9).mean(1))


@pytest.mark.parametrize("likelihood", ["vector", "norm"])
@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_the_loss_is_the_students_in_kcal(ethanol, likelihood, weight):
    method = evidential(ethanol, likelihood=likelihood, regularisation=weight).eval()
    batch = graphs_of(ethanol).batch([0, 20, 40])
    output = method.potential(batch)
    nu, excess, beta = (x.numpy() for x in method.parameters_of(output.heads[HEAD]))
    error = np.abs((output.forces - batch.forces).numpy()) / KCAL_PER_MOL
    beta = beta / KCAL_PER_MOL**2
    if likelihood == "norm":
        error, beta = np.linalg.norm(error, axis=1, keepdims=True), 3 * beta
    nu, alpha, beta = nu[:, None], 1 + excess[:, None], beta[:, None]
    expected = (-student(nu, alpha, beta).logpdf(error) + weight * error * (2 * nu + alpha)).sum(1)
    found = method.losses(batch, POINT_LOSSES["norm"]).forces
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-9)


@pytest.mark.parametrize("likelihood", ["vector", "norm"])
def test_the_regulariser_takes_the_size_of_the_error(ethanol, likelihood):
    """A signed error would reward evidence for errors of one sign."""
    method = evidential(ethanol, likelihood=likelihood, regularisation=5.0)
    raw = torch.ones(3, 3, dtype=torch.float64)
    residual = torch.tensor([[1.0, 2.0, -3.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    loss = method.negative_log_likelihood(raw, residual)
    torch.testing.assert_close(method.negative_log_likelihood(raw, -residual), loss)
    assert loss[0] > loss[1] > loss[2]
    force = residual.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(method.negative_log_likelihood(raw, force).sum(), force)
    assert torch.isfinite(gradient).all()


def test_lambda_reaches_the_training(ethanol, tmp_path):
    """The study's parameter never reached its loss: here that of an epoch is linear in it, with the slope it must have.

    No step is long enough to change the weights, so that nothing depends on how a training goes.
    """
    losses = []
    for weight in (0.0, 0.2, 5.0):
        method = evidential(ethanol, regularisation=weight)
        folder = tmp_path / str(weight)
        folder.mkdir()
        settings = short_training(precision="float64", epochs=1, lr=1e-300, min_lr=0.0)
        train(method, ethanol[:30], ethanol[30:40], settings, 0, folder)
        losses.append(pd.read_csv(folder / "history.csv").train_loss.item())
    batch = graphs_of(ethanol[:30]).batch(range(30))
    output = method.potential(batch)
    nu, excess, _ = (x.unsqueeze(-1) for x in method.parameters_of(output.heads[HEAD]))
    error = (output.forces - batch.forces).abs() / KCAL_PER_MOL
    slope = float((error * (2 * nu + 1 + excess)).sum(-1).mean()) * settings.force_weight
    # Fabric hands the terms of each step on in single precision.
    rounding = 4 * float(np.finfo(np.float32).eps)
    assert (losses[1] - losses[0]) / 0.2 == pytest.approx(slope, rel=rounding)
    assert (losses[2] - losses[0]) / 5.0 == pytest.approx(slope, rel=rounding)


def test_infinite_parameters_do_not_pass_in_silence():
    one = torch.tensor(1.0, dtype=torch.float64)
    for bad in (float("nan"), float("inf")):
        wrong = torch.tensor(bad, dtype=torch.float64)
        assert not torch.isfinite(nig_nll(wrong, one, 2 * one, one))
        assert not torch.isfinite(nig_nll(one, one, 2 * one, wrong))
    assert torch.isnan(nig_nll(one, torch.tensor(torch.nan), 2 * one, one))
    assert torch.isnan(nig_nll(one, one, torch.tensor(torch.nan), one))
