"""Masks of atoms by which force metrics are stratified; each mask is one call of `summary.force_summary`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqbench.metrics.kernels import finite

Masks = dict[str, NDArray[np.bool_]]


def by_element(numbers: ArrayLike, symbols: Sequence[str]) -> Masks:
    """One mask (N,) per element present, named ``element=C``.

    numbers (N,) atomic numbers; symbols: symbol at each atomic number, such as `ase.data.chemical_symbols`.
    """
    numbers = np.asarray(numbers)
    return {f"element={symbols[int(z)]}": numbers == z for z in np.unique(numbers)}


def by_force_magnitude(reference: ArrayLike, edges: Sequence[float]) -> Masks:
    """One mask (N,) per range of the reference force's norm, named ``force=0.5-1`` in eV/A; the last has no end.

    reference (N, 3) eV/A, never the predicted forces, which would select on the error; edges: ascending, from 0.
    Raises ValueError for other edges. Ranges may be empty.
    """
    norms = np.linalg.norm(finite("reference", reference), axis=1)
    edges = list(edges)
    if not edges or edges[0] != 0 or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"edges: expected ascending numbers that begin with 0, got {edges}")
    masks = {
        f"force={low:g}-{high:g}": (norms >= low) & (norms < high) for low, high in zip(edges, edges[1:], strict=False)
    }
    return masks | {f"force>={edges[-1]:g}": norms >= edges[-1]}
