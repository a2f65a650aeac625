"""YAML that somebody else may have written: read and measured before anything is built from it.

A few lines can stand for billions of values, because each alias (`*name`) repeats all that its anchor (`&name`) holds,
and what reads them takes the time that all of those take.
"""

import io
import os
from pathlib import Path

import yaml
from omegaconf import Container, OmegaConf

# libyaml reads a config in a twentieth of the time; not every build of PyYAML has it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A config of ours has 4 kB and 200 values, 5 deep; at these limits reading takes a second.
BYTES = 1 << 17
VALUES = 5000
DEPTH = 30


class Oversized(yaml.YAMLError):
    """A document that would take too long to build; says why in one line."""


def load(path: str | os.PathLike) -> Container:
    """Content of a YAML file with the rules of OmegaConf; raises what `read` and `check` raise."""
    text = read(path)
    check(text)
    return OmegaConf.load(io.StringIO(text))


def read(path: str | os.PathLike) -> str:
    """Text of a YAML file; raises OSError, ValueError where it is no UTF-8, and Oversized for more than BYTES."""
    if not Path(path).is_file():  # nothing is to be waited for, as at a pipe that nobody writes to
        raise OSError(f"{path} is not a file")
    with open(path, "rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise Oversized(f"more than {BYTES} bytes, which no config has")
    return content.decode()


def check(text: str) -> int:
    """Number of values of a document with all aliases written out.

    Raises Oversized for more than VALUES, for more than DEPTH levels, and where an alias stands within its own anchor;
    yaml.YAMLError for what is no YAML.
    """
    sizes: dict[str, int] = {}  # of what every anchor holds
    open_: list[tuple[str | None, int]] = []  # anchors of the collections around this place, and the count before each
    count = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise Oversized(f"*{event.anchor} has no complete &{event.anchor} before it")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        bound(count)
        if len(open_) > DEPTH:
            raise Oversized(f"nested more than {DEPTH} deep, which no config is")
    return count


def bound(count: int) -> None:
    """Raise Oversized for more than VALUES values."""
    if count > VALUES:
        raise Oversized(f"more than {VALUES} values, aliases (*) written out, which no config has")
