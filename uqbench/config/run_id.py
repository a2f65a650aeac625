"""What names a run: the digest of all that can change its result."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from uqbench.config.names import plain
from uqbench.config.renamed import first_name, is_as_before

# Keys that cannot change a result and so stay out of the digest; shell patterns on dotted names.
UNDIGESTED = (
    "outputs",
    "data_root",
    "*.data_root",
    "*.cache",
    "*.url",
    "*.workers",
    "*.executor",
    "*oracle.memory_gb",  # like the next two, whether there is a label, which depends on the machine, and not which one
    "*oracle.retries",
    "*oracle.max_failed",
    "training.progress",
    "training.checkpoint_seconds",
    "kernels",  # the same to rounding, like another CPU
    "hydra",
    "run",  # of evaluate: the path; the weights found there are part of the digest
)
# Keys that stay out for one command alone.
UNDIGESTED_OF = {"train": ("evaluations",)}  # of the finished model: runs of their own, with digests of their own


def digest(cfg: DictConfig) -> str:
    """SHA-256 (hex) over the canonical JSON of everything in the config that can change the result.

    Numbers count by value (1e-3 is 0.001, 2.0 is 2); UNDIGESTED and UNDIGESTED_OF are left out. Raises ConfigError.
    """
    text = json.dumps(_canonical(_of_the_command(plain(cfg)), ""), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def settings(cfg: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Return what the digest covers as plain values by dotted name; lists are values. Raises ConfigError.

    cfg: a config, or the plain content of one that is resolved, such as config.yaml of a run.
    """

    def leaves(node: dict, path: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    return dict(leaves(_canonical(_of_the_command(cfg if isinstance(cfg, dict) else plain(cfg)), ""), ""))


def _of_the_command(content: dict[str, Any]) -> dict[str, Any]:
    others = UNDIGESTED_OF.get(content.get("command"), ())
    return {key: value for key, value in content.items() if key not in others}


# One pattern for all: reports read thousands of configs.
_undigested = re.compile("|".join(map(fnmatch.translate, UNDIGESTED))).match


def _canonical(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        named = [(str(key), f"{path}.{key}".lstrip("."), item) for key, item in value.items()]
        counting = [entry for entry in named if not _undigested(entry[1]) and not is_as_before(*entry[1:])]
        return {key: _canonical(item, name) for key, name, item in counting}
    if isinstance(value, list):
        return [_canonical(item, f"{path}[]") for item in value]
    if isinstance(value, str) and path.endswith("_target_"):
        return first_name(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
