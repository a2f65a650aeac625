"""An oracle as ASE calculators: whichever image is asked first, all that have moved are labelled together."""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from uqbench.errors import UqbenchError
from uqbench.oracles.base import Failure, Oracle


class NoLabelError(UqbenchError):
    """A geometry that the oracle cannot label."""


class OracleCalculator(Calculator):
    """Energy (eV) and forces (eV/Å) of an oracle for one of several images that move together, such as a band's.

    Raises NoLabelError where the oracle fails for one of the images.
    """

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, oracle: Oracle, images: Sequence[Atoms]) -> None:
        super().__init__()
        self.oracle, self.images = oracle, images

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Label this image and all others that have moved, in one call of the oracle."""
        super().calculate(atoms, properties, system_changes)
        moved = [
            image
            for image in self.images
            if isinstance(image.calc, OracleCalculator)
            and image.calc is not self
            and image.calc.calculation_required(image, ["energy"])
        ]
        asked, *others = self.oracle.label([self.atoms, *moved]).outcomes
        for image, outcome in zip(moved, others, strict=True):
            if isinstance(outcome, Failure):  # raised when that image itself is asked
                continue
            image.calc.reset()
            image.calc.atoms = image.copy()
            image.calc._take(outcome)
        if isinstance(asked, Failure):
            raise NoLabelError(f"the oracle has no label for an image: {asked.reason}")
        self._take(asked)

    def _take(self, label) -> None:
        self.results = {"energy": label.energy, "free_energy": label.energy, "forces": label.forces}


def attach(oracle: Oracle, images: Sequence[Atoms]) -> None:
    """Give every image a calculator of its own that labels all of them together."""
    for image in images:
        image.calc = OracleCalculator(oracle, images)
