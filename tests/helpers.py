"""What many tests share: small models, short trainings, the options of the config groups."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from uqbench import config
from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.models.normalisation import Normalisation
from uqbench.training.loop import Training
from uqbench.uq.base import UQMethod
from uqbench.uq.io import build_method
from uqbench.uq.layer import Layer

# What makes any backbone small, where it has such a key.
SMALL = {"features": 8, "layers": 2, "l_max": 1, "radial_layers": 1, "radial_features": 8}

# Modules that take longer to import than a command that computes nothing may take in all.
HEAVY = {"torch", "lightning", "nequip", "scipy", "sklearn", "matplotlib", "pandas", "pyarrow", "joblib", "submitit"}

# Kernels that tests compute with, and all that one pair of backbone and method is tested with.
DEFAULT_KERNELS = os.environ.get("UQBENCH_KERNELS", "auto")
KERNELS = [kernels for kernels in ("native", "torch") if DEFAULT_KERNELS in ("auto", kernels)]

CONF = Path(__file__).parents[1] / "conf"


def options(group: str) -> list[str]:
    """The names of all YAMLs of a config group, so that what is added is tested at once."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def distinct_backbones() -> list[str]:
    """Options of conf/backbone that differ in more than their size: at the size of tests, others are the same."""
    by_content = {repr({**small_config(name, "deterministic").backbone}): name for name in options("backbone")}
    return list(by_content.values())


def small_config(backbone: str, uq: str, seed: int = 0, **changes: object) -> DictConfig:
    """A config of backbone and method as `build_method` takes it, with the backbone's size cut down."""
    cfg = OmegaConf.create(
        {
            "seed": seed,
            "backbone": OmegaConf.load(CONF / "backbone" / f"{backbone}.yaml"),
            "uq": OmegaConf.load(CONF / "uq" / f"{uq}.yaml"),
        }
    )
    small = {f"backbone.{key}": value for key, value in SMALL.items() if key in cfg.backbone}
    for key, value in {**small, **changes}.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def small_method(structures: Structures, backbone: str, uq: str, seed: int = 0, **changes: object) -> UQMethod:
    """An untrained method with weights in float64."""
    cfg = small_config(backbone, uq, seed, **changes)
    return build_method(cfg, Normalisation.fit(structures)).to(torch.float64)


def fitted_method(structures: Structures, backbone: str, uq: str, seed: int = 0, **changes: object) -> UQMethod:
    """An untrained method in float64 that is fitted on the structures and can predict."""
    return fit(small_method(structures, backbone, uq, seed, **changes), structures)


def fit(method: UQMethod, structures: Structures, batch_size: int = 16) -> UQMethod:
    """Make a method ready to predict, without training: fit it if it is a layer."""
    method.eval()
    if isinstance(method, Layer):
        method.fit(structures, batch_size=batch_size, seed=0)
    else:
        method.begin(len(structures), seed=0)
    return method


def built(group: str, name: str, **changes: object) -> Any:
    """The object that a YAML of a config group describes, with some of its values changed."""
    return config.build(OmegaConf.merge(OmegaConf.load(CONF / group / f"{name}.yaml"), changes), slot=group)


def simulating(group: str, name: str, **changes: object) -> DictConfig:
    """The YAML of an option with a protocol, with some of its values changed; those of the protocol by bare names."""
    settings = OmegaConf.load(CONF / group / f"{name}.yaml")
    settings.pop("defaults", None)
    for key, value in changes.items():
        nodes = (settings, settings.protocol, settings.protocol.limits)
        next(node for node in nodes if key in node)[key] = value
    return settings


def graphs_of(structures: Structures, cutoff: float = 5.0) -> GraphSet:
    """All frames as graphs in float64."""
    return GraphSet(structures, cutoff, dtype=torch.float64)


def short_training(**changes: object) -> Training:
    """The quick recipe with a few tiny epochs."""
    settings = config.build(OmegaConf.load(CONF / "training" / "quick.yaml"), slot="training")
    return dataclasses.replace(settings, **{"epochs": 3, "checkpoint_seconds": 0.0, **changes})


def bomb(levels: int = 10, width: int = 9) -> str:
    """YAML of lists of aliases to lists of aliases: width ** levels values in a few lines."""
    lines = ["a0: &a0 [1]"]
    for k in range(1, levels):
        lines.append(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]")
    return "\n".join(lines) + "\n"
