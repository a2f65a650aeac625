"""Named random streams: one `seed` feeds every generator of a run, independently of the order of use."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit integer that depends on `seed` and on every name, and on nothing else."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the NumPy generator of the stream `names`."""
    return np.random.default_rng(derive(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return the CPU torch generator of the stream `names`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
