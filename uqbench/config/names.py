"""Where the YAML tree is, the entries of a config by dotted name, and what a misspelt name may have meant."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uqbench.errors import ConfigError, DataError


def conf_dir() -> Path:
    """Folder of the YAML tree: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"the configuration files are missing from {package}; install uqbench again")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known names, or nothing when none is near."""
    match = nearest(word, known)
    return f"; did you mean '{match}'?" if match else ""


def choose(word: str, known: Iterable[str], what: str) -> str:
    """Return `word` if it is among `known`; otherwise raise DataError with the nearest known word."""
    known = list(known)
    if word in known:
        return word
    raise DataError(f"unknown {what} '{word}'{did_you_mean(str(word), known)} (known: {', '.join(known)})")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known dotted name that is spelled most like `word`, also when only its leading part was left out."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    suffixes = [name for name in known if name.endswith(f".{word}")]
    return next(iter(near + suffixes), None)


def flatten(node: Container) -> list[str]:
    """Dotted names of all nodes and values under `node`, parents first."""
    return [re.sub(r"\[(\d+)\]", r".\1", path).lstrip(".") for path, _, _ in entries(node, "")]


def entries(node: Container, prefix: str) -> Iterator[tuple[str, Container, Any]]:
    """(dotted path, container, key) of every entry below a node."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        path = f"{prefix}[{key}]" if isinstance(node, ListConfig) else f"{prefix}.{key}".lstrip(".")
        yield path, node, key
        child = node._get_node(key)
        if isinstance(child, Container) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from entries(child, path)


def plain(cfg: DictConfig) -> Any:
    """Return the resolved content as plain values; raises ConfigError where a value is missing."""
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
