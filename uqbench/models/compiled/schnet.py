"""SchNet's continuous-filter convolution: Φ(W, z, g) = Σ_{i←j} Σ_f W_ij z_j g_i.

Filters W (M, P, F) belong to pairs, sender features z and cotangents g (M, N, F) to atoms. In a chunk of m members and
p pairs, filters are (m, 1, p, F) and gathered features (m, 2, p, F), with both directions of the pairs on axis 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uqbench.models.compiled.choice import chosen
from uqbench.models.compiled.multilinear import Demand, Form, Gradients, Tensors, Wanted, message
from uqbench.models.compiled.pairs import Pairs


def schnet_message(pairs: Pairs, filters: Tensor, features: Tensor, *, wanted: Wanted, first: bool) -> Tensor:
    """Sum SchNet's messages over the neighbours of each atom.

    Args:
        pairs: the edges.
        filters: (M, P, F).
        features: (M, N, F) of the senders.
        wanted: what the running backward pass differentiates by.
        first: whether the features are still independent of the positions.

    Returns:
        (M, N, F). Source: Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 5.
    """
    demand = Demand(wanted, by_positions=(True, not first), by_parameters=(True, True))
    (result,) = message(chosen(SCHNET, features), pairs, demand, (filters, features))
    return result


def _message(pairs: Pairs, arguments: Tensors) -> Tensors:
    w, z = arguments
    out = z.new_zeros(z.shape)  # contiguous, whatever z is
    for chunk, senders, receivers in zip(pairs.chunks, pairs.senders(1), pairs.receivers(1), strict=True):
        z_j = _gather(z, senders).view(*chunk.shape, -1)
        z_j.mul_(w[chunk.members, None, chunk.pairs])
        _add(out, receivers, z_j)
    return (out,)


def _pullback(pairs: Pairs, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
    (w, z), (g,) = arguments, g
    by_w = torch.empty_like(w) if needs[0] else None
    by_z = z.new_zeros(z.shape) if needs[1] else None
    for chunk, senders, receivers in zip(pairs.chunks, pairs.senders(1), pairs.receivers(1), strict=True):
        g_i = _gather(g, receivers).view(*chunk.shape, -1)
        if by_w is not None:
            z_j = _gather(z, senders).view_as(g_i)
            _both_directions(z_j, g_i, by_w[chunk.members, chunk.pairs])
        if by_z is not None:
            _add(by_z, senders, g_i.mul_(w[chunk.members, None, chunk.pairs]))
    return by_w, by_z


def _second(pairs: Pairs, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]) -> Gradients:
    (w, z), (g,), (w2, z2) = arguments, g, cotangents
    by_w = torch.empty_like(w) if needs[0] and z2 is not None else None
    by_z = z.new_zeros(z.shape) if needs[1] and w2 is not None else None
    by_g = g.new_zeros(g.shape)
    for chunk, senders, receivers in zip(pairs.chunks, pairs.senders(1), pairs.receivers(1), strict=True):
        here = chunk.members, None, chunk.pairs
        g_i = _gather(g, receivers).view(*chunk.shape, -1)
        sums = torch.zeros_like(g_i)
        if z2 is not None:
            z2_j = _gather(z2, senders).view_as(g_i)
            if by_w is not None:
                _both_directions(z2_j, g_i, by_w[chunk.members, chunk.pairs])
            sums.addcmul_(z2_j, w[here])
        if w2 is not None:
            sums.addcmul_(_gather(z, senders).view_as(g_i), w2[here])
            if by_z is not None:
                _add(by_z, senders, g_i.mul_(w2[here]))
        _add(by_g, receivers, sums)
    return by_w, by_z, by_g


def _gather(features: Tensor, rows: Tensor) -> Tensor:
    return features.reshape(-1, features.shape[-1]).index_select(0, rows)


def _add(features: Tensor, rows: Tensor, values: Tensor) -> None:
    width = features.shape[-1]
    features.view(-1, width).index_add_(0, rows, values.view(-1, width))


def _both_directions(x: Tensor, y: Tensor, out: Tensor) -> None:
    """Write x · y, summed over the two directions of each pair, (m, 2, p, F) -> (m, p, F)."""
    torch.mul(x[:, 0], y[:, 0], out=out).addcmul_(x[:, 1], y[:, 1])


SCHNET = Form("schnet", _message, _pullback, _second)
