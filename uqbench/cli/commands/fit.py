"""Fit an uncertainty layer on a finished run, then score it on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uqbench.config import Skeleton as CommonSkeleton
from uqbench.runs.experiment import fit
from uqbench.runs.experiment import identity_of_fit as identity
from uqbench.runs.metrics_table import choices, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.runs.run_dir import Run

__all__ = ["Skeleton", "identity", "run", "show_done"]


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    run: str


def run(cfg: DictConfig) -> None:
    """Fit the layer on the model of a run, with its data and seed, and print the metric table."""
    show(fit(cfg, choices()))


def show_done(run: Run, cfg: DictConfig) -> bool:
    """Print the metric table of a finished fit."""
    show(run)
    return True
