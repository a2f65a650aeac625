"""The metric table of one run: written beside it, shown on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uqbench.runs.run_dir import Run, RunDir
from uqbench.runs.tables import READERS, metric_frame, render
from uqbench.text import printable

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


def choices(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the option that was chosen of each group of the config, for run.json; reports name runs by them.

    source: choices of the run whose model is used, where that is another one; they hold where nothing was chosen.
    Empty without Hydra, as when a program calls a command.
    """
    from hydra.core.hydra_config import HydraConfig

    runtime = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
    chosen = {str(group): str(option) for group, option in runtime.items() if option and not group.startswith("hydra/")}
    return {**(source or {}), **chosen}


def title_of(labels: Mapping[str, Any], split: str) -> str:
    """Name a run and a split in one line, for its figures; labels as in `write_metrics`."""
    parts = [str(labels[name]) for name in ("dataset", "subset", "backbone", "uq") if labels[name]]
    return ", ".join([*parts, f"seed {labels['seed']}", split])


def show(run: Run) -> None:
    """Print the run's metric table, in the units of the program, and where the run is."""
    print(render(run.read_rows(METRICS, READERS)))
    print(f"run: {printable(run.path)}")
