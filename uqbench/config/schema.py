"""What a command expects of its config, checked with all errors at once."""

import typing
from collections.abc import Callable
from typing import Annotated, Literal

from annotated_types import Len
from omegaconf import DictConfig
from pydantic import NonNegativeInt

from uqbench.config.names import did_you_mean
from uqbench.config.slots import errors_of_slots, target_nodes, text_of, type_errors, value_errors
from uqbench.errors import ConfigError


class Skeleton:
    """Types of the top-level keys that every command shares; a command module may extend it as its own `Skeleton`."""

    command: str
    seed: NonNegativeInt
    outputs: Annotated[str, Len(1)]
    data_root: str | None
    kernels: Literal["auto", "torch", "native"]


def validate(
    cfg: DictConfig, skeleton: type = Skeleton, built: Callable[[DictConfig], DictConfig | None] = lambda _: None
) -> None:
    """Check a composed config against the skeleton of its command and the signatures of its targets.

    built: finds for a config without other errors one that has been checked and built before. Nodes that it holds as
    well need no comparison with the signature of their target, whose import may take longer than all the rest.

    Raises one ConfigError with a line per error, each starting with the dotted path.
    """
    errors = value_errors(cfg, "")
    hints = typing.get_type_hints(skeleton, include_extras=True)
    present = [str(key) for key in cfg]  # `in` would say no for a key whose value is still ???
    errors += [f"{key}: missing{did_you_mean(key, present)}" for key in hints if key not in present]
    errors += type_errors(cfg, hints, "")
    before = None if errors else built(cfg)
    same = {text_of(node) for _, node in target_nodes(before)} if before is not None else set()
    errors += errors_of_slots(cfg, "", same)
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
