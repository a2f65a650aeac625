"""Active learning: train, propose, label, retrain, generation after generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.data.sources.base import Dataset
    from uqbench.data.structures import Splits, Structures
    from uqbench.evaluations.base import Rows
    from uqbench.inference.trained_model import TrainedModel
    from uqbench.runs.run_dir import RunDir


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    evaluations: dict[str, dict[str, Any] | None]


def run(cfg: DictConfig) -> None:
    """Bring the run of `cfg` to its end, from wherever it stands, and print a table of its generations.

    Every generation is a run directory of its own below it, which `uqbench evaluate` and `uqbench.load` take.
    """
    from hydra.core.hydra_config import HydraConfig

    from uqbench import config
    from uqbench.runs import run_dir

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
    with run_dir.RunDir.open(root=cfg.outputs, command="al", config=cfg, **place) as opened:
        if not opened.done:
            _learn(opened, cfg, dataset, labels)
        from uqbench.report.learning import show

        show(opened)


def _learn(opened: RunDir, cfg: DictConfig, dataset: Dataset, labels: dict[str, Any]) -> None:
    from uqbench import config
    from uqbench.models import compiled
    from uqbench.report.learning import figures
    from uqbench.runs.metrics_table import METRICS, choices, title_of, write_metrics

    opened.update(labels=labels, choices=choices(), kernels=compiled.use(cfg.kernels))
    with config.build(cfg.oracle) as oracle:
        parts = {"acquisition": config.build(cfg.acquisition), "selection": config.build(cfg.selection)}
        # Before anything is trained: it would not be proposed from.
        parts["acquisition"].check(config.locate(cfg.uq._target_))
        loop = config.build(cfg.al, run=opened, oracle=oracle, seed=cfg.seed, **parts)

        def train(generation: int, structures: Structures, splits: Splits) -> tuple[TrainedModel, Rows]:
            data = loop.data_name(generation)
            return _generation(opened, cfg, generation, data, structures, splits, labels)

        rows = loop.learn(dataset, train)
    write_metrics(opened, rows, command="al", split="test", labels=labels)
    for name, png in figures(opened.read_csv(METRICS), title_of(labels, "active learning")).items():
        opened.write_bytes(name, png)
    opened.finish()


def _generation(
    opened: RunDir,
    cfg: DictConfig,
    generation: int,
    data_name: str,
    structures: Structures,
    splits: Splits,
    labels: dict[str, Any],
) -> tuple[TrainedModel, Rows]:
    """Train a generation in a run directory of its own and evaluate it in others, unless that was done before."""
    from omegaconf import OmegaConf

    from uqbench import config
    from uqbench.cli.commands.evaluate import require_split, wanted_evaluations
    from uqbench.cli.commands.train import train_run
    from uqbench.inference.calibration import Calibration
    from uqbench.inference.trained_model import TrainedModel
    from uqbench.runs.reuse import adopt, find_evaluation, find_twin
    from uqbench.runs.run_dir import RunDir
    from uqbench.training.loop import device_of
    from uqbench.uq.io import load_method

    # Before anything is trained: a wrong name should not cost a generation.
    wanted_by_name, frames = wanted_evaluations(cfg, splits), {}
    for name, wanted in wanted_by_name.items():
        require_split(name, wanted.split, splits)
        frames[name] = structures[splits[wanted.split]]
    # Relative to a data root, which is no part of a run's identity: the whole run can be moved.
    data = {"path": data_name, "data_root": str(opened.path), "sha256": structures.sha256()}
    settings = OmegaConf.to_container(cfg, resolve=True)
    settings = {
        key: settings[key] for key in ("seed", "outputs", "kernels", "backbone", "uq", "training", "evaluation")
    }
    dataset = {"_target_": "uqbench.data.sources.packed.Packed", **data, "subset": labels["subset"]}
    own = OmegaConf.create({"command": "train", "data_root": None, **settings, "dataset": dataset})
    with RunDir(opened.path / f"generation_{generation}", own, "train") as trained_run:
        twin = None if trained_run.done else find_twin(trained_run, opened.path / data_name)
        if twin is not None:
            adopt(trained_run, twin, generation)
        elif not trained_run.done:
            train_run(trained_run, own, config.build(own.dataset), labels, generation)
        rows = _rows(trained_run, "test")
        device = device_of(config.build(own.training))
        trained = TrainedModel(load_method(trained_run), Calibration.load(trained_run), device)
    for name, wanted in wanted_by_name.items():
        identity = OmegaConf.create({"command": "evaluate", "seed": cfg.seed, "name": name, **wanted})
        with RunDir(opened.path / f"generation_{generation}_{name}", identity, "evaluate") as evaluated:
            twin = None if evaluated.done else find_evaluation(evaluated, trained_run, name)
            if twin is not None:
                adopt(evaluated, twin, generation)
            elif not evaluated.done:
                _evaluate(evaluated, wanted, trained, frames[name], labels, generation, name)
            rows += _rows(evaluated, name)
    return trained, rows


def _evaluate(
    opened: RunDir,
    wanted: DictConfig,
    trained: TrainedModel,
    chosen: Structures,
    labels: dict[str, Any],
    generation: int,
    name: str,
) -> None:
    from uqbench import config
    from uqbench.runs.metrics_table import choices, title_of, write_metrics

    opened.update(labels=labels, choices=choices(), data_sha256=chosen.sha256())
    with opened.stage("evaluate"):
        title = f"{title_of(labels, name)}, generation {generation}"
        rows = config.build(wanted.evaluation).evaluate(opened, trained, chosen, split=wanted.split, title=title)
    write_metrics(opened, rows, command="evaluate", split=name, labels=labels, generation=generation)
    opened.finish()


def _rows(opened: RunDir, split: str) -> Rows:
    """Metric rows of a finished run, with the split that they belong to."""
    from uqbench.runs.metrics_table import METRICS

    columns = ["target", "population", "metric", "value", "unit", "n", "ci_low", "ci_high"]
    return [row | {"split": split} for row in opened.read_csv(METRICS)[columns].to_dict("records")]
