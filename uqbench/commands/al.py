"""Active learning: train, propose, label, retrain, generation after generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uqbench.config import Skeleton as CommonSkeleton

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from uqbench.datasets.base import Dataset
    from uqbench.evaluation import Rows, Trained
    from uqbench.rundir import RunDir
    from uqbench.structures import Splits, Structures


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    evaluations: dict[str, dict[str, Any] | None]


def run(cfg: DictConfig) -> None:
    """Bring the run of `cfg` to its end, from wherever it stands, and print a table of its generations.

    Every generation is a run directory of its own below it, which `uqbench evaluate` and `uqbench.load` take.
    """
    from hydra.core.hydra_config import HydraConfig

    from uqbench import config, rundir

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
    with rundir.RunDir.open(root=cfg.outputs, command="al", config=cfg, **place) as opened:
        if not opened.done:
            _learn(opened, cfg, dataset, labels)
        from uqbench.results.learning import show

        show(opened)


def _learn(opened: RunDir, cfg: DictConfig, dataset: Dataset, labels: dict[str, Any]) -> None:
    from uqbench import config, kernels
    from uqbench.results.learning import figures
    from uqbench.results.runs import METRICS, choices, title_of, write_metrics
    from uqbench.uq.base import require_family

    opened.update(labels=labels, choices=choices(), kernels=kernels.use(cfg.kernels))
    with config.build(cfg.oracle) as oracle:
        parts = {"acquisition": config.build(cfg.acquisition), "selection": config.build(cfg.selection)}
        method = config.locate(cfg.uq._target_)
        # Before anything is trained: it would not be proposed from.
        parts["acquisition"].check(method)
        opened.update(family=require_family(method))
        loop = config.build(cfg.al, run=opened, oracle=oracle, seed=cfg.seed, **parts)

        def train(generation: int, structures: Structures, splits: Splits) -> tuple[Trained, Rows]:
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
) -> tuple[Trained, Rows]:
    """Train a generation in a run directory of its own and evaluate it in others, unless that was done before."""
    from omegaconf import OmegaConf

    from uqbench import config
    from uqbench.commands.evaluate import require_split, wanted_evaluations
    from uqbench.commands.train import train_run
    from uqbench.evaluation import Calibration, Trained
    from uqbench.model import load_method
    from uqbench.results.twins import adopt, find_evaluation, find_twin
    from uqbench.rundir import RunDir
    from uqbench.training import device_of

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
    dataset = {"_target_": "uqbench.datasets.packed.Packed", **data, "subset": labels["subset"]}
    own = OmegaConf.create({"command": "train", "data_root": None, **settings, "dataset": dataset})
    with RunDir(opened.path / f"generation_{generation}", own, "train") as trained_run:
        twin = None if trained_run.done else find_twin(trained_run, opened.path / data_name)
        if twin is not None:
            adopt(trained_run, twin, generation)
        elif not trained_run.done:
            train_run(trained_run, own, config.build(own.dataset), labels, generation)
        rows = _rows(trained_run, "test")
        device = device_of(config.build(own.training))
        trained = Trained(load_method(trained_run), Calibration.load(trained_run), device)
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
    trained: Trained,
    chosen: Structures,
    labels: dict[str, Any],
    generation: int,
    name: str,
) -> None:
    from uqbench import config
    from uqbench.results.runs import choices, title_of, write_metrics

    opened.update(labels=labels, choices=choices(), family=trained.method.family, data_sha256=chosen.sha256())
    with opened.stage("evaluate"):
        title = f"{title_of(labels, name)}, generation {generation}"
        rows = config.build(wanted.evaluation).evaluate(opened, trained, chosen, split=wanted.split, title=title)
    write_metrics(opened, rows, command="evaluate", split=name, labels=labels, generation=generation)
    opened.finish()


def _rows(opened: RunDir, split: str) -> Rows:
    """Metric rows of a finished run, with the split that they belong to."""
    from uqbench.results.runs import METRICS

    columns = ["target", "population", "metric", "value", "unit", "n", "ci_low", "ci_high"]
    return [row | {"split": split} for row in opened.read_csv(METRICS)[columns].to_dict("records")]
