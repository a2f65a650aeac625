"""What an adversarial attack climbs: a structure's uncertainty times its Boltzmann probability, as a logarithm."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from uqbench.active.acquisition.base import compositions
from uqbench.data.graph import Batch, GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError, TrainingError
from uqbench.md.state import State
from uqbench.uq.base import KCAL_PER_MOL, Prediction, UQMethod, mean_over_atoms

Uncertainty = Literal["mean", "max", "energy"]
ScoreScale = Literal["declared", "ratio", "log"]


@dataclasses.dataclass(frozen=True)
class Boltzmann:
    """p(x) = exp(-E(x) / (n_atoms kT)) / Z, with Z the sum of the same over the training frames.

    The sum runs over the training frames of the same composition: the zero of energy depends on the composition, and
    only differences within one mean anything. For a data set of one molecule these are all frames. Source:
    Schwalbe-Koda, Tan, Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021), with the energy per atom (SCIENCE section 7).

    Attributes:
        kT: eV per atom.
        log_partition: ln Z by composition.
    """

    kT: float
    log_partition: dict[bytes, float]

    @classmethod
    def fit(cls, training: Structures, kT: float) -> Boltzmann:
        """Take Z from the labels of the training frames; kT in kcal/mol per atom."""
        kT = kT * KCAL_PER_MOL
        exponents: dict[bytes, list[float]] = {}
        for key, exponent in zip(compositions(training), -training.energies / training.n_atoms / kT, strict=True):
            exponents.setdefault(key, []).append(exponent)
        return cls(kT, {key: float(logsumexp(values)) for key, values in exponents.items()})

    def log_partition_of(self, structures: Structures) -> NDArray[np.float64]:
        """Return ln Z for each structure, (S,); raises DataError for a composition that was not trained on."""
        keys = compositions(structures)
        if not self.log_partition.keys() >= set(keys):
            raise DataError(f"{structures.origin}: holds a composition that no training frame has")
        return np.array([self.log_partition[key] for key in keys])

    def log_probability(self, energy: Tensor, n_atoms: Tensor, log_partition: Tensor) -> Tensor:
        """Return ln p (S,) from energies in eV, atom counts and ln Z, each (S,)."""
        return -(energy / n_atoms) / self.kT - log_partition  # float64 from the first step on


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectiveValues:
    """The objective for a batch of structures and its parts, each (S,) in float64.

    Attributes:
        score: U, in the method's unit.
        energy: eV.
        log_probability: ln p.
        objective: what is maximised.
    """

    score: Tensor
    energy: Tensor
    log_probability: Tensor
    objective: Tensor


def structure_score(prediction: Prediction, batch: Batch | State, uncertainty: Uncertainty) -> Tensor:
    """Reduce a prediction of a batch, or of replicas in a simulation, to one uncertainty per structure, (S,) float64.

    `mean` and `max`: of the score of its atoms; `energy`: the method's own score of the energy.
    """
    if uncertainty == "energy":
        return prediction.energy_score.double()
    score = prediction.score.double()
    if uncertainty == "mean":
        return mean_over_atoms(score, batch)
    return score.new_full((len(batch),), -torch.inf).scatter_reduce(0, batch.system, score, "amax")


def log_score(score: Tensor, scale: Literal["ratio", "log"], zero: float) -> Tensor:
    """Return what stands for ln U in the objective, (S,).

    `ratio`, for scores with a natural zero and an arbitrary unit, such as variances: ln U, so that the objective is
    ln(U p), the published one. Another unit adds a constant and leaves the maximum where it is.
    `log`, for scores with a natural unit (nats) and an arbitrary zero, such as negative log densities, where U p would
    grow with the energy as long as U < 0, and its maximum move with the unit of the latents: U is counted from `zero`,
    the mean of the training structures, and kept positive, ln softplus(U - zero). Far from the training set this is
    ln((U - zero) p), the published objective again; within it, U - zero + ln p. (U itself in place of its logarithm
    would be invariant as well, but it is quadratic in the latents and overruns p: attacks ended in overlapping atoms.)
    """
    return score.log() if scale == "ratio" else torch.nn.functional.softplus(score - zero).log()


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """ln U + ln p of structures.

    Attributes:
        boltzmann: gives ln p.
        uncertainty: see `structure_score`.
        scale: see `log_score`.
        zero: of the scale `log`, in the score's unit.
    """

    boltzmann: Boltzmann
    uncertainty: Uncertainty
    scale: Literal["ratio", "log"]
    zero: float

    @classmethod
    def fit(
        cls,
        method: UQMethod,
        training: Structures,
        *,
        kT: float,
        uncertainty: Uncertainty,
        score_scale: ScoreScale,
        batch_size: int,
    ) -> Objective:
        """Take Z and the zero of the scores from the training frames; kT in kcal/mol per atom.

        The scale `declared` is what the method says of its scores. Raises TrainingError when the method gives a
        training frame no finite score.
        """
        scale = method.score_scale if score_scale == "declared" else score_scale
        zero = 0.0
        if scale == "log":
            zero = float(score_and_energy(method, training, uncertainty, batch_size)[0].mean())
            if not np.isfinite(zero):
                raise TrainingError(f"the model's scores are not finite on its own training frames ({training.origin})")
        return cls(Boltzmann.fit(training, kT), uncertainty, scale, zero)

    def evaluate(self, method: UQMethod, batch: Batch, log_partition: Tensor) -> ObjectiveValues:
        """Evaluate a batch with its ln Z (S,); differentiable where `batch.positions` requires a gradient.

        Raises ConfigError when a score of scale `ratio` is negative: it has no logarithm.
        """
        prediction = method.predict(batch, create_graph=batch.positions.requires_grad)
        score = structure_score(prediction, batch, self.uncertainty)
        if self.scale == "ratio" and (score < 0).any():
            raise ConfigError(
                f"acquisition.score_scale: scores of {type(method).__name__} fall to {float(score.detach().min()):.3g},"
                " so U p has no logarithm; choose log"
            )
        log_probability = self.boltzmann.log_probability(prediction.energy, batch.n_atoms, log_partition)
        objective = log_score(score, self.scale, self.zero) + log_probability
        return ObjectiveValues(score, prediction.energy, log_probability, objective)


def graphs_for(method: UQMethod, structures: Structures) -> GraphSet:
    """Return the structures as graphs in the method's precision and on its device."""
    scale = method.potential.scale
    return GraphSet(structures, method.potential.backbone.cutoff, dtype=scale.dtype, device=scale.device)


def score_and_energy(
    method: UQMethod, structures: Structures, uncertainty: Uncertainty, batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return score and predicted energy (eV) of structures, each (S,); NaN for both where one is not finite."""
    values = []
    for batch in graphs_for(method, structures).batches(batch_size):
        prediction = method.predict(batch)
        values.append(torch.stack([structure_score(prediction, batch, uncertainty), prediction.energy.double()]))
    table = torch.cat(values, dim=1).cpu().numpy()
    return tuple(np.where(np.isfinite(table).all(0), table, np.nan))
