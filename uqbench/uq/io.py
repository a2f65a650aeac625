"""From a config to an uncertainty method with weights, and back from a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig

from uqbench import config
from uqbench.errors import CheckpointError
from uqbench.models.blocks import Initialiser
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential
from uqbench.runs.checkpoints import BEST, load_best
from uqbench.runs.run_dir import Run, load_checkpoint
from uqbench.uq.base import UQMethod


def build_method(cfg: DictConfig, normalisation: Normalisation) -> UQMethod:
    """Build the method of `cfg` (keys backbone, uq, seed) with its initial weights."""

    def build_potential(members: int | None, heads: Mapping[str, int]) -> Potential:
        init = Initialiser(cfg.seed, members)
        backbone = config.build(cfg.backbone, n_species=len(normalisation.elements), init=init)
        potential = Potential(
            backbone, heads=heads, normalisation=normalisation, activation=cfg.backbone.activation, init=init
        )
        return compile(potential)

    return config.build(cfg.uq, build_potential=build_potential)


def load_method(run: Run) -> UQMethod:
    """Load the method of a finished run with its best weights, ready to predict on the CPU.

    Raises ConfigError for a config that must not be built, CheckpointError when the checkpoint is missing, damaged or
    does not fit the config.
    """
    config.require_slots(run.config)
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
    method = build_method(run.config, normalisation)
    method.to(weights["potential.scale"].dtype)
    load_best(run.path, method)
    return method.eval()


def n_parameters(method: torch.nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in method.parameters())
