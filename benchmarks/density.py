"""Log densities of latents under a Gaussian mixture, in double precision."""

from __future__ import annotations

import functools

import numpy as np
import torch
from common import Race, Workloads
from sklearn.mixture import GaussianMixture

from uqbench.uq.gmm import Mixtures

POINTS = 100_000
SIZES = ((32, 2), (32, 50), (128, 10))  # features, components


def mixture(features: int, components: int, rng: np.random.Generator) -> GaussianMixture:
    """Return a mixture as if fitted, with random means and covariances."""
    mixture = GaussianMixture(components)
    roots = np.eye(features) + rng.normal(size=(components, features, features)) / np.sqrt(features)
    covariances = roots @ roots.transpose(0, 2, 1) + 1e-2 * np.eye(features)
    mixture.weights_ = np.full(components, 1 / components)
    mixture.means_ = rng.normal(size=(components, features))
    mixture.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(covariances)).transpose(0, 2, 1)
    return mixture


def race(features: int, components: int) -> Race:
    """Return the scoring of all points by us and by scikit-learn."""
    rng = np.random.default_rng(0)
    fitted, points = mixture(features, components, rng), rng.normal(size=(POINTS, features))
    ours = Mixtures(1, features)
    ours.take_mixtures([fitted])
    x, group = torch.tensor(points), torch.zeros(POINTS, dtype=torch.int64)
    # A triangular matrix per component times each point, then the squares.
    flops = POINTS * components * (features * (features + 1) + 2 * features)
    peer = functools.partial(fitted.score_samples, points)
    return Race(functools.partial(ours, x, group), peer, "scikit-learn", flops, torch.float64)


def workloads() -> Workloads:
    """Return the races by name."""
    return {
        f"GMM density, {POINTS} latents, d = {features}, k = {components}": lambda d=features, k=components: race(d, k)
        for features, components in SIZES
    }
