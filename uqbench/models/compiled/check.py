"""How far a form's body is from another one on random arguments."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from uqbench.models.compiled.multilinear import Form, Tensors
from uqbench.models.compiled.pairs import Pairs

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
        found, expected = (
            (
                *form.message(pairs, arguments),
                *form.pullback(pairs, arguments, g, everything),
                *form.second(pairs, arguments, g, cotangents, everything),
            )
            for form in (body, reference)
        )
        for a, b in zip(found, expected, strict=True):
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
