"""From nodes of a config to objects: what a slot accepts, what is wrong with a node, construction."""

import contextlib
import importlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uqbench.config.annotations import describe, is_huge, is_plain, matches, object_kind
from uqbench.config.names import did_you_mean, entries, plain
from uqbench.config.renamed import ADDED, added_argument, present_name
from uqbench.errors import ConfigError

# Where the class of a `_target_` may come from. Only the environment adds to it: a config that could extend its own
# trust would have none.
TRUSTED = ("uqbench",)
TRUSTED_VARIABLE = "UQBENCH_TRUSTED"

# What a slot of a config accepts, by the last part of its dotted name: public classes derived from this one. Nodes
# inside of a slot are arguments of its class, whose annotations say what they accept.
SLOTS = {
    "dataset": "uqbench.data.sources.base.Dataset",
    "backbone": "uqbench.models.blocks.Backbone",
    "uq": "uqbench.uq.base.UQMethod",
    "calibration": "uqbench.uq.calibration.Calibrator",
    "training": "uqbench.training.settings.Training",
    "evaluation": "uqbench.evaluations.base.Evaluation",
    "oracle": "uqbench.oracles.base.Oracle",
    "acquisition": "uqbench.active.acquisition.base.Acquisition",
    "selection": "uqbench.active.selection.Selection",
    "al": "uqbench.active.loop.Loop",
}

DEPTH = 30  # of nodes within nodes; ours have four levels


def locate(target: Any, path: str = "_target_", kind: str = "builtins.object") -> type:
    """Return the public class that a `_target_` names, derived from the one called `kind`.

    The name is checked before anything is imported, and the object found once more by its own module and qualified
    name, so that `uqbench.x.os.system` is refused. Raises ConfigError.
    """
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
        raise ConfigError(f"{path}: expected the dotted name of a class, got {target!r}")
    target = present_name(target)
    require_trusted(target, target, path)
    parts = target.split(".")
    target_object = _import(parts[0], path)
    if target_object is None:
        raise ConfigError(f"{path}: no module '{parts[0]}'; is it installed?")
    for i, part in enumerate(parts[1:], start=1):
        if not hasattr(target_object, part) and isinstance(target_object, types.ModuleType):
            _import(".".join(parts[: i + 1]), path)
        if not hasattr(target_object, part):
            raise ConfigError(f"{path}: {'.'.join(parts[:i])} has no '{part}'{did_you_mean(part, dir(target_object))}")
        target_object = getattr(target_object, part)
    real_name = f"{getattr(target_object, '__module__', None)}.{getattr(target_object, '__qualname__', None)}"
    require_trusted(real_name, target, path)
    if not isinstance(target_object, type):
        raise ConfigError(f"{path}: {target} is no class")
    if kind not in map(_name, target_object.__mro__) or inspect.isabstract(target_object):
        raise ConfigError(f"{path}: {target} cannot stand here; expected a {kind.rpartition('.')[2]}")
    return target_object


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _import(name: str, path: str) -> types.ModuleType | None:
    """The module, or None when there is none; ConfigError when something that it needs is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name == name:
            return None
        raise ConfigError(f"{path}: cannot import {name}: {error}") from error


def require_trusted(name: str, target: str, path: str) -> None:
    """Raise ConfigError unless `name`, the real name of what a config calls `target`, is public and trusted."""
    if any(part.startswith("_") for part in name.split(".")):
        raise ConfigError(f"{path}: '{target}' is not trusted: {name} is no public name")
    extra = [prefix.removesuffix(".*") for prefix in re.split(r"[:,\s]+", os.environ.get(TRUSTED_VARIABLE, ""))]
    trusted = [*TRUSTED, *filter(None, extra)]
    if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in trusted):
        allowed = ", ".join(f"{prefix}.*" for prefix in trusted)
        what = f"'{target}'" if name == target else f"'{target}' (really {name})"
        raise ConfigError(f"{path}: {what} is not trusted; allowed: {allowed}; to add one set {TRUSTED_VARIABLE}")


def signature(target: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any], bool]:
    """Named parameters of a class, their resolved type annotations, and whether it takes any other keyword."""
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    names = getattr(inspect.unwrap(target.__init__), "__globals__", {})
    hints = {}
    for name, parameter in named.items():
        holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        with contextlib.suppress(NameError):  # a name imported for type checkers only: no plain type, not checked
            if parameter.annotation is not parameter.empty:
                hints |= typing.get_type_hints(holder, names, include_extras=True)
    return named, hints, any(p.kind is p.VAR_KEYWORD for p in parameters)


def build(node: DictConfig, *, slot: str | None = None, **extras: Any) -> Any:
    """Construct the object that a slot describes, nested ones first; `extras` add or replace arguments.

    slot: of a node that stands alone; by default the last part of the node's dotted name.

    All that stands below the node is checked before anything of it is constructed. Raises ConfigError for a class that
    the slot does not accept and for wrong arguments, and passes on what constructors raise.

    Example:
        >>> from omegaconf import OmegaConf
        >>> from uqbench import config
        >>> node = OmegaConf.load(config.conf_dir() / "calibration" / "affine.yaml")
        >>> type(config.build(node, slot="calibration")).__name__
        'Affine'
        >>> config.build(OmegaConf.create({"_target_": "os.system", "command": "ls"}), slot="calibration")
        Traceback (most recent call last):
        uqbench.errors.ConfigError: calibration._target_: 'os.system' is not trusted...
    """
    path = node._get_full_key(None) or slot or ""
    if "_target_" not in node:
        raise ConfigError(f"{path or 'config'}: has no _target_ and cannot be built")
    errors = value_errors(node, path) or _target_errors(node, path, SLOTS.get(slot or _last(path)))
    if errors:
        raise ConfigError("\n".join(errors))
    return _construct(node, path, extras)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _construct(node: Any, path: str, extras: Mapping[str, Any]) -> Any:
    """The object of a node that has been checked, or the plain value of one that describes none."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node
    target = locate(node._target_, f"{path}._target_")
    arguments = {str(key): _construct(node[key], f"{path}.{key}", {}) for key in node if key != "_target_"} | extras
    for name in signature(target)[0].keys() - arguments:
        with contextlib.suppress(KeyError):
            arguments[name] = added_argument(_last(path), name)
    errors = _argument_errors(target, arguments, path, required=lambda _: True)
    if errors:
        raise ConfigError("\n".join(errors))
    return target(**arguments)


