"""Every number of every option has a range, and values outside of it are all named at once."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from uqbench import config
from uqbench.config.annotations import describe, is_plain, json_schema, matches
from uqbench.config.slots import target_nodes
from uqbench.errors import ConfigError

CONF = config.conf_dir()
OPTIONS = [path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("experiment", "hydra")]
# Numbers of any size and sign: a charge, and ASE's index of the frames of a file.
FREE = {"charge", "index", "rows"}


def outside(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Values of the right type that a schema leaves out by its bounds alone."""
    options = schema.get("anyOf", [schema])
    for one in options:
        for bound, value in (
            ("minimum", one.get("minimum", 0) - 1),
            ("exclusiveMinimum", one.get("exclusiveMinimum", 0)),
            ("maximum", one.get("maximum", 0) + 1),
            ("exclusiveMaximum", one.get("exclusiveMaximum", 0)),
        ):
            if bound in one:
                yield value
        if one.get("type") == "array":
            yield from ([value] * max(1, one.get("minItems", 1)) for value in outside(one["items"]))
            if "minItems" in one:
                yield []
            if one.get("uniqueItems"):
                inside = {"number": 0.5, "integer": 2, "string": "Si"}[one["items"]["type"]]
                yield [inside, inside]


def numeric(schema: Mapping[str, Any]) -> bool:
    return any(
        one.get("type") in ("number", "integer") or (one.get("type") == "array" and numeric(one["items"]))
        for one in schema.get("anyOf", [schema])
    )


def arguments(node: DictConfig) -> dict[str, Any]:
    """The annotations of the plain arguments of a node."""
    _, hints, _ = config.signature(config.locate(node._target_))
    return {key: kind for key, kind in hints.items() if key in node and is_plain(kind)}


def label(path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("path", OPTIONS, ids=label)
def test_every_number_has_a_range(path):
    for inner, node in target_nodes(OmegaConf.load(path)):
        schemas = {key: json_schema(kind) for key, kind in arguments(node).items() if key not in FREE}
        free = [key for key, schema in schemas.items() if numeric(schema) and not any(True for _ in outside(schema))]
        assert free == [], inner


@pytest.mark.parametrize("path", OPTIONS, ids=label)
def test_values_outside_are_all_named_at_once_with_what_is_allowed(path):
    group, expected = path.parent.name, []
    # Neither interpolations nor what users give can be resolved without the rest of the config.
    node = OmegaConf.create(
        {key: value for key, value in OmegaConf.to_container(OmegaConf.load(path)).items() if key != "defaults"}
    )
    for inner, part in list(target_nodes(node)):
        for key, value in part.items_ex(resolve=False):
            if isinstance(value, str) and value.startswith(("?", "$")):
                part[key] = "x"
        for key, kind in arguments(part).items():
            values = [value for value in outside(json_schema(kind)) if not matches(value, kind)]
            if values:
                part[key] = values[-1]
                name = ".".join(filter(None, [group, inner, key]))
                expected.append(f"{name}: expected {describe(kind)}, got {values[-1]!r}")
    lines = []
    if expected:
        with pytest.raises(ConfigError) as caught:
            config.build(OmegaConf.create({group: node})[group])
        lines = str(caught.value).splitlines()
    assert sorted(lines) == sorted(expected)


@pytest.mark.parametrize(
    ("group", "option", "change", "line"),
    [
        ("uq", "ensemble", {"members": 3, "ddof": 3}, "uq.ddof: expected an integer < members (3), got 3"),
        ("al", "default", {"batch": 100}, "al.batch: expected an integer <= proposals"),
        ("training", "quick", {"energy_weight": 0, "force_weight": 0}, "training.energy_weight: expected a number > 0"),
        ("training", "quick", {"batch_size": 1, "devices": 2}, "training.batch_size: expected an integer >= 2"),
        ("selection", "top", {"min_distance": 2.0}, "selection.min_distance: expected a number < max_gap"),
        ("evaluation", "metrics", {"force_ranges": [1, 2]}, "evaluation.force_ranges: expected ascending numbers"),
    ],
)
def test_contradictions_are_named(group, option, change, line):
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    with pytest.raises(ConfigError) as caught:
        config.build(OmegaConf.create({group: {**node, **change}})[group])
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
