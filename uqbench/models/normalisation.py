"""Constants of the training set that bring a network's output to unit scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from uqbench.data.structures import Structures
from uqbench.errors import DataError


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Constants fitted on training labels that bring the network's output to unit scale.

    Attributes:
        elements: atomic numbers that the potential knows, ascending.
        references: energy of one atom of each element, eV.
        scale: eV; root mean square of the force components (times 1 Å).
    """

    elements: tuple[int, ...]
    references: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, structures: Structures) -> Normalisation:
        """Fit reference energies by least squares on the composition, and the scale from the forces.

        The minimum-norm solution is taken where compositions do not determine the references (a single molecule).
        Raises DataError for frames without labels, or without forces.
        """
        structures.require_labels()
        elements = structures.elements
        species = np.searchsorted(elements, structures.numbers)
        frame = np.repeat(np.arange(len(structures)), structures.n_atoms)
        composition = np.zeros((len(structures), len(elements)))
        np.add.at(composition, (frame, species), 1)
        references = np.linalg.lstsq(composition, structures.energies, rcond=None)[0]
        scale = float(np.sqrt(np.mean(structures.forces**2)))
        if not scale > 0:
            raise DataError(f"{structures.origin}: all training forces are zero, there is nothing to learn")
        return cls(tuple(elements), tuple(references.tolist()), scale)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Normalisation:
        """Take the constants from a potential's state dict; raises KeyError when it is not one."""
        elements = state["species_of_element"].ge(0).nonzero().flatten()
        order = state["species_of_element"][elements].argsort()
        return cls(tuple(elements[order].tolist()), tuple(state["references"].tolist()), float(state["scale"]))
