"""Compiled networks are compared with autograd once, and not used where the two disagree."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from uqbench.models.compiled.engine import Engine

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


class Verification:
    """Which compiled networks passed or failed a comparison in this process, by their dtype and what they compute.

    Args:
        what: is compared, in words.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._passed: dict[torch.dtype, set[int]] = defaultdict(set)
        self._failed: dict[torch.dtype, set[int]] = defaultdict(set)

    def passed(self, engine: Engine) -> bool:
        """Return whether a network like this one agreed."""
        return engine.key in self._passed[engine.dtype]

    def failed(self, engine: Engine) -> bool:
        """Return whether a network like this one disagreed."""
        return engine.key in self._failed[engine.dtype]

    def add(self, engine: Engine) -> None:
        """Let networks like this one pass."""
        self._passed[engine.dtype].add(engine.key)

    def check(self, engine: Engine, error: float) -> bool:
        """Return whether a network with this relative error passes, and remember it; say so if it fails.

        An error that is not finite fails, but is not remembered: autograd's own numbers may not have been finite.
        """
        if error < TOLERANCE[engine.dtype]:
            self.add(engine)
            return True
        if np.isfinite(error):
            line = "%s in torch, which is slower: %s of the compiled network are off by %.1g; please report this"
            log.warning(line, engine.sizes.kind, self.what, error)
            self._failed[engine.dtype].add(engine.key)
        return False


def relative_error(results: Sequence[Tensor], expected: Sequence[Tensor], sizes: Sequence[float]) -> float:
    """Return the largest difference of pairs of tensors, each relative to its size; NaN where one is not finite."""
    errors = [float((a - b).detach().abs().max() / size) for a, b, size in zip(results, expected, sizes, strict=True)]
    return float(np.max(errors))  # which keeps NaN


def gradient_error(results: Sequence[Tensor], expected: Sequence[Tensor], inputs: Sequence[Tensor]) -> float:
    """Return the largest difference of the gradients of a random sum of results by inputs, relative to the largest."""
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(result.shape, generator=generator, dtype=result.dtype) for result in results]
    a, b = (
        torch.autograd.grad(some, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True)
        for some in (results, expected)
    )
    return relative_error(a, b, [max(float(x.abs().max()) for x in b)] * len(b))
