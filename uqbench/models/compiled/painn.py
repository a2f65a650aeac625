"""PaiNN's message and mixing.

The message is the form, with W = B C,
Φ(u, B, C, z, g) = Σ_{i←j} Σ_f W_r r_j (u_ij · g_μi) + W_s s_j g_qi + W_v p_j · g_μi.

Pairs have directions u (M, P, 3) and radial bases B (M, P, K); C (M, 3, K, F) are the weights of the filters W for r, s
and v; atoms have sender features z = [r s p_x p_y p_z] (M, 5, N, F) with p = v ⊙ μ, and cotangents
g = [g_q g_x g_y g_z] (M, 4, N, F). In the first layer μ = 0: then C and z end after s.

With e = [u·g_μ, g_q, g_μ] on edges, Φ = Σ W z e block by block (W_v goes with three blocks), and its derivatives are
products of two of the three: that is all the code below does. In a chunk of m members and p pairs, filters are
(3, m, 1, p, F) and edge features (blocks, m, 2, p, F), with both directions of the pairs on axis 2. Blocks are
contiguous: strided access costs twice the time.

The mixing of an atom's features is the form Φ(b, v, w, d, g) = g_q b (v · w) + d (g_μ · w), for each atom and channel:
b, d and g_q are (M, N, F), v, w and g_μ (M, 3, N, F); products over the three components are dots. After the last layer
nothing needs μ: then there is no d and no g_μ.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import Function

from uqbench.models.compiled.choice import chosen, compiled
from uqbench.models.compiled.multilinear import Demand, Form, Gradients, Tensors, Wanted, message
from uqbench.models.compiled.native import norm
from uqbench.models.compiled.pairs import Chunk, Pairs


def painn_message(
    pairs: Pairs,
    directions: Tensor,
    basis: Tensor,
    weights: Tensor,
    scalars: Tensor,
    vectors: Tensor | None,
    *,
    wanted: Wanted,
) -> tuple[Tensor, Tensor]:
    """Sum PaiNN's messages over the neighbours of each atom.

    Args:
        pairs: the edges.
        directions: (M, P, 3) unit vectors from the first to the second atom of each pair.
        basis: (M, P, K) radial basis, times the cutoff function.
        weights: (M, 3, K, F) of the filters for r, s and v; (M, 2, K, F) for r and s in the first layer.
        scalars: (M, 2, N, F) as [r s].
        vectors: (M, 3, N, F), p = v ⊙ μ; None in the first layer, whose scalars do not depend on positions yet.
        wanted: what the running backward pass differentiates by.

    Returns:
        Δq (M, N, F) and Δμ (M, 3, N, F). Source: Schütt, Unke, Gastegger 2021, eqs 7 and 8.
    """
    arguments = directions, basis, weights, scalars
    by_positions, by_parameters = (True, True, False, vectors is not None), (False, False, True, True)
    if vectors is not None:
        arguments, by_positions, by_parameters = (*arguments, vectors), (*by_positions, True), (*by_parameters, True)
    return message(chosen(PAINN, arguments[-1]), pairs, Demand(wanted, by_positions, by_parameters), arguments)


def _message(pairs: Pairs, arguments: Tensors) -> Tensors:
    u, b, c, z = _joined(arguments)
    members, blocks, n_atoms, f = z.shape
    directed = _directed(u)
    out = z.new_zeros(members, 4, n_atoms, f)
    for chunk, senders, receivers in _rows(pairs, blocks):
        wz = _weighted(_gather(z, senders, chunk), _filters(chunk, b, c))
        _add(out, receivers, _to_receivers(wz, directed[:, chunk.members, :, chunk.pairs]))
    return out[:, 0], out[:, 1:]


def _pullback(pairs: Pairs, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
    u, b, c, z = _joined(arguments)
    g = torch.cat([g[0].unsqueeze(1), g[1]], dim=1)
    by_u, by_b, by_c, by_z = _allocate((u, b, c, z), needs)
    blocks, directed = z.shape[1], _directed(u)
    for chunk, senders, receivers in _rows(pairs, blocks):
        here = chunk.members, chunk.pairs
        e = _cotangents(g, receivers, directed[:, chunk.members, :, chunk.pairs], chunk)
        z_j, w = _gather(z, senders, chunk), _filters(chunk, b, c)
        if by_b is not None or by_c is not None:
            by_w = _by_filters(z_j, e)
            if by_b is not None:
                by_b[here] = _by_basis(by_w, c[chunk.members])
            if by_c is not None:
                by_c[chunk.members] += _by_weights(by_w, b[here])
        if by_u is not None:
            by_u[here] = _by_directions(z_j[0].mul_(w[0]), e)
        if by_z is not None:
            _add(by_z, senders, _weighted(e[:blocks], w))
    return by_u, by_b, by_c, *_parted(by_z, len(arguments))


def _second(pairs: Pairs, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]) -> Gradients:
    (u, b, c, z), (u2, b2, c2, z2) = _joined(arguments), _joined(cotangents, like=arguments)
    g = torch.cat([g[0].unsqueeze(1), g[1]], dim=1)
    by_u, by_b, by_c, by_z = _allocate((u, b, c, z), needs)
    by_g = torch.zeros_like(g)
    blocks, directed = z.shape[1], _directed(u)
    directed2 = None if u2 is None else _directed(u2)
    for chunk, senders, receivers in _rows(pairs, blocks):
        here = members, _ = chunk.members, chunk.pairs
        u_ij = directed[:, members, :, chunk.pairs]
        e = _cotangents(g, receivers, u_ij, chunk)
        z_j, w = _gather(z, senders, chunk), _filters(chunk, b, c)
        w2 = _plus(None if b2 is None else _filters(chunk, b2, c), None if c2 is None else _filters(chunk, b, c2))
        # The derivative by W, where z or u is exchanged; and by w2, the exchanged filters, in terms of b2 and c2.
        by_w = None
        if z2 is not None:
            z2_j = _gather(z2, senders, chunk)
            by_w = _by_filters(z2_j, e)
        if u2 is not None:
            u2_ij = directed2[:, members, :, chunk.pairs]
            along2, wr = _along(u2_ij, e), z_j[0] * w[0]
            by_w = torch.zeros_like(w[:, :, 0]) if by_w is None else by_w
            _add_both_directions(by_w[0], z_j[0], along2)
        by_w2 = None if w2 is None else _by_filters(z_j, e)
        if by_b is not None:
            by_b[here] = 0 if by_w is None else _by_basis(by_w, c[members])
            if c2 is not None:
                by_b[here] += _by_basis(by_w2, c2[members])
        if by_c is not None:
            if by_w is not None:
                by_c[members] += _by_weights(by_w, b[here])
            if b2 is not None:
                by_c[members] += _by_weights(by_w2, b2[here])
        # W z with W or z exchanged, and from here to the other arguments; z_j, z2_j and e are overwritten.
        wz2 = _plus(None if z2 is None else _weighted(z2_j, w), None if w2 is None else _weighted(z_j, w2))
        wz2 = torch.zeros_like(z_j) if wz2 is None else wz2
        if by_u is not None:
            by_u[here] = _by_directions(wz2[0], e)
        if by_z is not None:
            e = _weighted(e[:blocks], w2) if w2 is not None else torch.zeros_like(z_j)
            if u2 is not None:
                e[0].addcmul_(along2, w[0])
            _add(by_z, senders, e)
        delta = _to_receivers(wz2, u_ij)
        if u2 is not None:
            delta[1:].addcmul_(u2_ij, wr)
        _add(by_g, receivers, delta)
    return by_u, by_b, by_c, *_parted(by_z, len(arguments)), by_g[:, 0], by_g[:, 1:]


# Without directions the terms of s and p remain, without vectors those of r and s, and so on.
PAINN = Form("painn", _message, _pullback, _second, affine=(0, 3, 4))


def _rows(pairs: Pairs, blocks: int) -> Iterable[tuple[Chunk, Tensor, Tensor]]:
    return zip(pairs.chunks, pairs.senders(blocks), pairs.receivers(4), strict=True)


def _joined(arguments: Gradients, like: Tensors = ()) -> Gradients:
    """Return (u, b, c, z) with z = [scalars, vectors] as one tensor, or None if both are."""
    u, b, c, *z = arguments
    if all(part is None for part in z):
        return u, b, c, None
    z = [torch.zeros_like(argument) if part is None else part for part, argument in zip(z, like[3:] or z, strict=True)]
    return u, b, c, z[0].contiguous() if len(z) == 1 else torch.cat(z, dim=1)


def _parted(by_z: Tensor | None, n_arguments: int) -> Gradients:
    """Return the parts of z as they came in the arguments."""
    if n_arguments == 4:
        return (by_z,)
    return (None, None) if by_z is None else (by_z[:, :2], by_z[:, 2:])


def _allocate(arguments: Tensors, needs: tuple[bool, ...]) -> list[Tensor | None]:
    needs = *needs[:3], any(needs[3:])
    return [torch.zeros_like(a) if need else None for a, need in zip(arguments, needs, strict=True)]


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a.add_(b)


def _directed(u: Tensor) -> Tensor:
    """Return the directions of both edges of each pair, (M, P, 3) -> (3, M, 2, P, 1)."""
    return torch.stack([u, -u], dim=1).movedim(-1, 0).contiguous().unsqueeze(-1)


def _filters(chunk: Chunk, b: Tensor, c: Tensor) -> Tensor:
    """Return W = B C, (3, m, 1, p, F)."""
    return torch.matmul(b[chunk.members, None, chunk.pairs], c[chunk.members]).transpose(0, 1).unsqueeze(2)


def _gather(features: Tensor, rows: Tensor, chunk: Chunk) -> Tensor:
    f = features.shape[-1]
    return features.view(-1, f).index_select(0, rows).view(-1, *chunk.shape, f)


def _add(features: Tensor, rows: Tensor, values: Tensor) -> None:
    f = features.shape[-1]
    features.view(-1, f).index_add_(0, rows, values.view(-1, f))


def _along(u: Tensor, e: Tensor) -> Tensor:
    """Return u · g_μ."""
    return torch.mul(e[2], u[0]).addcmul_(e[3], u[1]).addcmul_(e[4], u[2])


def _cotangents(g: Tensor, rows: Tensor, u: Tensor, chunk: Chunk) -> Tensor:
    """Return e = [u·g_μ, g_q, g_μ] of the receivers."""
    f = g.shape[-1]
    e = g.new_empty(5, *chunk.shape, f)
    torch.index_select(g.view(-1, f), 0, rows, out=e[1:].view(-1, f))
    torch.mul(e[2], u[0], out=e[0]).addcmul_(e[3], u[1]).addcmul_(e[4], u[2])
    return e


def _weighted(x: Tensor, w: Tensor) -> Tensor:
    """Multiply the blocks of z or e by their filters, in place."""
    x[0].mul_(w[0])
    x[1].mul_(w[1])
    x[2:].mul_(w[2:])
    return x


def _to_receivers(wz: Tensor, u: Tensor) -> Tensor:
    """Return [q, μ] of the message from W z, overwriting it."""
    if len(wz) == 2:
        delta = wz.new_empty(4, *wz.shape[1:])
        delta[0] = wz[1]
        torch.mul(u, wz[0], out=delta[1:])
        return delta
    wz[2:].addcmul_(u, wz[0])
    return wz[1:]


def _by_filters(z: Tensor, e: Tensor) -> Tensor:
    """Return the derivative by W, z e summed over both directions of a pair, (2 or 3, m, p, F)."""
    by_w = z.new_empty(min(len(z), 3), z.shape[1], *z.shape[3:])
    torch.mul(z[:3, :, 0], e[: len(by_w), :, 0], out=by_w)
    by_w.addcmul_(z[:3, :, 1], e[: len(by_w), :, 1])
    for k in range(3, len(z)):
        _add_both_directions(by_w[2], z[k], e[k])
    return by_w


def _add_both_directions(out: Tensor, x: Tensor, y: Tensor) -> None:
    out.addcmul_(x[:, 0], y[:, 0]).addcmul_(x[:, 1], y[:, 1])


def _by_basis(by_w: Tensor, c: Tensor) -> Tensor:
    return torch.matmul(by_w.transpose(0, 1), c.mT).sum(1)


def _by_weights(by_w: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(b.mT.unsqueeze(1), by_w.transpose(0, 1))


def _by_directions(wr: Tensor, e: Tensor) -> Tensor:
    first, second = (e[2:] * wr).sum(-1).unbind(2)
    return (first - second).movedim(0, -1)


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
