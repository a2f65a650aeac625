"""Train one model with its uncertainties, then score it on the test split."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.datasets.base import Dataset
    from uqbench.rundir import Run, RunDir
    from uqbench.structures import Splits, Structures

log = logging.getLogger(__name__)


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    evaluations: dict[str, dict[str, Any] | None]


def run(cfg: DictConfig) -> None:
    """Bring the run of `cfg` and its further evaluations to their end, and print their metric tables."""
    from hydra.core.hydra_config import HydraConfig

    from uqbench import config, rundir
    from uqbench.commands.evaluate import evaluate_also

    choices = HydraConfig.get().runtime.choices
    dataset = config.build(cfg.dataset)
    labels = {
        "dataset": str(choices.dataset),
        "subset": dataset.subset,
        "backbone": str(choices.backbone),
        "uq": str(choices.uq),
        "seed": cfg.seed,
    }
    place = labels | {"dataset": "-".join(filter(None, (labels["dataset"], labels["subset"])))}
    del place["subset"]
    with rundir.RunDir.open(root=cfg.outputs, command="train", config=cfg, **place) as opened:
        if not opened.done:
            train_run(opened, cfg, dataset, labels)
        from uqbench.results.runs import show

        show(opened)
        evaluate_also(opened, cfg)


def show_done(run: Run, cfg: DictConfig) -> bool:
    """Print the metric table of a finished training; False where evaluations are to follow."""
    from uqbench.commands.evaluate import wanted_evaluations
    from uqbench.results.runs import show

    if wanted_evaluations(cfg, run.read_json("splits.json")):
        return False
    show(run)
    return True


def train_run(
    opened: RunDir, cfg: DictConfig, dataset: Dataset, labels: dict[str, Any], generation: int | None = None
) -> None:
    """Train, fit, calibrate and score the model of `cfg` in an open run, and finish it."""
    from uqbench import config, kernels
    from uqbench.allocator import tune
    from uqbench.checkpoints import BEST, load_best, seconds_trained
    from uqbench.commands.evaluate import require_split, wanted_evaluations
    from uqbench.errors import ConfigError
    from uqbench.evaluation import Metrics, Trained, cost_rows
    from uqbench.model import build_method, n_parameters
    from uqbench.potential import Normalisation
    from uqbench.results.runs import choices, title_of, write_metrics
    from uqbench.training import device_of, train

    tune()
    opened.update(kernels=kernels.use(cfg.kernels))
    settings, evaluation = config.build(cfg.training), config.build(cfg.evaluation)
    if not isinstance(evaluation, Metrics):
        raise ConfigError(
            "evaluation: training ends with evaluation=metrics; then take uqbench evaluate run=... for any other"
        )
    device = device_of(settings)
    structures, splits = _load(opened, dataset)
    # Before anything is trained: a wrong name should not cost a training.
    for name, wanted in wanted_evaluations(cfg, splits).items():
        require_split(name, wanted.split, splits)
    parts = {name: structures[frames] for name, frames in splits.items()}
    opened.update(device=device, labels=labels, choices=choices())

    method = build_method(cfg, Normalisation.fit(parts["train"]))
    opened.update(family=method.family)
    with opened.stage("train"):
        train(method, parts["train"], parts["validation"], settings, cfg.seed, opened.path)
    # What a killed process did before its last checkpoint is known to that alone.
    opened.add_seconds("train", max(0.0, seconds_trained(opened.path) - opened.info["seconds"]["train"]))
    with opened.stage("fit"):
        best = load_best(opened.path, method.to(settings.dtype))
        method.to(device).eval().fit(parts["train"], evaluation.batch_size)
        opened.save_checkpoint(BEST, best | {"method": {k: v.cpu() for k, v in method.state_dict().items()}})
    with opened.stage("evaluate"):
        calibration = evaluation.calibrate(opened, method, parts["validation"], device)
        trained = Trained(method, calibration, device)
        rows = evaluation.evaluate(opened, trained, parts["test"], split="test", title=title_of(labels, "test"))
        rows += cost_rows(
            training_time=(opened.info["seconds"]["train"], "s"),
            parameters=(n_parameters(method), "1"),
        )
    write_metrics(opened, rows, command="train", split="test", labels=labels, generation=generation)
    opened.finish()


def _load(opened: RunDir, dataset: Dataset) -> tuple[Structures, Splits]:
    """Load and split the data, record both in the run, and refuse data that changed since the run began."""
    from uqbench.errors import DataError
    from uqbench.structures import check_splits, duplicates_across

    structures = dataset.load()
    sha256 = structures.sha256()
    if opened.info["data_sha256"] not in (None, sha256):
        raise DataError(
            f"{structures.origin} has changed since {opened.path} was started; restore the file or delete the run"
        )
    splits = dataset.split(structures)
    check_splits(splits, len(structures))
    shared = duplicates_across(structures, splits)
    if shared:
        name, frame, other, twin = shared[0]
        log.warning(
            "%d geometries stand in several splits, such as frame %d (%s) and %d (%s): the test is not independent",
            *(len(shared), structures.ids[frame], name, structures.ids[twin], other),
        )
    opened.update(data_sha256=sha256, data_origin=structures.origin, duplicates_across_splits=len(shared))
    opened.write_json("splits.json", {name: frames.tolist() for name, frames in splits.items()})
    return structures, splits
