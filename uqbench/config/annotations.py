"""Annotations of arguments against plain YAML values: does a value fit, and what was expected instead.

pydantic checks, strictly: no text for a number, no 4.0 for an integer, no NaN or infinity. Ranges stand in the
signature, as `PositiveInt` of pydantic or an alias below, and nowhere else.
"""

import dataclasses
import functools
import json
import os
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from annotated_types import Interval, Len
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema

_T = TypeVar("_T")

# `n_species: Supplied[int]` marks a plain argument that code hands to config.build(), so that no YAML has to list it.
Supplied = Annotated[_T, "supplied in code"]

Fraction = Annotated[float, Interval(gt=0, lt=1)]
Share = Annotated[float, Interval(ge=0, lt=1)]
UnitInterval = Annotated[float, Interval(ge=0, le=1)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_PLAIN = (bool, int, float, str, types.NoneType, Mapping, Sequence, os.PathLike)
_TYPES = {"boolean": "true or false", "integer": "an integer", "number": "a number", "string": "a string"}
_TYPES |= {"null": "null", "object": "a mapping", "array": "a list"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclasses.dataclass(frozen=True)
class _Different:
    """Marks a list that names nothing twice."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return handler(schema) | {"uniqueItems": True}

    @staticmethod
    def _check(values: list) -> list:
        if any(value in values[:k] for k, value in enumerate(values)):
            raise PydanticCustomError("different", "all different")
        return values


Different = Annotated[list[_T], Len(1), _Different()]  # at least one value, and none twice


def matches(value: Any, kind: Any) -> bool:
    """Whether a plain value (scalar, list, dict) fits an annotation; what describes an object fits where one goes."""
    if isinstance(value, dict) and "_target_" in value:
        return kind in (Any, object) or object_kind(kind) is not None  # what is built is checked as a node of its own
    adapter = _adapter(kind)
    if adapter is None or is_huge(value):
        return False
    try:
        adapter.validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def is_huge(value: Any) -> bool:
    """Whether a value is, or holds, an integer of more than 64 bits, which nothing here can count with."""
    if isinstance(value, dict | list):
        return any(map(is_huge, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 2**63


def is_plain(kind: Any) -> bool:
    """Whether the value comes from YAML: plain types only, and not marked as Supplied."""
    supplied = get_origin(kind) is Annotated and kind == Supplied[get_args(kind)[0]]
    return not supplied and kind is not object and object_kind(kind) is None


def object_kind(kind: Any) -> type | None:
    """The class of the objects that an annotation asks for, where no YAML can express them; None for plain values."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return next(filter(None, map(object_kind, get_args(kind))), None)
    if origin is Annotated:
        return object_kind(get_args(kind)[0])
    container = origin or kind
    plain = not isinstance(container, type) or container in (Any, object) or issubclass(container, _PLAIN)
    return None if plain else container


def describe(kind: Any) -> str:
    """The annotation in the words of a person who writes YAML."""
    schema = json_schema(kind)
    return f"a node with a _target_ ({object_kind(kind).__name__})" if schema is None else _words(schema)


def json_schema(kind: Any) -> Mapping[str, Any] | None:
    """The JSON schema of the plain values that fit an annotation; None where only objects fit, which are built."""
    adapter = _adapter(kind)
    return None if adapter is None else adapter.json_schema()


@functools.cache
def _adapter(kind: Any) -> TypeAdapter | None:
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if object_kind(option) is None]
        kind = Union[tuple(options)] if options else object_kind(kind)  # noqa: UP007
    return TypeAdapter(kind, config=_STRICT) if object_kind(kind) is None else None


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        # "a number" says it all for int | float.
        options = [
            one for one in schema["anyOf"] if one != {"type": "integer"} or {"type": "number"} not in schema["anyOf"]
        ]
        return " or ".join(map(_words, options))
    if "const" in schema or "enum" in schema:
        return " or ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    words = _TYPES.get(schema.get("type"), "anything") + (" (not empty)" if schema.get("minLength") else "")
    items = ", ".join(map(_words, schema.get("prefixItems") or filter(None, [schema.get("items")])))
    details = [f"{sign} {schema[bound]}" for bound, sign in _BOUNDS.items() if bound in schema]
    if schema.get("type") == "integer" and "exclusiveMinimum" in schema:
        details = [f">= {schema['exclusiveMinimum'] + 1}"]
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and least == most and "prefixItems" not in schema:
        words += f" of {least}"
    elif least and "prefixItems" not in schema:
        details.append("not empty")
    if schema.get("uniqueItems"):
        details.append("no value twice")
    return f"{words} {' and '.join(details)}".strip() if not items else f"{words} ({', '.join([items, *details])})"
