"""Multilinear forms as differentiable functions.

A message is the derivative of a scalar form Φ(a_1, ..., a_n, g), linear in each argument, with respect to the cotangent g
of the receiving atoms. Its pullback is the derivative with respect to the other arguments; the derivatives of that
pullback are again messages and pullbacks with one argument exchanged for its cotangent. So two functions give exact
derivatives of every order: forces (first), training and adversarial attacks (second), training on attacks (third).
A third one only fuses the terms of the second order, which every training step needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from uqbench.backbones.messages.pairs import Pairs

Gradients = tuple[Tensor | None, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """A multilinear form Φ of n arguments and a cotangent g, by its derivatives.

    Attributes:
        message: (pairs, arguments) -> ∂Φ/∂g.
        pullback: (pairs, arguments, g, needs) -> ∂Φ/∂a_k for each argument; None where `needs[k]` is false.
        second: (pairs, arguments, g, cotangents, needs) -> derivatives by each argument (None as above) and by g of
            the sum over k of Φ with cotangents[k] in place of a_k; a cotangent may be None.
        affine: arguments in which Φ is linear only up to a part without them: then "Φ with x in place of a_k" stands
            for the difference to Φ with 0 in its place.
    """

    message: Callable[[Pairs, tuple[Tensor, ...]], Tensor]
    pullback: Callable[[Pairs, tuple[Tensor, ...], Tensor, tuple[bool, ...]], Gradients]
    second: Callable[[Pairs, tuple[Tensor, ...], Tensor, Gradients, tuple[bool, ...]], Gradients]
    affine: tuple[int, ...] = ()


@dataclasses.dataclass
class Wanted:
    """What a backward pass differentiates by, set by whoever starts the pass.

    Autograd leaves out what a pass does not need, but asks a custom function for the gradients of all its arguments
    every time. The force pass needs none by parameters, and the loss pass of training none by positions: together
    nearly half of the work. The default, everything, is always right.
    """

    positions: bool = True
    parameters: bool = True

    @contextlib.contextmanager
    def only_positions(self) -> Iterator[None]:
        """Within the context, backward passes go to the positions only."""
        before, self.parameters = self.parameters, False
        try:
            yield
        finally:
            self.parameters = before


@dataclasses.dataclass(frozen=True)
class Demand:
    """Which arguments of a message can lead a backward pass to what it wants.

    Attributes:
        wanted: state of the running pass.
        by_positions, by_parameters: for each argument, whether it depends on them.
    """

    wanted: Wanted
    by_positions: tuple[bool, ...]
    by_parameters: tuple[bool, ...]

    def needs(self, differentiable: tuple[bool, ...]) -> tuple[bool, ...]:
        """Return for each argument whether its gradient is needed now."""
        wanted = self.wanted
        return tuple(
            possible and (wanted.positions and x or wanted.parameters and theta)
            for possible, x, theta in zip(differentiable, self.by_positions, self.by_parameters, strict=True)
        )


def message(form: Form, pairs: Pairs, demand: Demand, *arguments: Tensor) -> Tensor:
    """Return ∂Φ/∂g at the arguments, differentiable to any order."""
    return _Message.apply(form, pairs, demand, *(argument.contiguous() for argument in arguments))


class _Message(Function):
    @staticmethod
    def forward(ctx, form, pairs, demand, *arguments):
        ctx.form, ctx.pairs, ctx.demand = form, pairs, demand
        ctx.save_for_backward(*arguments)
        return form.message(pairs, arguments)

    @staticmethod
    def backward(ctx, g):
        needs = ctx.demand.needs(ctx.needs_input_grad[3:])
        grads = _Pullback.apply(ctx.form, ctx.pairs, ctx.demand, needs, g.contiguous(), *ctx.saved_tensors)
        return None, None, None, *grads


class _Pullback(Function):
    @staticmethod
    def forward(ctx, form, pairs, demand, needs, g, *arguments):
        ctx.form, ctx.pairs, ctx.demand = form, pairs, demand
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, *arguments)
        return form.pullback(pairs, arguments, g, needs)

    @staticmethod
    def backward(ctx, *cotangents):
        g, *arguments = ctx.saved_tensors
        cotangents = tuple(None if c is None else c.contiguous() for c in cotangents)
        needs = ctx.demand.needs(ctx.needs_input_grad[5:])
        if torch.is_grad_enabled():
            grads = _differentiable_second(ctx.form, ctx.pairs, arguments, g, cotangents, needs)
        else:
            grads = ctx.form.second(ctx.pairs, tuple(arguments), g, cotangents, needs)
        *by_arguments, by_g = grads
        return None, None, None, None, by_g, *by_arguments


def _differentiable_second(
    form: Form, pairs: Pairs, arguments: list[Tensor], g: Tensor, cotangents: Gradients, needs: tuple[bool, ...]
) -> Gradients:
    """Compute `Form.second` from messages and pullbacks, for derivatives of the third order and above."""
    # Here every argument may depend on everything: cotangents come from the loss.
    anything = Demand(Wanted(), (True,) * len(arguments), (True,) * len(arguments))
    total: list[Tensor | None] = [None] * (len(arguments) + 1)
    for k, cotangent in enumerate(cotangents):
        if cotangent is None:
            continue
        others = tuple(need and slot != k for slot, need in enumerate(needs))
        for value, sign in [(cotangent, 1), (torch.zeros_like(cotangent), -1)][: 2 if k in form.affine else 1]:
            exchanged = [*arguments[:k], value, *arguments[k + 1 :]]
            terms = [
                *_Pullback.apply(form, pairs, anything, others, g, *exchanged),
                _Message.apply(form, pairs, anything, *exchanged),
            ]
            total = [b if a is None else a if b is None else a + sign * b for a, b in zip(total, terms, strict=True)]
    return tuple(total)
