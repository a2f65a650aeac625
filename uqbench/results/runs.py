"""The metric table of one run: written beside it, shown on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uqbench.results.tables import metric_frame, render
from uqbench.rundir import Run, RunDir

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


def title_of(labels: Mapping[str, Any], split: str) -> str:
    """Name a run and a split in one line, for its figures; labels as in `write_metrics`."""
    place = [str(labels[name]) for name in ("dataset", "subset", "backbone", "uq") if labels[name]]
    return ", ".join([*place, f"seed {labels['seed']}", split])


def show(run: Run) -> None:
    """Print the run's metric table, in the units of the program, and where the run is."""
    print(render(run.read_csv(METRICS)))
    print(f"run: {run.path}")
