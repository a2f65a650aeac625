"""Configuration: typed checks with all errors at once, trusted construction, and the digest that names a run."""

from uqbench.config.interpolations import require_bounded
from uqbench.config.names import conf_dir, did_you_mean, flatten, nearest
from uqbench.config.run_id import digest, settings
from uqbench.config.schema import Skeleton, validate
from uqbench.config.slots import SLOTS, build, locate, require_slots, require_trusted, signature

__all__ = [
    "SLOTS",
    "Skeleton",
    "build",
    "conf_dir",
    "did_you_mean",
    "digest",
    "flatten",
    "locate",
    "nearest",
    "require_bounded",
    "require_slots",
    "require_trusted",
    "settings",
    "signature",
    "validate",
]
