"""The message passing of PaiNN and SchNet as multilinear forms, with exact derivatives of every order.

A message is the derivative of a scalar form Φ(a, b, ..., g), linear in each argument, with respect to the cotangent g
of the receiving atoms. Every derivative of a message is again a derivative of Φ with one argument exchanged, so one
small function per argument is enough for forces (first order), training (second) and attacks (third), and nothing of
size (E, 3, features) is kept for the backward pass. A faster body need only replace the functions in a `Form`.

Inside a form, atoms or edges are on axis 0 and channels on axis 1. Members of an ensemble are disjoint graphs there:
member m owns the atoms m·N … (m + 1)·N - 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function


@dataclasses.dataclass(frozen=True)
class Form:
    """A multilinear form by its partial derivatives; partials[k] takes all arguments but the k-th.

    Each is called as partial(receivers, senders, *arguments) with index tensors (E,).
    """

    partials: tuple[Callable[..., Tensor], ...]

    def partial(self, slot: int, receivers: Tensor, senders: Tensor, *others: Tensor) -> Tensor:
        """Return the derivative of the form by its argument `slot`, itself differentiable to any order."""
        return _Partial.apply(self, slot, receivers, senders, *others)


class _Partial(Function):
    @staticmethod
    def forward(ctx, form, slot, receivers, senders, *others):
        ctx.form, ctx.slot = form, slot
        ctx.save_for_backward(receivers, senders, *others)
        return form.partials[slot](receivers, senders, *others)

    @staticmethod
    def backward(ctx, cotangent):
        receivers, senders, *arguments = ctx.saved_tensors
        arguments.insert(ctx.slot, cotangent.contiguous())
        grads = []
        for slot, wanted in zip(
            (k for k in range(len(arguments)) if k != ctx.slot), ctx.needs_input_grad[4:], strict=True
        ):
            others = arguments[:slot] + arguments[slot + 1 :]
            grads.append(ctx.form.partial(slot, receivers, senders, *others) if wanted else None)
        return None, None, None, None, *grads


def _sum_to(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, values.shape[1]).index_add_(0, index, values)


# SchNet: Φ(W, z, g) = Σ_{i←j} W_ij · (z_j ⊙ g_i) with filters W (E, F), sender features z (N, F), cotangents g (N, F).


def _schnet_by_filters(receivers: Tensor, senders: Tensor, z: Tensor, g: Tensor) -> Tensor:
    return z.index_select(0, senders).mul_(g.index_select(0, receivers))


def _schnet_by_senders(receivers: Tensor, senders: Tensor, w: Tensor, g: Tensor) -> Tensor:
    return _sum_to(g.index_select(0, receivers).mul_(w), senders, len(g))


def _schnet_by_receivers(receivers: Tensor, senders: Tensor, w: Tensor, z: Tensor) -> Tensor:
    return _sum_to(z.index_select(0, senders).mul_(w), receivers, len(z))


SCHNET = Form((_schnet_by_filters, _schnet_by_senders, _schnet_by_receivers))

# PaiNN: Φ(u, W, z, g) = Σ_{i←j} Σ_f  W_r r_j (u_ij · g_μi) + W_s s_j g_qi + W_v p_j · g_μi
#   u (E, 3) directions; W = [W_r W_s W_v] (E, 3F) filters;
#   z = [r s p_x p_y p_z] (N, 5F) sender features with p = v ⊙ μ; g = [g_q g_x g_y g_z] (N, 4F) cotangents.
# In the first layer μ = 0: then W = [W_r W_s] and z = [r s], and the terms of W_v are left out.


def _vectors(x: Tensor) -> Tensor:
    """View the last three of the channel blocks of (E, kF) as (E, 3, F)."""
    return x.unflatten(1, (3, -1))


def _along(u: Tensor, g_mu: Tensor) -> Tensor:
    """Return u · g_μ, (E, 3) and (E, 3F) -> (E, F); batched matrix products of this size are slow."""
    x, y, z = g_mu.chunk(3, dim=1)
    return (x * u[:, :1]).addcmul_(y, u[:, 1:2]).addcmul_(z, u[:, 2:])


def _painn_by_directions(receivers: Tensor, senders: Tensor, w: Tensor, z: Tensor, g: Tensor) -> Tensor:
    f = g.shape[1] // 4
    carried = z[:, :f].index_select(0, senders).mul_(w[:, :f])
    g_mu = _vectors(g[:, f:].index_select(0, receivers))
    return g_mu.mul_(carried.unsqueeze(1)).sum(2)


def _painn_by_filters(receivers: Tensor, senders: Tensor, u: Tensor, z: Tensor, g: Tensor) -> Tensor:
    f = g.shape[1] // 4
    z_edge, g_edge = z.index_select(0, senders), g.index_select(0, receivers)
    along = _along(u, g_edge[:, f:])
    by_r_and_s = z_edge[:, : 2 * f].mul_(torch.cat([along, g_edge[:, :f]], dim=1))
    if z.shape[1] == 2 * f:
        return by_r_and_s
    by_v = _vectors(z_edge[:, 2 * f :]).mul_(_vectors(g_edge[:, f:])).sum(1)
    return torch.cat([by_r_and_s, by_v], dim=1)


def _painn_by_senders(receivers: Tensor, senders: Tensor, u: Tensor, w: Tensor, g: Tensor) -> Tensor:
    f = g.shape[1] // 4
    g_edge = g.index_select(0, receivers)
    by_r = _sum_to(_along(u, g_edge[:, f:]).mul_(w[:, :f]), senders, len(g))
    if w.shape[1] == 2 * f:
        return torch.cat([by_r, _sum_to(g_edge[:, :f].mul(w[:, f:]), senders, len(g))], dim=1)
    g_edge[:, :f].mul_(w[:, f : 2 * f])
    _vectors(g_edge[:, f:]).mul_(w[:, 2 * f :].unsqueeze(1))
    return torch.cat([by_r, _sum_to(g_edge, senders, len(g))], dim=1)


def _painn_by_receivers(receivers: Tensor, senders: Tensor, u: Tensor, w: Tensor, z: Tensor) -> Tensor:
    f = w.shape[1] // (2 if w.shape[1] == z.shape[1] else 3)
    carried = z[:, :f].index_select(0, senders).mul_(w[:, :f])
    if z.shape[1] == 2 * f:
        message = torch.empty(len(senders), 4 * f, dtype=z.dtype, device=z.device)
        torch.mul(z[:, f:].index_select(0, senders), w[:, f:], out=message[:, :f])
        torch.mul(u.unsqueeze(2), carried.unsqueeze(1), out=_vectors(message[:, f:]))
    else:
        message = z[:, f:].index_select(0, senders)
        message[:, :f].mul_(w[:, f : 2 * f])
        _vectors(message[:, f:]).mul_(w[:, 2 * f :].unsqueeze(1)).addcmul_(u.unsqueeze(2), carried.unsqueeze(1))
    return _sum_to(message, receivers, len(z))


PAINN = Form((_painn_by_directions, _painn_by_filters, _painn_by_senders, _painn_by_receivers))


def painn_message(receivers: Tensor, senders: Tensor, directions: Tensor, filters: Tensor, features: Tensor) -> Tensor:
    """Sum PaiNN's messages over the neighbours of each atom.

    Args:
        receivers, senders: (E,) atom indices.
        directions: (E, 3) unit vectors.
        filters: (E, 3F) as [W_r W_s W_v], or (E, 2F) without W_v where the vector features are zero.
        features: (N, 5F) as [r s p_x p_y p_z] with p = v ⊙ μ, or (N, 2F) as [r s].

    Returns:
        (N, 4F) as [Δq Δμ_x Δμ_y Δμ_z]. Source: Schütt, Unke, Gastegger 2021, eqs 7 and 8.
    """
    # The form is affine, not linear, in the directions (its W_s and W_v terms lack u), so that `_Partial` with a
    # cotangent in the place of u is wrong in second order: plain autograd until the form is mended.
    f = filters.shape[1] // (2 if filters.shape[1] == features.shape[1] else 3)
    z = features.index_select(0, senders)
    dq = z[:, f : 2 * f] * filters[:, f : 2 * f]
    dmu = directions.unsqueeze(2) * (z[:, :f] * filters[:, :f]).unsqueeze(1)
    if filters.shape[1] == 3 * f:
        dmu = dmu + _vectors(z[:, 2 * f :]) * filters[:, 2 * f :].unsqueeze(1)
    return _sum_to(torch.cat([dq, dmu.flatten(1)], dim=1), receivers, len(features))


def schnet_message(receivers: Tensor, senders: Tensor, filters: Tensor, features: Tensor) -> Tensor:
    """Sum SchNet's continuous-filter convolution over neighbours: filters (E, F), features (N, F) -> (N, F).

    Source: Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 5.
    """
    return SCHNET.partial(2, receivers, senders, filters, features)
