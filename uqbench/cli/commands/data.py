"""Fetch or generate a data set, check it, and print its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    figure: str | None


def run(cfg: DictConfig) -> None:
    """Load `cfg.dataset`, split it, and print what it holds; writes the caches and, if asked for, `cfg.figure`.

    Raises DataError for bad files, splits that do not fit, and a figure of frames that are not periodic.
    """
    from uqbench import config
    from uqbench.data.structures import check_splits
    from uqbench.figures.dataset import show

    dataset = config.build(cfg.dataset)
    structures = dataset.load()
    splits = dataset.split(structures)
    check_splits({name: frames for name, frames in splits.items() if len(frames)}, len(structures))
    show(structures, splits, dataset.subset, cfg.figure)
