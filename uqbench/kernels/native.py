"""The bodies of the message functions in compiled code (`messages.cpp`), for tensors on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int64, c_void_p

import torch
from torch import Tensor

from uqbench.kernels.multilinear import Form, Gradients, Tensors
from uqbench.kernels.pairs import Pairs

NAMES = {torch.float32: "float32", torch.float64: "float64"}
# Below this many pairs × channels × members, starting threads takes longer than the work.
WORTH_THREADS = 30_000


class Features(ctypes.Structure):
    """A tensor ([M, [blocks,]] rows, F) as `Features` of the C code; null where there is none."""

    _fields_ = [("data", c_void_p), ("member", c_int64), ("block", c_int64), ("atom", c_int64)]


class PainnArguments(ctypes.Structure):
    """`PainnArguments` of the C code."""

    _fields_ = [
        *((name, c_int64) for name in ("atoms", "pairs", "members", "channels", "radial", "threads")),
        *((name, c_void_p) for name in ("first", "second", "u", "b", "c")),
        *((name, Features) for name in ("s", "v", "gq", "gm")),
        *((name, c_void_p) for name in ("u2", "b2", "c2")),
        *((name, Features) for name in ("s2", "v2")),
        *((name, c_void_p) for name in ("by_u", "by_b", "by_c")),
        *((name, Features) for name in ("by_s", "by_v", "by_q", "by_m")),
    ]


class SchnetArguments(ctypes.Structure):
    """`SchnetArguments` of the C code."""

    _fields_ = [
        *((name, c_int64) for name in ("atoms", "pairs", "members", "channels", "threads")),
        *((name, c_void_p) for name in ("first", "second")),
        *((name, Features) for name in ("w", "z", "g", "w2", "z2", "by_w", "by_z", "by_g")),
    ]


def forms(library: ctypes.CDLL) -> dict[str, Form]:
    """Return the forms of PaiNN and SchNet by name, computed by a compiled library."""
    painn, schnet = Painn(library), Schnet(library)
    return {
        "painn": Form("painn", painn.message, painn.pullback, painn.second, affine=(0, 3, 4)),
        "schnet": Form("schnet", schnet.message, schnet.pullback, schnet.second),
    }


class Painn:
    """The derivatives of PaiNN's form; arguments and results are those of `painn.PAINN`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = _functions(library, "painn", PainnArguments)
        self.width = {dtype: getattr(library, f"width_{name}")() for dtype, name in NAMES.items()}

    def message(self, pairs: Pairs, arguments: Tensors) -> Tensors:
        """Return the messages to all atoms."""
        job = _Job(PainnArguments(), pairs, arguments[3])
        self._given(job, arguments)
        results = self._to_receivers(job)
        job.run(self.calls["message"])
        return results

    def pullback(self, pairs: Pairs, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
        """Return the derivatives by the arguments."""
        job = _Job(PainnArguments(), pairs, arguments[3])
        self._given(job, arguments)
        job.features(gq=g[0], gm=g[1])
        results = self._wanted(job, arguments, needs)
        job.run(self.calls["pullback"])
        return _summed(results)

    def second(
        self, pairs: Pairs, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]
    ) -> Gradients:
        """Return the derivatives of the exchanged forms by the arguments and by g."""
        job = _Job(PainnArguments(), pairs, arguments[3])
        self._given(job, arguments)
        u2, b2, c2, *z2 = cotangents
        if any(part is None for part in z2) and any(part is not None for part in z2):
            z2 = [torch.zeros_like(a) if part is None else part for part, a in zip(z2, arguments[3:], strict=True)]
        job.plain(u2=u2, b2=b2, c2=c2)
        job.features(gq=g[0], gm=g[1], **dict(zip(("s2", "v2"), z2, strict=False)))
        results = self._wanted(job, arguments, needs)
        by_g = self._to_receivers(job)
        job.run(self.calls["second"])
        return *_summed(results), *by_g

    def _given(self, job: _Job, arguments: Tensors) -> None:
        u, b, c, *z = arguments
        job.structure.radial = b.shape[-1]
        job.plain(u=u, b=b, c=c)
        job.features(**dict(zip(("s", "v"), z, strict=False)))

    def _to_receivers(self, job: _Job) -> Tensors:
        members, atoms, channels = job.structure.members, job.structure.atoms, job.structure.channels
        q, m = job.like.new_empty(members, atoms, channels), job.like.new_empty(members, 3, atoms, channels)
        job.features(by_q=q, by_m=m)
        return q, m

    def _wanted(self, job: _Job, arguments: Tensors, needs: tuple[bool, ...]) -> list[Tensor | None]:
        """Make room for what is needed; sums over channels come in parts, on a leading axis."""
        parts = -(-job.structure.channels // self.width[job.like.dtype])
        u, b, c, *z = arguments
        by_u, by_b = (a.new_empty(parts, *a.shape) if need else None for a, need in zip((u, b), needs, strict=False))
        by_c = torch.empty_like(c, memory_format=torch.contiguous_format) if needs[2] else None
        by_z = [a.new_empty(a.shape) if need else None for a, need in zip(z, needs[3:], strict=True)]
        job.plain(by_u=by_u, by_b=by_b, by_c=by_c)
        job.features(**dict(zip(("by_s", "by_v"), by_z, strict=False)))
        return [by_u, by_b, by_c, *by_z]


class Schnet:
    """The derivatives of SchNet's form; arguments and results are those of `schnet.SCHNET`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = _functions(library, "schnet", SchnetArguments)

    def message(self, pairs: Pairs, arguments: Tensors) -> Tensors:
        """Return the messages to all atoms."""
        w, z = arguments
        job, result = _Job(SchnetArguments(), pairs, z), z.new_empty(z.shape)
        job.features(w=w, z=z, by_g=result)
        job.run(self.calls["message"])
        return (result,)

    def pullback(self, pairs: Pairs, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
        """Return the derivatives by the arguments."""
        w, z = arguments
        results = [a.new_empty(a.shape) if need else None for a, need in zip(arguments, needs, strict=True)]
        job = _Job(SchnetArguments(), pairs, z)
        job.features(w=w, z=z, g=g[0], by_w=results[0], by_z=results[1])
        job.run(self.calls["pullback"])
        return tuple(results)

    def second(
        self, pairs: Pairs, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]
    ) -> Gradients:
        """Return the derivatives of the exchanged forms by the arguments and by g."""
        (w, z), (w2, z2) = arguments, cotangents
        by_w = w.new_empty(w.shape) if needs[0] and z2 is not None else None
        by_z = z.new_empty(z.shape) if needs[1] and w2 is not None else None
        by_g = z.new_empty(z.shape)
        job = _Job(SchnetArguments(), pairs, z)
        job.features(w=w, z=z, g=g[0], w2=w2, z2=z2, by_w=by_w, by_z=by_z, by_g=by_g)
        job.run(self.calls["second"])
        return by_w, by_z, by_g


class _Job:
    """One call: the C structure, and the tensors that must live until it returns."""

    def __init__(self, structure: ctypes.Structure, pairs: Pairs, like: Tensor) -> None:
        self.structure, self.like, self.alive = structure, like, [pairs.first, pairs.second]
        structure.atoms, structure.pairs, structure.members = pairs.n_atoms, len(pairs), pairs.members
        structure.channels = like.shape[-1]
        work = len(pairs) * pairs.members * like.shape[-1]
        structure.threads = torch.get_num_threads() if work > WORTH_THREADS else 1
        structure.first, structure.second = pairs.first.data_ptr(), pairs.second.data_ptr()

    def plain(self, **tensors: Tensor | None) -> None:
        """Pass contiguous tensors."""
        for name, tensor in tensors.items():
            if tensor is not None:
                tensor = tensor.contiguous()
                self.alive.append(tensor)
                setattr(self.structure, name, tensor.data_ptr())

    def features(self, **tensors: Tensor | None) -> None:
        """Pass tensors (M, [blocks,] rows, F) whose channels are adjacent."""
        for name, tensor in tensors.items():
            if tensor is not None:
                if tensor.stride(-1) != 1:
                    tensor = tensor.contiguous()
                self.alive.append(tensor)
                member, *block, atom, _ = tensor.stride()
                setattr(self.structure, name, Features(tensor.data_ptr(), member, *(block or (0,)), atom))

    def run(self, calls: dict[torch.dtype, ctypes._CFuncPtr]) -> None:
        """Call the function for the dtype."""
        calls[self.like.dtype](self.structure)


def _functions(library: ctypes.CDLL, kind: str, structure: type) -> dict[str, dict[torch.dtype, ctypes._CFuncPtr]]:
    found: dict[str, dict] = {}
    for what in ("message", "pullback", "second"):
        for dtype, name in NAMES.items():
            function = getattr(library, f"{kind}_{what}_{name}")
            function.argtypes, function.restype = [POINTER(structure)], None
            found.setdefault(what, {})[dtype] = function
    return found


def _summed(results: list[Tensor | None]) -> Gradients:
    """Add up the parts of the derivatives by directions and basis."""
    by_u, by_b, *others = results
    sums = (None if parts is None else parts[0] if len(parts) == 1 else parts.sum(0) for parts in (by_u, by_b))
    return *sums, *others
