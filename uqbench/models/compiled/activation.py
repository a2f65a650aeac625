"""Activations whose second derivative is one pass over the data, where autograd takes about ten."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from uqbench.models.compiled.choice import compiled
from uqbench.models.compiled.native import entry


def silu(x: Tensor) -> Tensor:
    """Return x σ(x)."""
    return _Value.apply(x, 0) if compiled(x) else F.silu(x)


def shifted_softplus(x: Tensor) -> Tensor:
    """Return ln(1 + e^x) - ln 2, which is smooth and zero at zero."""
    return _Value.apply(x, 1) if compiled(x) else F.softplus(x) - math.log(2.0)


# In the order of `Activation` in layers.hpp.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "shifted_softplus": shifted_softplus}


class ActivationArguments(ctypes.Structure):
    """`ActivationArguments` of the C code."""

    _fields_ = [
        *((name, c_int64) for name in ("count", "kind", "threads")),
        *((name, c_void_p) for name in ("h", "g", "c", "value", "by_h", "by_g")),
    ]


class _Value(Function):
    @staticmethod
    def forward(ctx, h, kind):
        ctx.kind = kind
        ctx.save_for_backward(h)
        return _call(kind, ("value",), h=h)[0]

    @staticmethod
    def backward(ctx, g):
        return _Slope.apply(*ctx.saved_tensors, g, ctx.kind), None


class _Slope(Function):
    """g act'(h)."""

    @staticmethod
    def forward(ctx, h, g, kind):
        ctx.kind = kind
        ctx.save_for_backward(h, g)
        return _call(kind, ("by_h",), h=h, g=g)[0]

    @staticmethod
    def backward(ctx, c):
        h, g = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return *_call(ctx.kind, ("by_h", "by_g"), h=h, g=g, c=c), None
        # Of the third order and above: in terms that autograd knows.
        s = torch.sigmoid(h)
        both = s * (1 - s)
        if ctx.kind == 0:
            return c * g * both * (2 + h * (1 - 2 * s)), c * s * (1 + h * (1 - s)), None
        return c * g * both, c * s, None


def _call(kind: int, results: tuple[str, ...], **inputs: Tensor) -> list[Tensor]:
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    h = inputs["h"]
    made = {name: torch.empty_like(h) for name in results}
    arguments = ActivationArguments(count=h.numel(), kind=kind, threads=torch.get_num_threads())
    for name, tensor in (inputs | made).items():
        setattr(arguments, name, tensor.data_ptr())
    entry(compiled(h), "activation", h.dtype, ActivationArguments)(arguments)
    return list(made.values())
