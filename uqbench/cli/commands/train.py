"""Train one model with its uncertainties, then score it on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.runs.run_dir import Run


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    evaluations: dict[str, dict[str, Any] | None]


def run(cfg: DictConfig) -> None:
    """Bring the run of `cfg` and its further evaluations to their end, and print their metric tables."""
    from uqbench.runs.experiment import Experiment
    from uqbench.runs.metrics_table import choices, show

    experiment = Experiment(cfg, choices())
    trained = experiment.train()
    show(trained)
    for name, wanted in experiment.evaluations(trained.read_json("splits.json")).items():
        show(experiment.evaluate(name, wanted, trained))


def show_done(run: Run, cfg: DictConfig) -> bool:
    """Print the metric table of a finished training; False where there is more to do."""
    from uqbench.runs.experiment import complete
    from uqbench.runs.metrics_table import show

    if complete(run, cfg):
        show(run)
        return True
    return False
