"""Type annotations against plain YAML values: does a value fit, and what was expected instead."""

import math
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

_T = TypeVar("_T")

# `n_species: Supplied[int]` marks a plain argument that code hands to config.build(), so that no YAML has to list it.
Supplied = Annotated[_T, "supplied in code"]

_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", types.NoneType: "null"}
_UNIONS = (Union, types.UnionType)


def matches(value: Any, kind: Any) -> bool:
    """Whether a plain value (scalar, list, dict) fits an annotation; ones that are no class fit everything."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return matches(value, arguments[0])
    if origin in _UNIONS:
        return any(matches(value, option) for option in arguments)
    if isinstance(value, dict) and "_target_" in value:
        return kind in (Any, object) or object_kind(kind) is not None  # what is built is checked as a node of its own
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in _SCALARS:
        return isinstance(value, kind)
    container = origin or kind
    if container in (Any, object) or not isinstance(container, type):
        return True
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(matches, value, arguments))
    if issubclass(container, Mapping):
        return isinstance(value, dict) and all(matches(item, arguments[1]) for item in value.values() if arguments)
    if issubclass(container, Sequence) or container is Iterable:
        return isinstance(value, list) and all(matches(item, arguments[0]) for item in value if arguments)
    return issubclass(container, os.PathLike) and isinstance(value, str)


def is_plain(kind: Any) -> bool:
    """Whether the value comes from YAML: plain types only, and not marked as Supplied."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind != Supplied[arguments[0]] and is_plain(arguments[0])
    if origin is Literal or kind in _SCALARS or kind is Any:
        return True
    container = origin or kind
    plain = isinstance(container, type) and issubclass(container, Mapping | Sequence | os.PathLike)
    composed = plain or container is Iterable or origin in _UNIONS
    return composed and all(is_plain(item) for item in arguments if item is not Ellipsis)


def object_kind(kind: Any) -> type | None:
    """The class of the objects that an annotation asks for, where no YAML can express them; None for plain values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return object_kind(arguments[0])
    if origin in _UNIONS:
        return next(filter(None, map(object_kind, arguments)), None)
    return kind if isinstance(kind, type) and kind is not object and not is_plain(kind) else None


def describe(kind: Any) -> str:
    """The annotation in the words of a person who writes YAML."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in _UNIONS:
        # "a number" says it all for int | float, and what YAML cannot express need not be mentioned.
        plain = [option for option in arguments if is_plain(option) and not (option is int and float in arguments)]
        return " or ".join(describe(option) for option in plain or arguments)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if kind in _SCALARS:
        return _SCALARS[kind]
    container = origin or kind
    if isinstance(container, type) and issubclass(container, Mapping):
        return "a mapping"
    if container is Iterable or (isinstance(container, type) and issubclass(container, Sequence)):
        return f"a list ({', '.join(describe(item) for item in arguments if item is not Ellipsis)})".replace(" ()", "")
    if isinstance(container, type) and issubclass(container, os.PathLike):
        return "a path"
    return f"a node with a _target_ ({getattr(container, '__name__', container)})"
