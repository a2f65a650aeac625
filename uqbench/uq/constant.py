"""The same uncertainty for everything: the layer that every other one has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from uqbench.data.graph import Batch
from uqbench.models.potential import Output
from uqbench.uq.layer import Layer


class Constant(Layer):
    """A score of 1 for every atom and structure.

    It gets a unit by calibration alone: the calibrated likelihood is that of one variance for all atoms. Rankings are
    undefined.
    """

    family = "baseline"
    informed = False

    def score(self, output: Output, batch: Batch) -> Tensor:
        return torch.ones_like(output.forces[:, 0])
