"""Compare finished runs: means over seeds, paired differences, figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    runs: str | list[str]
    against: str
    units: Literal["eV", "kcal/mol"]
    output: str


def run(cfg: DictConfig) -> None:
    """Read all runs at or below the folders `cfg.runs`, and write the report into `cfg.output`.

    Damaged and unfinished runs are left out and named. Raises DataError where no finished run is found.
    """
    from pathlib import Path

    from uqbench.report.collect import collect
    from uqbench.report.comparison import compare
    from uqbench.report.report import PAGE, write_report
    from uqbench.text import printable

    collected = collect([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs))
    comparison = compare(collected, against=cfg.against, units=cfg.units)
    folder = Path(cfg.output)
    write_report(folder, collected, comparison)
    for what, lines in (
        ("left out", collected.problems),
        ("damaged", comparison.problems),
        ("missing", comparison.gaps),
    ):
        for line in lines:
            print(f"{what}: {printable(line)}")
    print(f"{collected.rows['path'].nunique()} runs: {folder / PAGE}")
