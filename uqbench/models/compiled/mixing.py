"""PaiNN's mixing of an atom's features: Φ(b, v, w, d, g) = g_q b (v · w) + d (g_μ · w), for each atom and channel.

b, d and g_q are (M, N, F), v, w and g_μ (M, 3, N, F); products over the three components are dots. After the last layer
nothing needs μ: then there is no d and no g_μ.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from uqbench.models.compiled.choice import chosen, compiled
from uqbench.models.compiled.multilinear import Demand, Form, Gradients, Tensors, Wanted, message
from uqbench.models.compiled.native import norm

EPSILON = 1e-8


def painn_mix(b: Tensor, v: Tensor, w: Tensor, d: Tensor | None, *, wanted: Wanted) -> tuple[Tensor, Tensor | None]:
    """Return Δq = b (v · w) and Δμ = d w; without d, None for the latter.

    Args:
        b, d: (M, N, F).
        v, w: (M, 3, N, F).
        wanted: what the running backward pass differentiates by.

    Source: Schütt, Unke, Gastegger 2021, eqs 9 and 10.
    """
    arguments = (b, v, w) if d is None else (b, v, w, d)
    everything = (True,) * len(arguments)
    form = chosen(MIX_LAST if d is None else MIX, v)
    delta_q, *delta_mu = message(form, None, Demand(wanted, everything, everything), arguments)
    return delta_q, delta_mu[0] if delta_mu else None


def painn_norm(v: Tensor) -> Tensor:
    """Return sqrt(v · v + ε), (M, 3, N, F) -> (M, N, F); ε keeps the norm of a zero vector differentiable."""
    return _Norm.apply(v) if compiled(v) else (_dot(v, v) + EPSILON).sqrt()


class _Norm(Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return norm(compiled(v), v)

    @staticmethod
    def backward(ctx, g):
        return _NormPullback.apply(*ctx.saved_tensors, g)


class _NormPullback(Function):
    """g v / n(v)."""

    @staticmethod
    def forward(ctx, v, g):
        ctx.save_for_backward(v, g)
        return norm(compiled(v), v, g)

    @staticmethod
    def backward(ctx, c):
        v, g = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return norm(compiled(v), v, g, c)
        # Of the third order and above: in terms that autograd knows.
        n = (_dot(v, v) + EPSILON).sqrt()
        along = _dot(c, v) / n
        return (g / n).unsqueeze(-3) * (c - v * (along / n).unsqueeze(-3)), along


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-3)


def _message(_: None, arguments: Tensors) -> Tensors:
    b, v, w, *d = arguments
    return b * _dot(v, w), *(one.unsqueeze(-3) * w for one in d)


def _pullback(_: None, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
    b, v, w, *d = arguments
    gq, *gm = g
    gb = (gq * b).unsqueeze(-3)
    by_w = gb * v
    if d:
        by_w = by_w + d[0].unsqueeze(-3) * gm[0]
    results = gq * _dot(v, w), gb * w, by_w, *(_dot(one, w) for one in gm)
    return tuple(result if need else None for result, need in zip(results, needs, strict=True))


def _second(_: None, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]) -> Gradients:
    b, v, w, *d = arguments
    b2, v2, w2, *d2 = (
        a.new_zeros(a.shape) if cotangent is None else cotangent
        for a, cotangent in zip(arguments, cotangents, strict=True)
    )
    gq, *gm = g
    crossed = _dot(v2, w) + _dot(w2, v)
    g2, gb = (gq * b2).unsqueeze(-3), (gq * b).unsqueeze(-3)
    by_w = g2 * v + gb * v2
    if d:
        by_w = by_w + d2[0].unsqueeze(-3) * gm[0]
    results = gq * crossed, g2 * w + gb * w2, by_w, *(_dot(w2, one) for one in gm)
    by_g = (
        b2 * _dot(v, w) + b * crossed,
        *(a.unsqueeze(-3) * w2 + a2.unsqueeze(-3) * w for a, a2 in zip(d, d2, strict=True)),
    )
    return *(result if need else None for result, need in zip(results, needs, strict=True)), *by_g


# Each of the two terms lacks some of the arguments.
MIX = Form("mix", _message, _pullback, _second, affine=(0, 1, 3))
MIX_LAST = Form("mix_last", _message, _pullback, _second)
