"""How much a config grows when its interpolations (`${key}`) are resolved, measured before they are."""

from __future__ import annotations

import re

from omegaconf import Container, OmegaConf
from omegaconf.base import Node

from uqbench.errors import ConfigError

LIMIT = 10_000  # values that one value may stand for; ours stand for some ten
_KEY = re.compile(r"\$\{\s*([^{}:$]+?)\s*\}")  # of another value; a resolver (${name:...}) grows into one


def require_bounded(cfg: Container) -> None:
    """Raise ConfigError where a value stands for more than LIMIT others by interpolation of interpolations.

    Interpolations that lead nowhere, or in a circle, are left to who resolves them.
    """
    sizes: dict[int, float] = {}

    def size(node: Node | None) -> float:
        if node is None:
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 1  # in a circle
            sizes[id(node)] = sum(map(size, _parts(node)), 1)
        if sizes[id(node)] > LIMIT:
            raise ConfigError(f"{node._get_full_key(None) or 'config'}: stands for more than {LIMIT} values")
        return sizes[id(node)]

    size(cfg)


def _parts(node: Node) -> list[Node | None]:
    """What a node holds: its children, or the targets of its interpolations."""
    value = node._value()
    if isinstance(value, str):
        return [_target(node, key) for key in _KEY.findall(value)]
    if isinstance(node, Container) and isinstance(value, dict | list):
        keys = range(len(value)) if isinstance(value, list) else list(value)
        return [node._get_node(key) for key in keys]
    return []


def _target(node: Node, key: str) -> Node | None:
    """The node that a key leads to, from the root or, with leading dots, the node's container; None if none."""
    names = key.lstrip(".")
    start = node._get_root() if not key.startswith(".") else node._get_parent()
    for _ in range(len(key) - len(names) - 1):
        start = start._get_parent() if start is not None else None
    for name in filter(None, re.split(r"[.\[\]]+", names)):
        if isinstance(start, Container) and isinstance(start._value(), str):  # it is an interpolation itself
            inner = _KEY.fullmatch(start._value())
            start = _target(start, inner[1]) if inner else None
        if not isinstance(start, Container) or not isinstance(start._value(), dict | list):
            return None
        if OmegaConf.is_list(start):
            start = start._get_node(int(name)) if name.isdecimal() and int(name) < len(start) else None
        else:
            start = start._get_node(name, validate_access=False)
    return start
