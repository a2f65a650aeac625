"""The contract of an evaluation: what is measured of a trained model on a split."""

from __future__ import annotations

import abc
from typing import Any

from uqbench.data.structures import Structures
from uqbench.inference.trained_model import TrainedModel
from uqbench.runs.run_dir import RunDir

Rows = list[dict[str, Any]]


class Evaluation(abc.ABC):
    """A kind of evaluation, one for each conf/evaluation/*.yaml."""

    @abc.abstractmethod
    def evaluate(self, run: RunDir, trained: TrainedModel, structures: Structures, *, split: str, title: str) -> Rows:
        """Evaluate a trained method on the frames of a split, and return metric rows.

        Everything else, such as predictions, trajectories and figures, is left in the run. title names run and split.
        """


def cost_rows(**costs: tuple[float, str]) -> Rows:
    """Return one metric row per cost, given as name=(value, unit)."""
    return [
        {"target": "cost", "population": "run", "metric": name, "value": value, "unit": unit}
        | {"n": 1, "ci_low": None, "ci_high": None}
        for name, (value, unit) in costs.items()
    ]
