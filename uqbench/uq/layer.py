"""The contract of a layer: uncertainty that is fitted on top of a frozen potential, without training it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uqbench.data.graph import Batch, GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import CheckpointError, ConfigError
from uqbench.models.potential import Output, Potential
from uqbench.uq.base import Prediction, UQMethod, mean_over_atoms

MODEL = "potential."  # what stands before the names of the frozen potential's tensors in a layer's state


class Layer(UQMethod):
    """Scores of atoms by what a frozen potential makes of them.

    Energies and forces are those of the potential, so that the errors of all layers on one model are the same. A layer
    hands its potential up, keeps what it fits in `FittedBuffers`, and says how a score follows from an output.

    Args:
        potential: a single model, with its weights as they are to stay.
    """

    family = "layer"

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        if potential.members is not None:
            raise ConfigError(f"uq: a layer needs a single model, this one has {potential.members} members")
        self.potential = potential

    def fit(self, training: Structures, *, batch_size: int, seed: int) -> None:
        """Fit what the scores need to the training structures; nothing by default."""

    @abc.abstractmethod
    def score(self, output: Output, batch: Batch) -> Tensor:
        """Return the score (N,) of each atom, differentiable by what the output is differentiable by."""

    def energy_score(self, score: Tensor, batch: Batch) -> Tensor:
        """Return the score (S,) of each structure; by default the mean over its atoms."""
        return mean_over_atoms(score, batch)

    def predict(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Prediction:
        """See `UQMethod.predict`; raises CheckpointError as long as nothing has been fitted."""
        output = self.potential(batch, create_graph=create_graph, stress=stress)
        score = self.score(output, batch)
        return Prediction(
            energy=output.energy,
            forces=output.forces,
            energy_variance=None,
            force_variance=None,
            score=score,
            energy_score=self.energy_score(score, batch),
            stress=output.stress,
        )

    def training_latents(self, training: Structures, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the latents (N, F), float64 on the CPU, and the species (N,) of all training atoms."""
        scale = self.potential.scale
        graphs = GraphSet(training, self.potential.backbone.cutoff, dtype=scale.dtype, device=scale.device)
        batches = graphs.batches(batch_size)
        latents = [self.potential(batch).latents.double().cpu() for batch in batches]
        return torch.cat(latents), torch.cat([self.species(batch).cpu() for batch in batches])

    def species(self, batch: Batch) -> Tensor:
        """Return the index (N,) of each atom's element among those of the potential."""
        return self.potential.species_of_element[batch.numbers]

    def fitted_state(self) -> dict[str, Tensor]:
        """Return what was fitted, without the potential."""
        return {name: value.cpu() for name, value in self.state_dict().items() if not name.startswith(MODEL)}

    def load_fitted(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another layer of this kind has fitted; raises CheckpointError where it does not fit."""
        model = {name: value for name, value in self.state_dict().items() if name.startswith(MODEL)}
        try:
            self.load_state_dict({**model, **state})
        except (RuntimeError, AttributeError, TypeError) as error:
            raise CheckpointError(f"the layer does not fit its config: {' '.join(str(error).split())}") from error


class FittedBuffers(nn.Module):
    """Buffers whose size is found by fitting; they keep their precision whatever that of the model.

    An axis of length 0 is one whose length is not known before the fit: a checkpoint brings it. Others must agree.
    """

    def prepare(self) -> None:
        """Lay out what follows from the buffers; called whenever they have changed. Nothing by default."""

    def take(self, **values: Tensor) -> None:
        """Take over fitted values by name, in the precision of the buffers."""
        for name, value in values.items():
            self._shape_of(name)
            setattr(self, name, value.to(getattr(self, name)))
        self.prepare()

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a buffer as it was registered, with 0 where only a fit can say."""
        known = self.__dict__.setdefault("_registered", {})
        return known.setdefault(name, tuple(getattr(self, name).shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FittedBuffers:
        # They follow the model to another device but not to another precision: a covariance that is nearly singular,
        # as those of latents are, does not survive single precision.
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)
        self.prepare()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in list(self.named_buffers(recurse=False)):
            stored, registered = state_dict.get(prefix + name), self._shape_of(name)
            if stored is not None and stored.dim() == len(registered):
                shape = [n or given for n, given in zip(registered, stored.shape, strict=True)]
                setattr(self, name, buffer.new_zeros(shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.prepare()
