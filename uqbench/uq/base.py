"""The contract of an uncertainty method: what it trains on, what it predicts."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from ase import units
from torch import Tensor, nn

from uqbench.data.graph import Batch
from uqbench.errors import ConfigError, DataError
from uqbench.families import FAMILIES, Family
from uqbench.models.potential import Output, Potential

# Losses are in kcal/mol and kcal/mol/Å, the study's units; everything else is in eV.
KCAL_PER_MOL = units.kcal / units.mol

BuildPotential = Callable[[int | None, Mapping[str, int]], Potential]
PointLoss = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says about a batch.

    Attributes:
        energy: (S,) eV, float64.
        forces: (N, 3) eV/Å.
        energy_variance: (S,) eV², or None where the method has none.
        force_variance: (N,) per Cartesian component, (eV/Å)², or None where the method has none.
        score: (N,) bigger = less sure, any unit; ranks atoms, never enters a likelihood uncalibrated.
        energy_score: (S,) the same for the energies of structures.
        stress: (S, 3, 3) eV/Å³, or None where it was not asked for; see `Output`.
    """

    energy: Tensor
    forces: Tensor
    energy_variance: Tensor | None
    force_variance: Tensor | None
    score: Tensor
    energy_score: Tensor
    stress: Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """Unreduced losses of a batch, so that any split over processes averages to the same number.

    Attributes:
        energy: ([M,] S) in kcal/mol or powers of it.
        forces: ([M,] N) in kcal/mol/Å or powers of it.
        energy_error: (S,) absolute error of the method's mean prediction, eV.
        force_error: (N,) absolute error of the same, averaged over components, eV/Å.
    """

    energy: Tensor
    forces: Tensor
    energy_error: Tensor
    force_error: Tensor


class UQMethod(nn.Module, abc.ABC):
    """A potential with uncertainties: a `Method`, which changes the training, or a `Layer` on a model that is there.

    All state that `predict` needs must be in the module's state dict.

    `score_scale` says what kind of number the scores are: `ratio`, positive with a natural zero, such as variances, or
    `log`, with an arbitrary zero, such as negative log densities. Attacks multiply scores with probabilities, which
    means something else for either. `informed` says whether they differ between structures at all. `family` is what
    reports compare methods by; every class declares its own.
    """

    potential: Potential
    family: ClassVar[Family]
    score_scale: ClassVar[Literal["ratio", "log"]] = "ratio"
    informed: ClassVar[bool] = True

    @abc.abstractmethod
    def predict(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Prediction:
        """Predict a batch, on request with stresses.

        With `create_graph`, differentiable by `batch.positions` where they require a gradient.
        """

    @property
    def n_models(self) -> int:
        """Independent potentials that one prediction evaluates."""
        return self.potential.members or 1


class Method(UQMethod):
    """Uncertainty that is trained with the potential.

    Built with `build_potential(members, heads)`, which makes a potential with that many members (None: a single
    model, no member axis) and further output channels per head. The training loop minimises `losses`.
    """

    def begin(self, n_train: int, seed: int) -> None:
        """Draw what the method needs to know of the training set before training starts; nothing by default."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Hear that epoch number `epoch` (from 0) of at most `epochs` begins; nothing by default.

        What follows may depend on these two numbers only, so that an interrupted training resumes exactly, and may
        change the losses in training mode only, so that the validation losses of all epochs can be compared.
        """

    @abc.abstractmethod
    def losses(self, batch: Batch, point_loss: PointLoss) -> Losses:
        """Return the losses of a batch; `point_loss` maps force residuals (..., N, 3) in kcal/mol/Å to (..., N)."""


def require_family(method: type[UQMethod]) -> Family:
    """Return the family that a class of methods declares; raises ConfigError where it declares none."""
    family = getattr(method, "family", None)
    if family not in FAMILIES:
        raise ConfigError(f"uq: {method.__name__}.family is {family!r}; a method declares one of {', '.join(FAMILIES)}")
    return family


def residuals(output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return prediction minus label for energies ([M,] S) and forces ([M,] N, 3), in kcal/mol and kcal/mol/Å.

    Raises DataError for a batch without labels.
    """
    if batch.energies is None or batch.forces is None:
        raise DataError("a loss needs frames with energies and forces, this batch has no labels")
    return (
        (output.energy - batch.energies).to(output.forces.dtype) / KCAL_PER_MOL,
        (output.forces - batch.forces) / KCAL_PER_MOL,
    )


def absolute_errors(energy: Tensor, forces: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the detached absolute errors of energies (S,) in eV and of forces (N,) in eV/Å, mean over components."""
    return (energy.detach() - batch.energies).abs(), (forces.detach() - batch.forces).abs().mean(-1)


def mean_over_atoms(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of per-atom values (N,) over each structure, (S,)."""
    sums = values.new_zeros(len(batch)).index_add(0, batch.system, values)
    return sums / batch.n_atoms


def force_trace_variance(forces: Tensor, ddof: int) -> Tensor:
    """Return the variance of force vectors over members per component, (M, N, 3) -> (N,).

    A third of the trace of the covariance: unlike the norm of the three variances it does not change under rotation.
    """
    return torch.var(forces, dim=0, correction=ddof).mean(-1)
