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
    from uqbench.report import write_report
    from uqbench.text import printable

    for line in write_report(cfg.runs, against=cfg.against, units=cfg.units, output=cfg.output):
        print(printable(line))
