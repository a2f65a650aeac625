"""Score a finished run on any split of any data."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from uqbench.config import Skeleton as CommonSkeleton
from uqbench.datasets import OUT_OF_DOMAIN

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.datasets.base import Dataset
    from uqbench.rundir import Run, RunDir
    from uqbench.structures import Structures

WHOLE = "all"
AUTO = "auto"


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    run: str
    split: str


def run(cfg: DictConfig) -> None:
    """Predict the chosen frames with a run's model and calibration, and print the metric table.

    `split=all` takes every frame of the data set. Without `dataset=` the run's own data and splits are used; they must
    be the ones that it was trained with.
    """
    from uqbench.results.runs import choices

    evaluate_run(cfg, choices())


def show_done(run: Run, cfg: DictConfig) -> bool:
    """Print the metric table of a finished evaluation."""
    from uqbench.results.runs import show

    show(run)
    return True


def identity(cfg: DictConfig) -> DictConfig:
    """Return what the run of an evaluation is named by: the weights, not the path to them, decide what it is of.

    Raises UserError as `rundir.read` does.
    """
    from omegaconf import OmegaConf

    from uqbench import rundir
    from uqbench.files import BEST

    weights = hashlib.sha256((rundir.read(cfg.run).path / BEST).read_bytes()).hexdigest()
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"source_sha256": weights})


def evaluate_also(run: RunDir, cfg: DictConfig) -> None:
    """Evaluate a finished training run as its `evaluations` say, each in a run as `uqbench evaluate run=...` makes it.

    cfg: of the training as asked for now; other evaluations than those of the first time train nothing anew.
    """
    from omegaconf import OmegaConf

    from uqbench.results.runs import choices

    for name, wanted in wanted_evaluations(cfg, run.read_json("splits.json")).items():
        common = {key: cfg[key] for key in ("seed", "outputs", "data_root", "kernels")}
        own = {"command": "evaluate", **common, "run": str(run.path), "dataset": None}
        own |= OmegaConf.to_container(wanted, resolve=True)
        option = choices().get(f"evaluation@evaluations.{name}.evaluation")
        evaluate_run(OmegaConf.create(own), {"evaluation": option} if option else {})


def wanted_evaluations(cfg: DictConfig, splits: Mapping[str, Collection]) -> dict[str, DictConfig]:
    """Return those of a config's `evaluations` that are not switched off, by name; none where it has no such key.

    splits: of the data; the split `auto` is `out_of_domain` where they have one, and switches off where not.
    """
    from omegaconf import OmegaConf

    auto = OUT_OF_DOMAIN if len(splits.get(OUT_OF_DOMAIN, ())) else None
    found = {}
    for name, one in (cfg.get("evaluations") or {}).items():
        split = None if one is None else auto if one.split == AUTO else one.split
        if split is not None:
            found[str(name)] = one if one.split == split else OmegaConf.merge(one, {"split": split})
    return found


def require_split(name: str, split: str, sizes: Mapping[str, Collection]) -> None:
    """Raise ConfigError, for the evaluation of a name, where a split is unknown or holds no frames."""
    from uqbench.config import did_you_mean
    from uqbench.errors import ConfigError

    if split not in sizes or not len(sizes[split]):
        raise ConfigError(
            f"evaluations.{name}.split: no frames in split '{split}'{did_you_mean(split, sizes)} "
            f"(choose {', '.join(known for known, frames in sizes.items() if len(frames))}; or leave it out with "
            f"evaluations.{name}=null)"
        )


def evaluate_run(cfg: DictConfig, chosen: Mapping[str, str]) -> None:
    """Evaluate as `run` does; chosen: the options of the config's groups, as `results.runs.choices` gives them."""
    from omegaconf import open_dict

    from uqbench import config, rundir
    from uqbench.results.runs import show

    source = rundir.read(cfg.run)
    labels = dict(source.info["labels"])
    own_data = cfg.dataset is None
    if own_data:
        with open_dict(source.config):
            source.config.data_root = cfg.data_root or source.config.data_root
        dataset = config.build(source.config.dataset)
    else:
        dataset = config.build(cfg.dataset)
        labels |= {"dataset": str(chosen["dataset"]), "subset": dataset.subset}
    place = labels | {"dataset": "-".join(filter(None, (labels["dataset"], labels["subset"])))}
    del place["subset"]
    with rundir.RunDir.open(root=cfg.outputs, command="evaluate", config=identity(cfg), **place) as opened:
        if not opened.done:
            opened.update(choices={**source.info.get("choices", {}), **chosen})
            _evaluate(opened, cfg, source, dataset, labels, own_data)
        show(opened)


def _evaluate(opened: RunDir, cfg: DictConfig, source: Run, dataset: Dataset, labels: dict, own_data: bool) -> None:
    from uqbench import config, kernels
    from uqbench.allocator import tune
    from uqbench.evaluation import Calibration, Trained
    from uqbench.model import load_method
    from uqbench.results.runs import title_of, write_metrics
    from uqbench.training import device_of

    tune()
    opened.update(kernels=kernels.use(cfg.kernels))
    evaluation = config.build(cfg.evaluation)
    device = device_of(config.build(source.config.training))
    chosen = _choose(source, dataset, cfg.split, own_data)
    opened.update(device=device, labels=labels, data_sha256=chosen.sha256())
    opened.update(source=str(source.path), source_settings=config.settings(source.config))
    trained = Trained(load_method(source), Calibration.load(source), device)
    opened.update(family=trained.method.family)
    with opened.stage("evaluate"):
        title = title_of(labels, cfg.split)
        rows = evaluation.evaluate(opened, trained, chosen, split=cfg.split, title=title)
    write_metrics(opened, rows, command="evaluate", split=cfg.split, labels=labels)
    opened.finish()


def _choose(source: Run, dataset: Dataset, split: str, own_data: bool) -> Structures:
    """Return the frames of a split, or of the whole data set."""
    import numpy as np

    from uqbench.config import did_you_mean
    from uqbench.errors import ConfigError, DataError

    structures = dataset.load()
    if own_data and structures.sha256() != source.info["data_sha256"]:
        raise DataError(
            f"{structures.origin} is not the data that {source.path} was trained with; name it: dataset=..."
        )
    if split == WHOLE:
        return structures
    splits = source.read_json("splits.json") if own_data else dataset.split(structures)
    if split not in splits:
        raise ConfigError(
            f"split: no split '{split}'{did_you_mean(split, splits)} (choose {', '.join(splits)} or {WHOLE})"
        )
    if len(splits[split]) == 0:
        raise ConfigError(f"split: '{split}' of this data set is empty; take split={WHOLE} or another dataset size")
    return structures[np.asarray(splits[split])]
