"""Scores of a finished run on any frames: a run of its own, made once and then found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from uqbench import config
from uqbench.config import did_you_mean
from uqbench.errors import ConfigError, DataError
from uqbench.runs import metrics_table, run_dir
from uqbench.runs.run_dir import Run, RunDir

if TYPE_CHECKING:
    from uqbench.data.sources.base import Dataset
    from uqbench.data.structures import Structures
    from uqbench.inference.trained_model import TrainedModel

log = logging.getLogger(__name__)

ALL_FRAMES = "all"  # as a split: every frame of the data set


def evaluate(cfg: DictConfig, choices: Mapping[str, str]) -> Run:
    """Predict the chosen frames with the model and calibration of the run `cfg.run`, and return the run of the scores.

    Without a data set the run's own data and splits are used; they must be the ones that it was trained with.
    """
    source = run_dir.read(cfg.run)
    labels = dict(source.info["labels"])
    of_run = cfg.dataset is None
    if of_run:
        dataset = dataset_of_run(source, cfg.data_root)
    else:
        dataset = config.build(cfg.dataset)
        labels |= {"dataset": str(choices["dataset"]), "subset": dataset.subset}
    with open_run(identity_of_evaluation(cfg), "evaluate", labels) as run:
        if not run.done:
            config.require_slots(source.config)  # before anything more of a run that may come from anybody is built
            run.update(choices={**source.info.get("choices", {}), **choices})
            _evaluate_source(run, cfg, source, dataset, labels, of_run)
    return run


def identity_of_evaluation(cfg: DictConfig) -> DictConfig:
    """Return what the run of an evaluation is named by: the weights, not the path to them, decide what it is of.

    Raises UserError as `run_dir.read` does.
    """
    weights = run_dir.read(cfg.run).weights_sha256()
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"source_sha256": weights})


def _evaluate_source(
    run: RunDir, cfg: DictConfig, source: Run, dataset: Dataset, labels: dict[str, Any], of_run: bool
) -> None:
    from uqbench.inference.trained_model import TrainedModel
    from uqbench.models import compiled
    from uqbench.models.compiled.allocator import tune

    tune()
    run.update(kernels=compiled.use(cfg.kernels))
    device = device_of_run(source.config)
    chosen = _choose(source, dataset, cfg.split, of_run)
    run.update(device=device, labels=labels, data_sha256=chosen.sha256())
    run.update(source=str(source.path), source_settings=config.settings(source.config))
    trained = TrainedModel.from_run(source.path, device=device)
    run.update(family=trained.method.family)
    chosen = _of_known_elements(chosen, trained)
    title = metrics_table.title_of(labels, cfg.split)
    evaluate_frames(run, cfg, trained, chosen, labels, split=cfg.split, title=title, generation=None)


def evaluate_frames(
    run: RunDir,
    wanted: DictConfig,
    trained: TrainedModel,
    frames: Structures,
    labels: Mapping[str, Any],
    *,
    split: str,
    title: str,
    generation: int | None,
) -> None:
    """Evaluate frames as `wanted.evaluation` says, in an open run, and finish it."""
    evaluation = config.build(wanted.evaluation)
    with run.stage("evaluate"):
        rows = evaluation.evaluate(run, trained, frames, split=wanted.split, title=title)
    metrics_table.write_metrics(run, rows, command="evaluate", split=split, labels=labels, generation=generation)
    run.finish()


def open_run(cfg: DictConfig, command: str, labels: Mapping[str, Any]) -> RunDir:
    """Lock the run that a config and its labels name; see `RunDir.open`."""
    folders = {name: labels[name] for name in ("backbone", "uq", "seed")}
    folders["dataset"] = "-".join(filter(None, (labels["dataset"], labels["subset"])))
    return RunDir.open(root=cfg.outputs, command=command, config=cfg, **folders)


def dataset_of_run(source: Run, data_root: str | None) -> Dataset:
    """The data set that a run was trained on, wherever it is kept now."""
    with open_dict(source.config):
        source.config.data_root = data_root or source.config.get("data_root")
    return config.build(source.config.dataset)


def require_same_data(structures: Structures, source: Run) -> None:
    if structures.sha256() != source.info["data_sha256"]:
        raise DataError(
            f"{structures.origin} is not the data that {source.path} was trained with; name it: dataset=..."
        )


def _choose(source: Run, dataset: Dataset, split: str, of_run: bool) -> Structures:
    """Return the frames of a split, or of the whole data set."""
    import numpy as np

    structures = dataset.load()
    if of_run:
        require_same_data(structures, source)
    if split == ALL_FRAMES:
        return structures
    splits = source.read_json("splits.json") if of_run else dataset.split(structures)
    if split not in splits:
        raise ConfigError(
            f"split: no split '{split}'{did_you_mean(split, splits)} (choose {', '.join(splits)} or {ALL_FRAMES})"
        )
    if len(splits[split]) == 0:
        raise ConfigError(
            f"split: '{split}' of this data set is empty; take split={ALL_FRAMES} or another dataset size"
        )
    return structures[np.asarray(splits[split])]


def _of_known_elements(structures: Structures, trained: TrainedModel) -> Structures:
    """The frames that hold none but elements that the model has been trained on; the others are named in the log."""
    from ase.data import atomic_numbers

    from uqbench.data.checks import known_frames, listed, symbols

    elements = [atomic_numbers[symbol] for symbol in trained.elements]
    known = known_frames(structures, elements)
    if known.all():
        return structures
    strange = structures[~known]
    unknown = symbols(set(strange.elements) - set(elements))
    line = (
        f"{structures.origin}: {len(strange)} of {len(structures)} frames hold {unknown}, which the model does not know"
    )
    if not known.any():
        raise DataError(f"{line}; it knows {', '.join(trained.elements)}")
    log.warning("%s: left out (frames %s)", line, listed(strange.ids))
    return structures[known]


def device_of_run(cfg: DictConfig) -> str:
    from uqbench.training.loop import device_of

    return device_of(config.build(cfg.training))
