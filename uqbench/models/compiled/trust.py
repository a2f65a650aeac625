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


class Trust:
    """What is known of the compiled networks in this process, by their dtype and by what they compute.

    Args:
        what: is compared, in words.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._right: dict[torch.dtype, set[int]] = defaultdict(set)
        self._wrong: dict[torch.dtype, set[int]] = defaultdict(set)

    def right(self, engine: Engine) -> bool:
        """Return whether networks like this one were found right."""
        return engine.key in self._right[engine.dtype]

    def wrong(self, engine: Engine) -> bool:
        """Return whether networks like this one were found wrong."""
        return engine.key in self._wrong[engine.dtype]

    def add(self, engine: Engine) -> None:
        """Trust networks like this one."""
        self._right[engine.dtype].add(engine.key)

    def judge(self, engine: Engine, error: float) -> bool:
        """Return whether a network with this relative error is right, and remember it; say so if it is wrong.

        An error that is not finite is wrong, but not remembered: autograd's own numbers may not have been finite.
        """
        if error < TOLERANCE[engine.dtype]:
            self.add(engine)
            return True
        if np.isfinite(error):
            line = "%s in torch, which is slower: %s of the compiled network are off by %.1g; please report this"
            log.warning(line, engine.sizes.kind, self.what, error)
            self._wrong[engine.dtype].add(engine.key)
        return False


def difference(found: Sequence[Tensor], expected: Sequence[Tensor], sizes: Sequence[float]) -> float:
    """Return the largest difference of pairs of tensors, each relative to its size; NaN where one is not finite."""
    errors = [float((a - b).detach().abs().max() / size) for a, b, size in zip(found, expected, sizes, strict=True)]
    return float(np.max(errors))  # which keeps NaN


def gradient_difference(found: Sequence[Tensor], expected: Sequence[Tensor], inputs: Sequence[Tensor]) -> float:
    """Return the largest difference of the gradients of a random sum of results by inputs, relative to the largest."""
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(result.shape, generator=generator, dtype=result.dtype) for result in found]
    a, b = (
        torch.autograd.grad(results, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True)
        for results in (found, expected)
    )
    return difference(a, b, [max(float(x.abs().max()) for x in b)] * len(b))
