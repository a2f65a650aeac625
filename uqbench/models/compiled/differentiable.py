"""A compiled network as one differentiable function of its weights and the positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from uqbench.data.graph import Batch
from uqbench.models.compiled.engine import Engine, EngineOutput

Results = tuple[Tensor, Tensor, Tensor]


def differentiable(
    engine: Engine, result: EngineOutput, batch: Batch, weights: list[Tensor], again: Callable[[Tensor], Results]
) -> Results:
    """Return energy, forces and latents of `result` as a function of positions and weights.

    The first derivatives are the engine's; those of higher order are autograd's.

    Args:
        engine: one with a gradient.
        result: its output for the batch.
        batch: the positions may require a gradient.
        weights: as given to the engine, without those of heads other than the energy's.
        again: (positions) -> the same results in terms that autograd knows, for the weights as they are.
    """
    return _EngineFunction.apply(engine, result, batch, again, batch.positions, *weights)


class _EngineFunction(Function):
    @staticmethod
    def forward(ctx, engine, result, batch, again, positions, *weights):
        ctx.engine, ctx.batch, ctx.again = engine, batch, again
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(positions, *weights)
        return result.energy, result.forces, result.latents

    @staticmethod
    def backward(ctx, *cotangents):
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[4:]
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * (4 + len(inputs))
        if not torch.is_grad_enabled():
            weights = [w if need else None for w, need in zip(inputs[1:], needs[1:], strict=True)]
            by_positions, by_weights = ctx.engine.gradient(ctx.batch, cotangents, weights, positions=needs[0])
            return None, None, None, None, by_positions, *by_weights
        pairs = [(r, g) for r, g in zip(ctx.again(inputs[0]), cotangents, strict=True) if g is not None]
        wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
        results, given = zip(*pairs, strict=True)
        gradients = iter(torch.autograd.grad(results, wanted, given, create_graph=True, allow_unused=True))
        return None, None, None, None, *(next(gradients) if need else None for need in needs)