def value_errors(node: Container, prefix: str) -> list[str]:
    """Values that were never given (`???`) and interpolations that lead nowhere."""
    errors = []
    for path, container, key in entries(node, prefix):
        if OmegaConf.is_missing(container, key):
            errors.append(f"{path}: no value given; add {path}=...")
            continue
        try:
            container[key]
        except OmegaConfBaseException as error:
            errors.append(f"{path}: {str(error).splitlines()[0]}")
    return errors


def target_nodes(node: Container, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """(dotted path, node) of every node with a `_target_`, at any depth, this one included."""
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    for name, child in _children(node, path):
        yield from target_nodes(child, name)


def text_of(node: DictConfig) -> str:
    """The resolved node as a text that also differs where values of different types are equal."""
    return json.dumps(plain(node))


def require_slots(cfg: DictConfig) -> None:
    """Raise one ConfigError for all classes in a config, such as a stored one, that their slots do not accept.

    Arguments are left to `build`: what an older version has written may fit parts that are not needed.
    """
    errors = value_errors(cfg, "") or errors_of_slots(cfg, "", set(), arguments=False)
    if errors:
        raise ConfigError("\n".join(errors))


def errors_of_slots(node: Container, path: str, same: set[str], *, arguments: bool = True) -> list[str]:
    """What is wrong with the objects described anywhere below a node that describes none itself.

    same: texts of nodes that have been built before and need no import.
    """
    errors = []
    for name, child in _children(node, path):
        if not isinstance(child, DictConfig) or "_target_" not in child:
            errors += errors_of_slots(child, name, same, arguments=arguments)
        elif same and text_of(child) in same:
            errors += [error for inner, one in target_nodes(child, name) for error in _trust_errors(one, inner)]
        else:
            errors += _target_errors(child, name, SLOTS.get(_last(name)), arguments=arguments)
    return errors


def _children(node: Container, path: str) -> Iterator[tuple[str, Container]]:
    """(dotted path, node) of the nodes directly below, interpolations resolved; what cannot be read is left out."""
    if path.count(".") > DEPTH:
        raise ConfigError(f"{path[:60]}...: refers to itself, or is nested more than {DEPTH} deep")
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        with contextlib.suppress(OmegaConfBaseException):  # reported by _value_errors
            child = None if OmegaConf.is_missing(node, key) else node[key]
            if isinstance(child, Container):
                yield f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}.{key}".lstrip("."), child


