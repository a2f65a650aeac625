"""From a config to an uncertainty method with weights, and back from a finished run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from uqbench import config
from uqbench.data.structures import Structures
from uqbench.errors import CheckpointError, ConfigError
from uqbench.models.blocks import Initialiser
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential
from uqbench.runs import memory, run_dir
from uqbench.runs.checkpoints import load_best
from uqbench.runs.files import BEST, LAYER, file_sha256
from uqbench.runs.run_dir import Run, RunDir, load_checkpoint
from uqbench.uq.base import UQMethod, require_family
from uqbench.uq.layer import Layer

PLAIN = "deterministic"  # the option of conf/uq whose model a layer is fitted on
PLAIN_TARGET = "uqbench.uq.deterministic.Deterministic"


def is_layer(uq: DictConfig) -> bool:
    """Whether a node of conf/uq is fitted on a model that is there, instead of changing the training."""
    return issubclass(locate_method(uq), Layer)


def locate_method(uq: DictConfig) -> type[UQMethod]:
    """Return the class that a node of conf/uq names."""
    return config.locate(uq._target_, "uq._target_", config.SLOTS["uq"])


def plain(cfg: DictConfig) -> DictConfig:
    """Return a config with the plain model in place of its method: what its layers are fitted on."""
    return OmegaConf.merge(
        {key: value for key, value in cfg.items() if key != "uq"}, {"uq": {"_target_": PLAIN_TARGET}}
    )


def build_method(cfg: DictConfig, normalisation: Normalisation) -> UQMethod:
    """Build the method of `cfg` (keys backbone, uq, seed) with its initial weights.

    Raises ConfigError where its class declares no family, which reports could not compare with others, and where the
    weights do not fit into memory.
    """

    def build_potential(members: int | None, heads: Mapping[str, int]) -> Potential:
        init = Initialiser(cfg.seed, members)
        backbone = config.build(cfg.backbone, n_species=len(normalisation.elements), init=init)
        potential = Potential(
            backbone, heads=heads, normalisation=normalisation, activation=cfg.backbone.activation, init=init
        )
        return compile(potential)

    require_family(locate_method(cfg.uq))
    try:
        if is_layer(cfg.uq):
            return config.build(cfg.uq, potential=build_potential(None, {}))
        return config.build(cfg.uq, build_potential=build_potential)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        large = memory.exhausted(error) or re.search("overflow|too large", str(error), re.IGNORECASE)
        if isinstance(error, RuntimeError | TypeError) and not large:
            raise
        raise ConfigError(
            "backbone: its weights do not fit into memory; choose fewer features or layers (backbone.*) or members"
        ) from error


def load_method(run: Run) -> UQMethod:
    """Load the method of a finished run with its best weights, ready to predict on the CPU.

    Raises ConfigError for a config that must not be built, CheckpointError when the checkpoint is missing, damaged or
    does not fit the config.
    """
    config.require_slots(run.config)
    model = run.info.get("model")
    if model is None:
        return _load_trained(run, run.config)
    layer = config.build(run.config.uq, potential=_load_model(run, model).potential)
    content = run.load_checkpoint(LAYER)
    layer.load_fitted(content.get("layer") if isinstance(content, dict) else {})
    return layer.eval()


def _load_model(run: Run, model: Mapping[str, str]) -> UQMethod:
    """The method below a layer, which must be the one that the layer was fitted on."""
    path = Path(run.path, model["run"])
    source = run if path.resolve() == Path(run.path).resolve() else run_dir.read(path)
    weights = file_sha256(source.path / BEST) if source is run else source.weights_sha256()
    if weights != model["sha256"]:
        raise CheckpointError(f"{source.path} is not the model that {run.path} was fitted on; fit it again")
    return _load_trained(run, plain(run.config)) if source is run else load_method(source)


def _load_trained(run: Run, cfg: DictConfig) -> UQMethod:
    path = Path(run.path) / BEST
    content = load_checkpoint(path)
    weights = content.get("method") if isinstance(content, dict) else None
    weights = weights if isinstance(weights, dict) else {}
    try:
        normalisation = Normalisation.from_state(
            {key.removeprefix("potential."): value for key, value in weights.items()}
        )
    except KeyError as error:
        raise CheckpointError(f"{path} is no checkpoint of a potential: it lacks {error}") from error
    method = build_method(cfg, normalisation)
    method.to(weights["potential.scale"].dtype)
    load_best(run.path, method)
    return method.eval()


def fit_layer(
    cfg: DictConfig, run: RunDir, model: Run, training: Structures, *, device: str, batch_size: int, seed: int
) -> Layer:
    """Fit the layer of `cfg` on the model of a finished run, or of the run itself, and note in the run which it was.

    The note is what `load_method` goes by; the path is relative, so that runs can be moved together.
    """
    path = os.path.relpath(model.path, run.path)
    # Interrupted after an earlier fit, the run itself counts as a layer already.
    weights = file_sha256(run.path / BEST) if model is run else model.weights_sha256()
    note = {"run": path, "sha256": weights}
    method = _load_model(run, note)
    layer = config.build(cfg.uq, potential=method.potential).to(device).eval()
    layer.fit(training, batch_size=batch_size, seed=seed)
    run.update(model=note)
    return layer


def n_parameters(method: torch.nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in method.parameters())
