"""Multilinear forms as differentiable functions.

A message is the derivative of a scalar form Φ(a_1, ..., a_n, g), linear in each argument, with respect to the
cotangents g of its results. Its pullback is the derivative with respect to the other arguments; the derivatives of that
pullback are again messages and pullbacks with one argument exchanged for its cotangent. So two functions give exact
derivatives of every order: forces (first), training and adversarial attacks (second), training on attacks (third). A
third function only fuses the terms of the second order, which every training step needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Tensors = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """A multilinear form Φ of arguments a and cotangents g, by its derivatives; `graph` says who is summed over.

    Attributes:
        name: the same for all bodies of a form.
        message: (graph, a) -> ∂Φ/∂g, one result for each g.
        pullback: (graph, a, g, needs) -> ∂Φ/∂a_k for each argument; None where `needs[k]` is false.
        second: (graph, a, g, cotangents, needs) -> derivatives by each argument (None as above) and by each g of the
            sum over k of Φ with cotangents[k] in place of a_k; a cotangent may be None.
        affine: arguments in which Φ is linear only up to a part without them: then "Φ with x in place of a_k" stands
            for the difference to Φ with 0 in its place.
    """

    name: str
    message: Callable[[Any, Tensors], Tensors]
    pullback: Callable[[Any, Tensors, Tensors, tuple[bool, ...]], Gradients]
    second: Callable[[Any, Tensors, Tensors, Gradients, tuple[bool, ...]], Gradients]
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
        before = self.positions, self.parameters
        self.positions, self.parameters = True, False
        try:
            yield
        finally:
            self.positions, self.parameters = before


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

    @classmethod
    def everything(cls, n_arguments: int) -> Demand:
        """Return a demand for the gradients of all arguments in every pass."""
        return cls(Wanted(), (True,) * n_arguments, (True,) * n_arguments)


def message(form: Form, graph: Any, demand: Demand, arguments: Tensors) -> Tensors:
    """Return ∂Φ/∂g at the arguments, differentiable to any order."""
    return _Message.apply(form, graph, demand, *arguments)


class _Message(Function):
    @staticmethod
    def forward(ctx, form, graph, demand, *arguments):
        ctx.form, ctx.graph, ctx.demand = form, graph, demand
        ctx.save_for_backward(*arguments)
        return form.message(graph, arguments)

    @staticmethod
    def backward(ctx, *g):
        needs = ctx.demand.needs(ctx.needs_input_grad[3:])
        grads = _Pullback.apply(ctx.form, ctx.graph, ctx.demand, needs, len(g), *g, *ctx.saved_tensors)
        return None, None, None, *grads


class _Pullback(Function):
    @staticmethod
    def forward(ctx, form, graph, demand, needs, n_results, *g_and_arguments):
        ctx.form, ctx.graph, ctx.demand, ctx.n_results = form, graph, demand, n_results
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*g_and_arguments)
        return form.pullback(graph, g_and_arguments[n_results:], g_and_arguments[:n_results], needs)

    @staticmethod
    def backward(ctx, *cotangents):
        g, arguments = ctx.saved_tensors[: ctx.n_results], ctx.saved_tensors[ctx.n_results :]
        needs = ctx.demand.needs(ctx.needs_input_grad[5 + ctx.n_results :])
        if torch.is_grad_enabled():
            grads = _differentiable_second(ctx.form, ctx.graph, arguments, g, cotangents, needs)
        else:
            grads = ctx.form.second(ctx.graph, arguments, g, cotangents, needs)
        return None, None, None, None, None, *grads[len(arguments) :], *grads[: len(arguments)]


def _differentiable_second(
    form: Form, graph: Any, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]
) -> Gradients:
    """Compute `Form.second` from messages and pullbacks, for derivatives of the third order and above."""
    # The cotangents come from a loss: they may depend on anything.
    demand = Demand.everything(len(arguments))
    total: list[Tensor | None] = [None] * (len(arguments) + len(g))
    for k, cotangent in enumerate(cotangents):
        if cotangent is None:
            continue
        others = tuple(need and slot != k for slot, need in enumerate(needs))
        for value, sign in [(cotangent, 1), (torch.zeros_like(cotangent), -1)][: 2 if k in form.affine else 1]:
            exchanged = *arguments[:k], value, *arguments[k + 1 :]
            terms = [
                *_Pullback.apply(form, graph, demand, others, len(g), *g, *exchanged),
                *_Message.apply(form, graph, demand, *exchanged),
            ]
            total = [b if a is None else a if b is None else a + sign * b for a, b in zip(total, terms, strict=True)]
    return tuple(total)