def _trust_errors(node: DictConfig, path: str) -> list[str]:
    """What can be said against a target that has been built before: the environment may trust it no more."""
    try:
        require_trusted(node._target_, node._target_, f"{path}._target_")
    except ConfigError as error:
        return [str(error)]
    return []


def _target_errors(node: DictConfig, path: str, kind: str | None, *, arguments: bool = True) -> list[str]:
    """What is wrong with a node that describes an object, where one of `kind` may stand, and with all below it.

    arguments: whether their names and types are checked as well.
    """
    # Missing values and interpolations that lead nowhere are reported by value_errors.
    if OmegaConf.is_missing(node, "_target_") or not _readable(node, "_target_"):
        return []
    if kind is None:
        return [f"{path}._target_: '{node._target_}' cannot stand here, only in {', '.join(SLOTS)}"]
    try:
        target = locate(node._target_, f"{path}._target_", kind)
    except ConfigError as error:
        return [str(error)]
    _, hints, _ = signature(target)
    errors = []
    if arguments:
        keys = {str(key): None for key in node if key != "_target_"}
        # Arguments that no YAML can express (tensors, other objects) are handed over in code, so build() checks them.
        slot = _last(path)
        plain_names = {name for name, kind in hints.items() if is_plain(kind) and f"{slot}.{name}" not in ADDED}
        errors += _argument_errors(target, keys, path, required=plain_names.__contains__)
        errors += type_errors(node, hints, path)
        errors = errors or _contradictions(node, target, path)
    for name, child in _children(node, path):
        accepted = object_kind(hints.get(_last(name), Any))
        if "_target_" in child and accepted is not None:
            errors += _target_errors(child, name, SLOTS.get(_last(name), _name(accepted)), arguments=arguments)
        else:
            errors += [
                f"{inner}._target_: '{one._get_node('_target_')._value()}' cannot stand here; {name} is a plain value"
                for inner, one in target_nodes(child, name)
            ]
    return errors


def _readable(node: DictConfig, key: str) -> bool:
    try:
        node[key]
    except OmegaConfBaseException:
        return False
    return True


def _contradictions(node: DictConfig, target: type, path: str) -> list[str]:
    """What a class says, by its static method `contradictions`, of arguments that are each right alone."""
    if value_errors(node, path) or not hasattr(target, "contradictions"):
        return []
    arguments = {key: value for key, value in OmegaConf.to_container(node, resolve=True).items() if key != "_target_"}
    return [f"{path}.{line}" for line in target.contradictions(**arguments)]


def _argument_errors(
    target: Any, arguments: Mapping[str, Any], path: str, required: Callable[[str], bool]
) -> list[str]:
    parameters, _, open_ended = signature(target)
    name = _name(target)
    errors = []
    for key in arguments:
        if key not in parameters and not open_ended:
            errors.append(f"{path}.{key}: {name} takes no such argument{did_you_mean(key, parameters)}")
    for key, parameter in parameters.items():
        if key not in arguments and parameter.default is parameter.empty and required(key):
            errors.append(f"{path}.{key}: missing; {name} needs it")
    return errors


def type_errors(node: DictConfig, hints: Mapping[str, Any], path: str) -> list[str]:
    errors = []
    for key, kind in hints.items():
        if key not in node or OmegaConf.is_missing(node, key):
            continue
        try:
            value = node[key]
            value = OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
        except OmegaConfBaseException:
            continue  # reported by _value_errors
        if not matches(value, kind):
            hint = ""
            if typing.get_origin(kind) is typing.Literal and isinstance(value, str):
                hint = did_you_mean(value, map(str, typing.get_args(kind)))
            if is_huge(value):
                hint = " (more than 64 bits)"
            errors.append(f"{path}.{key}".lstrip(".") + f": expected {describe(kind)}, got {value!r}{hint}")
    return errors
