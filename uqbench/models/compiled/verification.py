"""Compiled code is compared with torch once, and not used where the two disagree.

Forms are compared on random arguments, networks with autograd on what they are called with.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from uqbench.models.compiled.multilinear import Form, Tensors
from uqbench.models.compiled.network import CompiledNetwork
from uqbench.models.compiled.pairs import Pairs

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

    def passed(self, network: CompiledNetwork) -> bool:
        """Return whether a network like this one agreed."""
        return network.key in self._passed[network.dtype]

    def failed(self, network: CompiledNetwork) -> bool:
        """Return whether a network like this one disagreed."""
        return network.key in self._failed[network.dtype]

    def add(self, network: CompiledNetwork) -> None:
        """Let networks like this one pass."""
        self._passed[network.dtype].add(network.key)

    def check(self, network: CompiledNetwork, error: float) -> bool:
        """Return whether a network with this relative error passes, and remember it; say so if it fails.

        An error that is not finite fails, but is not remembered: autograd's own numbers may not have been finite.
        """
        if error < TOLERANCE[network.dtype]:
            self.add(network)
            return True
        if np.isfinite(error):
            line = "%s in torch, which is slower: %s of the compiled network are off by %.1g; please report this"
            log.warning(line, network.sizes.kind, self.what, error)
            self._failed[network.dtype].add(network.key)
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


MEMBERS, ATOMS, PAIRS, RADIAL = 2, 5, 19, 3
CHANNELS = 37  # one or more full vectors of any machine, and a rest


def kernel_error(body: Form, reference: Form, dtype: torch.dtype) -> float:
    """Return the largest difference over all derivatives up to the second, relative to the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(ATOMS, (2, PAIRS), generator=generator)
    pairs, worst = Pairs(first, second, ATOMS, MEMBERS), 0.0
    for arguments, g in _examples(reference.name, generator, dtype):
        everything = (True,) * len(arguments)
        cotangents = tuple(_random(a.shape, generator, dtype) for a in arguments)
        results, expected = (
            (
                *form.message(pairs, arguments),
                *form.pullback(pairs, arguments, g, everything),
                *form.second(pairs, arguments, g, cotangents, everything),
            )
            for form in (body, reference)
        )
        for a, b in zip(results, expected, strict=True):
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


def _examples(name: str, generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Tensors, Tensors]]:
    """Yield arguments and cotangents of the form with that name."""

    def draw(*shapes: tuple[int, ...]) -> Tensors:
        return tuple(_random((MEMBERS, *shape), generator, dtype) for shape in shapes)

    atoms = (ATOMS, CHANNELS)
    if name.startswith("mix"):
        yield (
            draw(*(atoms, (3, *atoms), (3, *atoms), atoms)[: 3 if name == "mix_last" else 4]),
            draw(*(atoms, (3, *atoms))[: 1 if name == "mix_last" else 2]),
        )
        return
    if name == "schnet":
        yield draw((PAIRS, CHANNELS), atoms), draw(atoms)
        return
    for vectors in ((), ((3, *atoms),)):
        geometry, weights = ((PAIRS, 3), (PAIRS, RADIAL)), (2 + len(vectors), RADIAL, CHANNELS)
        yield draw(*geometry, weights, (2, *atoms), *vectors), draw(atoms, (3, *atoms))


def _random(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype)
