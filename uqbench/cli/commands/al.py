"""Active learning: train, propose, label, retrain, generation after generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    evaluations: dict[str, dict[str, Any] | None]


def run(cfg: DictConfig) -> None:
    """Bring the run of `cfg` to its end, from wherever it stands, and print a table of its generations.

    Every generation is a run directory of its own below it, which `uqbench evaluate` and `uqbench.load` take.
    """
    from uqbench.active.learning import learn
    from uqbench.report.render.terminal import show
    from uqbench.runs.metrics_table import choices

    show(learn(cfg, choices()))
