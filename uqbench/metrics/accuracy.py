"""Size of the errors, without regard to the uncertainties."""

import numpy as np
from numpy.typing import ArrayLike

from uqbench.metrics.kernels import Array, as_errors, weighted_mean


def mae(errors: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean absolute error over all components of all items.

    Population: items (force components of atoms, or energies of structures). errors (n,) or (n, D); weights (n,)
    multiplicities. Unit of the errors. Source: docs/metrics.md; the usual definition.

    Example:
        >>> from uqbench.metrics.accuracy import mae
        >>> mae([[3.0, 0.0, -3.0], [1.0, 4.0, 1.0]], weights=[2, 1])  # the first atom counts twice
        2.0
    """
    return weighted_mean(absolute_terms(as_errors(errors)[0]), weights)


def rmse(errors: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Root of the mean squared error over all components of all items.

    Population: items (force components of atoms, or energies of structures). errors (n,) or (n, D); weights (n,)
    multiplicities. Unit of the errors. Source: docs/metrics.md; the usual definition.
    """
    errors, _ = as_errors(errors)
    return float(np.sqrt(weighted_mean(squared_norm(errors), weights) / errors.shape[1]))


def per_atom(energy_errors: ArrayLike, n_atoms: ArrayLike) -> Array:
    """Energy errors per atom (S,) in eV/atom, to be passed to `mae` or `rmse`.

    Population: structures, each with weight one whatever its size. energy_errors (S,) eV, n_atoms (S,).
    Raises ValueError unless every structure has an atom. Source: docs/metrics.md.
    """
    errors, n_atoms = as_errors(energy_errors)[0][:, 0], np.asarray(n_atoms)
    if n_atoms.shape != errors.shape or np.any(n_atoms < 1):
        raise ValueError(f"n_atoms: expected {len(errors)} numbers >= 1, got shape {n_atoms.shape}")
    return errors / n_atoms


def absolute_terms(errors: Array) -> Array:
    """Mean absolute component of each item (n,) from errors (n, D)."""
    return np.abs(errors).mean(axis=1)


def squared_norm(errors: Array) -> Array:
    """Squared error e_i^2 = |dF_i|^2 of each item (n,) from errors (n, D)."""
    return np.einsum("nd,nd->n", errors, errors)
