"""One experiment: a model on its data, what is fitted on top of it, and its scores, each made once and then found."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from uqbench import config
from uqbench.config import did_you_mean
from uqbench.data.sources import OUT_OF_DOMAIN
from uqbench.errors import ConfigError, DataError, LockedError, OutOfMemory, UserError
from uqbench.runs import memory, metrics_table, run_dir
from uqbench.runs.evaluation import (
    dataset_of_run,
    device_of_run,
    evaluate,
    evaluate_frames,
    open_run,
    require_same_data,
)
from uqbench.runs.files import LAYER
from uqbench.runs.run_dir import MADE_FOR, Run, RunDir

if TYPE_CHECKING:
    from uqbench.data.sources.base import Dataset
    from uqbench.data.structures import Splits, Structures
    from uqbench.evaluations.base import Rows
    from uqbench.evaluations.metrics import Metrics
    from uqbench.inference.trained_model import TrainedModel
    from uqbench.training.memory import Forecast
    from uqbench.training.settings import Training
    from uqbench.uq.base import Method

log = logging.getLogger(__name__)

AUTO = "auto"  # as a split: out of domain where the data set has such frames, otherwise nothing
WAIT_S = 1.0  # between looks at a model that another process is training


class Experiment:
    """What a config of `train` asks for, and what `al` asks for in each generation.

    Args:
        cfg: with the keys dataset, backbone, uq, calibration, training, evaluation and those that all commands share.
        choices: the options chosen of the groups, which name the run.
        dataset: None to build it from the config.
    """

    def __init__(self, cfg: DictConfig, choices: Mapping[str, str], dataset: Dataset | None = None) -> None:
        self.cfg, self.choices = cfg, dict(choices)
        self.dataset = config.build(cfg.dataset) if dataset is None else dataset
        names = {group: str(choices[group]) for group in ("dataset", "backbone", "uq")}
        self.labels: dict[str, Any] = {"dataset": names.pop("dataset"), "subset": self.dataset.subset, **names}
        self.labels["seed"] = cfg.seed

    def train(self, made_for: str | None = None) -> Run:
        """Bring the model, or the layer on it, to its end in the run that the config names, and return that run.

        The model of a layer is a run of its own, that of `uq=deterministic`: all layers of one config share it.

        made_for: what a model is needed for that nobody has asked for itself.
        """
        told = False
        while True:
            try:
                with open_run(self.cfg, "train", self.labels) as run:
                    if not run.done:
                        if made_for and not run.resumed:
                            run.info[MADE_FOR] = made_for
                        self._make(run, None)
                    if not made_for and run.info.get(MADE_FOR):
                        run.update(**{MADE_FOR: None})
                return run
            except LockedError as error:  # a layer of the same sweep has it trained
                if not made_for and not _is_made_for_layers(error.folder):
                    raise
                if not told:
                    log.warning("waiting for the model: %s", error)
                told = True
                time.sleep(WAIT_S)

    def fit(self, run: RunDir, model: Run, structures: Structures, splits: Splits) -> None:
        """Fit a layer on a finished model, calibrate and score it, in an open run, and finish that.

        structures, splits: those of the model.
        """
        evaluation = self._evaluation()
        device = device_of_run(model.config)
        parts = {name: structures[frames] for name, frames in splits.items()}
        run.update(device=device, labels=self.labels, choices=self.choices)
        self._fit(run, model, parts["train"], evaluation, device)
        _record_splits(run, splits)
        self._finish(run, model, parts, evaluation, device, None)

    def evaluations(self, splits: Mapping[str, Collection]) -> dict[str, DictConfig]:
        """Return those of the config's `evaluations` that are not switched off, by name.

        splits: of the data. Raises ConfigError where one wants a split that is not there.
        """
        wanted = wanted_evaluations(self.cfg, splits)
        for name, one in wanted.items():
            _require_split(name, one.split, splits)
        return wanted

    def evaluate(self, name: str, wanted: DictConfig, run: Run) -> Run:
        """Bring one of the `evaluations` of a finished run to its end, in a run as `uqbench evaluate run=...` makes it.

        Other evaluations than those of the first time train nothing anew.
        """
        common = {key: self.cfg[key] for key in ("seed", "outputs", "data_root", "kernels")}
        settings = {"command": "evaluate", **common, "run": str(run.path), "dataset": None}
        settings |= OmegaConf.to_container(wanted, resolve=True)
        option = self.choices.get(f"evaluation@evaluations.{name}.evaluation")
        return evaluate(OmegaConf.create(settings), {"evaluation": option} if option else {})

    def generation(
        self, number: int, data_name: str, structures: Structures, splits: Splits, within: RunDir
    ) -> tuple[TrainedModel, Rows]:
        """Train a generation of active learning and evaluate it, unless that was done before.

        Args:
            number: from 1. data_name: the file of its frames in the run `within`.
            structures, splits: its frames.
            within: the run of active learning; each generation and each of its evaluations is a run below it, which
                `uqbench evaluate` and `uqbench.load` take.
        """
        from uqbench.inference.trained_model import TrainedModel
        from uqbench.runs.reuse import adopt, find_equal_run

        # Before anything is trained: a wrong name should not cost a generation.
        wanted = self.evaluations(splits)
        cfg = self._of_generation(data_name, structures, within)
        with RunDir(within.path / f"generation_{number}", cfg, "train") as run:
            equal_run = None if run.done else find_equal_run(run, within.path / data_name)
            if equal_run is not None:
                adopt(run, equal_run, number)
            elif not run.done:
                Experiment(cfg, self.choices, config.build(cfg.dataset)).relabelled(self.labels)._make(run, number)
        rows = _rows(run, "test")
        trained = TrainedModel.from_run(run.path, device=device_of_run(cfg))
        for name, one in wanted.items():
            evaluated = self._evaluate_generation(
                number, name, one, run, trained, structures[splits[one.split]], within
            )
            rows += _rows(evaluated, name)
        return trained, rows

    def relabelled(self, labels: Mapping[str, Any]) -> Experiment:
        """Return this experiment under other labels: those of the data that its own are a part of."""
        self.labels = dict(labels)
        return self

    # ------------------------------------------------------------------------------------------------ steps

    def _make(self, run: RunDir, generation: int | None) -> None:
        """Train, fit, calibrate and score in an open run, and finish it."""
        from uqbench.models import compiled
        from uqbench.models.compiled.allocator import tune
        from uqbench.models.normalisation import Normalisation
        from uqbench.uq.base import require_family
        from uqbench.uq.io import build_method, is_layer, locate_method, plain

        tune()
        run.update(kernels=compiled.use(self.cfg.kernels))
        evaluation, layered = self._evaluation(), is_layer(self.cfg.uq)
        run.update(family=require_family(locate_method(self.cfg.uq)))
        settings = config.build(self.cfg.training)
        if layered and generation is None:
            model = self._model()
            structures, splits = self._load(run)
            self.fit(run, model, structures, splits)
            return
        device = device_of_run(self.cfg)
        structures, splits = self._load(run)
        self.evaluations(splits)
        parts = {name: structures[frames] for name, frames in splits.items()}
        run.update(device=device, labels=self.labels, choices=self.choices)
        # What is wrong with a network shows when it is built: before the first file, so that nothing stays behind.
        method = build_method(plain(self.cfg) if layered else self.cfg, Normalisation.fit(parts["train"]))
        forecast = self._forecast(run, method, parts, settings)
        _record_splits(run, splits)
        self._train(run, method, parts, settings, forecast)
        if layered:
            # The generations of a run are no sweep over layers: each keeps its model beside its layer.
            self._fit(run, run, parts["train"], evaluation, device)
        self._finish(run, run, parts, evaluation, device, generation)

    def _model(self) -> Run:
        """The finished run of the plain model of the same config and seed, trained now if need be."""
        from uqbench.uq.io import PLAIN, plain

        cfg = plain(self.cfg)
        cfg.evaluations = {}
        return Experiment(cfg, self.choices | {"uq": PLAIN}, self.dataset).train(made_for="layers")

    def _forecast(
        self, run: RunDir, method: Method, parts: Mapping[str, Structures], settings: Training
    ) -> Forecast | None:
        """Predict the memory of a training that is not over, and refuse what cannot fit.

        None where nobody knows what there is, or where there is more than enough.
        """
        from uqbench.runs.checkpoints import trained
        from uqbench.training.loop import device_of
        from uqbench.training.memory import ample, forecast

        available, used = memory.available(device_of(settings)), [parts["train"], parts["validation"]]
        if available is None or ample(method, settings.batch_size, used, available):
            return None
        if trained(run.path, settings.epochs):
            return None
        predicted = forecast(method, *used, settings, self.cfg.seed, available)
        predicted.require(available)
        return predicted

    def _train(
        self,
        run: RunDir,
        method: Method,
        parts: Mapping[str, Structures],
        settings: Training,
        forecast: Forecast | None,
    ) -> None:
        from uqbench.runs.checkpoints import seconds_trained
        from uqbench.training.loop import device_of, train
        from uqbench.training.memory import forecast as predict_memory

        available = None if forecast is None else memory.available(forecast.device)
        validation_batch = None if available is None else forecast.validation_batch(available)
        if validation_batch:
            log.warning("memory is scarce: validating %d frames a time", validation_batch)
        try:
            with run.stage("train"):
                train(method, parts["train"], parts["validation"], settings, self.cfg.seed, run.path, validation_batch)
        except (RuntimeError, MemoryError) as error:
            if not memory.exhausted(error):
                raise
            # What the training has allocated hangs on the error, and is to count as available.
            traceback.clear_frames(error.__traceback__)
            available = memory.available(device_of(settings))
            if available is None:
                raise OutOfMemory(
                    f"training ran out of memory with training.batch_size={settings.batch_size}"
                ) from error
            if forecast is None:
                used = parts["train"], parts["validation"]
                forecast = predict_memory(method, *used, settings, self.cfg.seed, available)
            raise forecast.failure(available) from error
        # What a killed process did before its last checkpoint is known to that alone.
        run.add_seconds("train", max(0.0, seconds_trained(run.path) - run.info["seconds"]["train"]))

    def _fit(self, run: RunDir, model: Run, training: Structures, evaluation: Metrics, device: str) -> None:
        from uqbench.uq.io import fit_layer

        given = {"device": device, "batch_size": evaluation.batch_size, "seed": self.cfg.seed}
        try:
            with run.stage("fit"):
                layer = fit_layer(self.cfg, run, model, training, **given)
                run.save_checkpoint(LAYER, {"layer": layer.fitted_state()})
        except (RuntimeError, MemoryError) as error:
            size = min(evaluation.batch_size, len(training))
            if not memory.exhausted(error) or size == 1:
                raise
            raise OutOfMemory(
                f"fitting the layer ran out of memory with evaluation.batch_size={evaluation.batch_size}; less takes: "
                f"uqbench fit run={model.path} uq={self.labels['uq']} evaluation.batch_size={size // 2}"
            ) from error

    def _finish(
        self,
        run: RunDir,
        model: Run,
        parts: Mapping[str, Structures],
        evaluation: Metrics,
        device: str,
        generation: int | None,
    ) -> None:
        """Calibrate on the validation split, score the test split, and finish the run."""
        from uqbench.evaluations.base import cost_rows
        from uqbench.inference.trained_model import TrainedModel
        from uqbench.uq.io import load_method, n_parameters

        method = load_method(run).to(device)
        title = metrics_table.title_of(self.labels, "test")
        with run.stage("evaluate"):
            calibrator = config.build(self.cfg.calibration)
            calibration = evaluation.calibrate(run, method, parts["validation"], device, calibrator)
            trained = TrainedModel(method, calibration, device)
            rows = evaluation.evaluate(run, trained, parts["test"], split="test", title=title)
            rows += cost_rows(
                training_time=(model.info["seconds"]["train"], "s"), parameters=(n_parameters(method), "1")
            )
        command = run.config.command
        metrics_table.write_metrics(run, rows, command=command, split="test", labels=self.labels, generation=generation)
        run.finish()

    def _evaluation(self) -> Metrics:
        from uqbench.evaluations.metrics import Metrics

        evaluation = config.build(self.cfg.evaluation)
        if not isinstance(evaluation, Metrics):
            raise ConfigError(
                "evaluation: training ends with evaluation=metrics; then take uqbench evaluate run=... for any other"
            )
        return evaluation

    def _load(self, run: RunDir) -> tuple[Structures, Splits]:
        """Load and split the data, record both in the run, and refuse data that changed since the run began."""
        from uqbench.data.checks import label_warnings, scorable
        from uqbench.data.structures import check_splits, duplicates_across

        structures = self.dataset.load()
        sha256 = structures.sha256()
        if run.info["data_sha256"] not in (None, sha256):
            raise DataError(
                f"{structures.origin} has changed since {run.path} was started; restore the file or delete the run"
            )
        splits = self.dataset.split(structures)
        try:
            check_splits(splits, len(structures))
        except DataError as error:
            raise DataError(f"{self.cfg.dataset.get('split_file') or structures.origin}: {error}") from error
        splits, lines = scorable(structures, splits)
        for line in [*label_warnings(structures), *lines]:
            log.warning("%s: %s", structures.origin, line)
        shared = duplicates_across(structures, splits)
        if shared:
            name, frame, other, copy = shared[0]
            log.warning(
                "%d geometries stand in several splits, such as frame %d (%s) and %d (%s): the test is not independent",
                *(len(shared), structures.ids[frame], name, structures.ids[copy], other),
            )
        run.update(data_sha256=sha256, data_origin=structures.origin, duplicates_across_splits=len(shared))
        return structures, splits

    def _of_generation(self, data_name: str, structures: Structures, within: RunDir) -> DictConfig:
        """The config of a generation: that of a training on the frames that the run of active learning keeps."""
        # Relative to a data root, which is no part of a run's identity: the whole run can be moved.
        data = {"path": data_name, "data_root": str(within.path), "sha256": structures.sha256()}
        settings = OmegaConf.to_container(self.cfg, resolve=True)
        keys = ("seed", "outputs", "kernels", "backbone", "uq", "calibration", "training", "evaluation")
        dataset = {"_target_": "uqbench.data.sources.packed.Packed", **data, "subset": self.labels["subset"]}
        identity = {"command": "train", "data_root": None, **{key: settings[key] for key in keys}, "dataset": dataset}
        return OmegaConf.create(identity)

    def _evaluate_generation(
        self,
        number: int,
        name: str,
        wanted: DictConfig,
        run: Run,
        trained: TrainedModel,
        frames: Structures,
        within: RunDir,
    ) -> Run:
        from uqbench.runs.reuse import adopt, find_evaluation

        identity = OmegaConf.create({"command": "evaluate", "seed": self.cfg.seed, "name": name, **wanted})
        with RunDir(within.path / f"generation_{number}_{name}", identity, "evaluate") as evaluated:
            equal_run = None if evaluated.done else find_evaluation(evaluated, run, name)
            if equal_run is not None:
                adopt(evaluated, equal_run, number)
            elif not evaluated.done:
                evaluated.update(labels=self.labels, choices=self.choices, data_sha256=frames.sha256())
                evaluated.update(family=trained.method.family)
                title = f"{metrics_table.title_of(self.labels, name)}, generation {number}"
                evaluate_frames(
                    evaluated, wanted, trained, frames, self.labels, split=name, title=title, generation=number
                )
        return evaluated


# ---------------------------------------------------------------------------------------------- on finished runs


def fit(cfg: DictConfig, choices: Mapping[str, str]) -> Run:
    """Fit the layer of `cfg` on the finished run `cfg.run`, in a run of its own, and return that.

    Raises ConfigError for a method that is no layer, DataError where the data are not those of the run.
    """
    identity = identity_of_fit(cfg)
    model = run_dir.read(cfg.run)
    names = {**model.info.get("choices", {}), **choices}
    labels = {**model.info["labels"], "uq": str(choices["uq"])}
    with open_run(identity, "fit", labels) as run:
        if not run.done:
            config.require_slots(model.config)
            _fit(run, identity, cfg, model, names, labels)
    return run


def _fit(
    run: RunDir,
    identity: DictConfig,
    cfg: DictConfig,
    model: Run,
    names: Mapping[str, str],
    labels: Mapping[str, Any],
) -> None:
    import numpy as np

    from uqbench.models import compiled
    from uqbench.models.compiled.allocator import tune
    from uqbench.uq.base import require_family
    from uqbench.uq.io import is_layer, locate_method

    if not is_layer(cfg.uq):
        raise ConfigError(f"uq: {labels['uq']} is trained with its model: uqbench train uq={labels['uq']} makes one")
    tune()
    run.update(kernels=compiled.use(cfg.kernels), family=require_family(locate_method(cfg.uq)))
    structures = dataset_of_run(model, cfg.data_root).load()
    require_same_data(structures, model)
    splits = {name: np.asarray(frames) for name, frames in model.read_json("splits.json").items()}
    run.update(data_sha256=structures.sha256(), data_origin=structures.origin)
    dataset = dataset_of_run(model, cfg.data_root)
    Experiment(identity, names, dataset).relabelled(labels).fit(run, model, structures, splits)


def identity_of_fit(cfg: DictConfig) -> DictConfig:
    """Return what the run of a fit is named by: the weights, not the path to them, and all that made the model.

    Raises UserError as `run_dir.read` does.
    """
    model = run_dir.read(cfg.run)
    made = {key: model.config[key] for key in ("seed", "dataset", "backbone", "training") if key in model.config}
    settings = OmegaConf.to_container(cfg, resolve=True) | OmegaConf.to_container(OmegaConf.create(made), resolve=True)
    return OmegaConf.create(settings | {"source_sha256": model.weights_sha256()})


def wanted_evaluations(cfg: DictConfig, splits: Mapping[str, Collection]) -> dict[str, DictConfig]:
    """Return those of a config's `evaluations` that are not switched off, by name; none where it has no such key.

    splits: of the data; the split `auto` is `out_of_domain` where they have one, and switches off where not.
    """
    auto = OUT_OF_DOMAIN if len(splits.get(OUT_OF_DOMAIN, ())) else None
    wanted = {}
    for name, one in (cfg.get("evaluations") or {}).items():
        split = None if one is None else auto if one.split == AUTO else one.split
        if split is not None:
            wanted[str(name)] = one if one.split == split else OmegaConf.merge(one, {"split": split})
    return wanted


def complete(run: Run, cfg: DictConfig) -> bool:
    """Return whether a finished training is all that its command asks for: no evaluation follows, and it is listed."""
    return not wanted_evaluations(cfg, run.read_json("splits.json")) and not run.info.get(MADE_FOR)


def _is_made_for_layers(folder: Path) -> bool:
    """Whether the run that another process is making there is the model of layers; its record follows its lock."""
    for _ in range(5):
        with contextlib.suppress(UserError):
            return bool(run_dir.record(folder).get(MADE_FOR))
        time.sleep(WAIT_S)
    return False


def _record_splits(run: RunDir, splits: Splits) -> None:
    run.write_json("splits.json", {name: frames.tolist() for name, frames in splits.items()})


def _require_split(name: str, split: str, sizes: Mapping[str, Collection]) -> None:
    """Raise ConfigError, for the evaluation of a name, where a split is unknown or holds no frames."""
    if split not in sizes or not len(sizes[split]):
        raise ConfigError(
            f"evaluations.{name}.split: no frames in split '{split}'{did_you_mean(split, sizes)} "
            f"(choose {', '.join(known for known, frames in sizes.items() if len(frames))}; or leave it out with "
            f"evaluations.{name}=null)"
        )


def _rows(run: Run, split: str) -> Rows:
    """Metric rows of a finished run, with the split that they belong to."""
    columns = ["target", "population", "metric", "value", "unit", "n", "ci_low", "ci_high"]
    return [row | {"split": split} for row in run.read_csv(metrics_table.METRICS)[columns].to_dict("records")]
