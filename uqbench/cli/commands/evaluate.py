"""Score a finished run on any split of any data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uqbench.config import Skeleton as CommonSkeleton
from uqbench.runs.evaluation import evaluate
from uqbench.runs.evaluation import identity_of_evaluation as identity
from uqbench.runs.metrics_table import choices, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.runs.run_dir import Run

__all__ = ["Skeleton", "identity", "run", "show_done"]


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    run: str
    split: str


def run(cfg: DictConfig) -> None:
    """Score the chosen frames with a run's model and calibration, and print the metric table.

    `split=all` takes every frame of the data set. Without `dataset=` the run's own data and splits are used.
    """
    show(evaluate(cfg, choices()))


def show_done(run: Run, cfg: DictConfig) -> bool:
    """Print the metric table of a finished evaluation."""
    show(run)
    return True
