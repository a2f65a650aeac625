"""Every YAML of every group lists every argument of its target, and no Python default hides a number."""

import importlib
import inspect
import typing
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from uqbench import config
from uqbench.cli.hydra_session import open_hydra
from uqbench.cli.overrides import Request
from uqbench.config.annotations import is_plain
from uqbench.errors import ConfigError

CONF = config.conf_dir()
OPTIONS = [path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("experiment", "hydra")]
LAUNCHERS = sorted(CONF.glob("hydra/launcher/*.yaml"))
EXPERIMENTS = sorted(CONF.glob("experiment/*.yaml"))


def label(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


def nodes(tree: DictConfig) -> list[DictConfig]:
    """A node with a target and those below it."""
    children = [tree._get_node(key) for key in tree]
    return [tree, *(node for child in children if isinstance(child, DictConfig) for node in nodes(child))]


@pytest.mark.parametrize("path", OPTIONS, ids=label)
def test_option_lists_exactly_the_arguments_of_its_target(path):
    tree = OmegaConf.load(path)
    assert "_target_" in tree, "every option names its target"
    for node in nodes(tree):
        if "_target_" not in node:
            continue
        target = config.locate(node._target_)
        parameters, hints, open_ended = config.signature(target)
        keys = {str(key) for key in node} - {"_target_", "defaults"}
        from_yaml = {name for name in parameters if is_plain(hints.get(name, object))}
        assert not open_ended, f"{node._target_} takes **kwargs, so that its YAML cannot be checked"
        assert from_yaml <= keys, f"arguments missing from the YAML: {from_yaml - keys}"
        assert keys <= set(parameters), f"keys that are no arguments: {keys - set(parameters)}"
        assert keys <= set(hints), f"arguments without a type: {keys - set(hints)}"
        if node._target_.startswith("uqbench."):
            defaults = [name for name in keys if parameters[name].default is not inspect.Parameter.empty]
            assert defaults == [], "defaults belong in the YAML alone"


@pytest.mark.parametrize("path", LAUNCHERS, ids=label)
def test_launcher_lists_exactly_the_arguments_of_its_target(path):
    with open_hydra("train", None) as hydra:
        Request(hydra.config_loader, "train", [f"hydra/launcher={path.stem}"], multirun=True).jobs(skeleton_of("train"))
        composed = hydra.compose_config("train", [f"hydra/launcher={path.stem}"], RunMode.MULTIRUN).hydra.launcher
    written = [OmegaConf.to_container(tree, resolve=False) for tree in (composed, OmegaConf.load(path))]
    assert written[0] == written[1], "nothing but the YAML decides"
    module, _, name = composed._target_.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters
    assert set(composed) - {"_target_"} == set(parameters) - {"self"}
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())


def skeleton_of(command: str) -> type:
    """The types of a command's top-level keys."""
    return getattr(importlib.import_module(f"uqbench.cli.commands.{command}"), "Skeleton", config.Skeleton)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_command_declares_the_types_of_its_keys(path):
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    keys = set(OmegaConf.load(path)) - groups - {"defaults", "hydra"}
    skeleton = config.Skeleton if path.stem == "base" else skeleton_of(path.stem)
    assert keys <= typing.get_type_hints(skeleton).keys()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=label)
def test_experiment_only_overrides(path):
    """Composing and checking the command that it is for finds every key that the experiment would add."""
    assert path.read_text().startswith("# @package _global_")
    problems = {}
    for command in ("train", "al"):
        try:
            with open_hydra(command, None) as hydra:
                overrides = [f"experiment={path.stem}"]
                [job] = Request(hydra.config_loader, command, overrides, False).jobs(skeleton_of(command))
            break
        except ConfigError as error:
            problems[command] = str(error)
    else:
        pytest.fail(f"fits no command: {problems}")
    assert config.digest(job.config)
