"""The metric table of one run: written beside it, shown on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from uqbench.results.tables import metric_frame, render
from uqbench.rundir import Run, RunDir

if TYPE_CHECKING:
    from uqbench.evaluation import Calibration, Predictions

METRICS = "metrics.csv"


def write_metrics(
    opened: RunDir,
    rows: Iterable[Mapping[str, Any]],
    *,
    command: str,
    split: str,
    labels: Mapping[str, Any],
    generation: int | None = None,
) -> None:
    """Write metric rows as metrics.csv; `labels` names dataset, subset, backbone, uq and seed of the run."""
    identity = {"run_id": opened.path.name, "command": command, "split": split, "generation": generation, **labels}
    opened.write_csv(METRICS, metric_frame({**identity, **row} for row in rows))


def write_figures(
    opened: RunDir,
    predictions: Predictions,
    calibration: Calibration,
    *,
    bins: int,
    split: str,
    labels: Mapping[str, Any],
) -> None:
    """Write the figures of some predictions beside the metrics; bins along the variance, labels as there."""
    from uqbench.results.figures import figures  # matplotlib is slow to import, and `show` does without

    place = [str(labels[name]) for name in ("dataset", "subset", "backbone", "uq") if labels[name]]
    title = ", ".join([*place, f"seed {labels['seed']}", split])
    for name, png in figures(predictions, calibration, title=title, bins=bins).items():
        opened.write_bytes(name, png)


def show(run: Run) -> None:
    """Print the run's metric table, in the units of the program, and where the run is."""
    print(render(run.read_csv(METRICS)))
    print(f"run: {run.path}")
