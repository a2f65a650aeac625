"""The bodies of the message functions in compiled code (`messages.cpp`), for tensors on a CPU."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from uqbench.models.compiled.multilinear import Form, Gradients, Tensors
from uqbench.models.compiled.pairs import Pairs

NAMES = {torch.float32: "float32", torch.float64: "float64"}
# Below this many pairs × channels × members, starting threads takes longer than the work.
WORTH_THREADS = 30_000


class FeatureArray(ctypes.Structure):
    """A tensor ([M, [blocks,]] rows, F) as `Features` of the C code; null where there is none."""

    _fields_ = [("data", c_void_p), ("member", c_int64), ("block", c_int64), ("atom", c_int64)]


class PainnArguments(ctypes.Structure):
    """`PainnArguments` of the C code."""

    _fields_ = [
        *((name, c_int64) for name in ("atoms", "pairs", "members", "channels", "radial", "threads")),
        *((name, c_void_p) for name in ("first", "second", "u", "b", "c")),
        *((name, FeatureArray) for name in ("s", "v", "gq", "gm")),
        *((name, c_void_p) for name in ("u2", "b2", "c2")),
        *((name, FeatureArray) for name in ("s2", "v2")),
        *((name, c_void_p) for name in ("by_u", "by_b", "by_c")),
        *((name, FeatureArray) for name in ("by_s", "by_v", "by_q", "by_m")),
    ]


class SchnetArguments(ctypes.Structure):
    """`SchnetArguments` of the C code."""

    _fields_ = [
        *((name, c_int64) for name in ("atoms", "pairs", "members", "channels", "threads")),
        *((name, c_void_p) for name in ("first", "second")),
        *((name, FeatureArray) for name in ("w", "z", "g", "w2", "z2", "by_w", "by_z", "by_g")),
    ]


class MixArguments(ctypes.Structure):
    """`MixArguments` of the C code."""

    _fields_ = [
        *((name, c_int64) for name in ("atoms", "members", "channels", "threads")),
        *((name, FeatureArray) for name in ("b", "v", "w", "d", "gq", "gm", "b2", "v2", "w2", "d2")),
        *((name, FeatureArray) for name in ("by_b", "by_v", "by_w", "by_d", "by_q", "by_m")),
    ]


def forms(library: ctypes.CDLL) -> dict[str, Form]:
    """Return all forms by name, computed by a compiled library."""
    painn, schnet, mix = Painn(library), Schnet(library), Mix(library)
    return {
        "painn": Form("painn", painn.message, painn.pullback, painn.second, affine=(0, 3, 4)),
        "schnet": Form("schnet", schnet.message, schnet.pullback, schnet.second),
        "mix": Form("mix", mix.message, mix.pullback, mix.second, affine=(0, 1, 3)),
        "mix_last": Form("mix_last", mix.message, mix.pullback, mix.second),
    }


class Painn:
    """The derivatives of PaiNN's form; arguments and results are those of `painn.PAINN`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = _functions(library, "painn", PainnArguments)
        self.width = {dtype: getattr(library, f"width_{name}")() for dtype, name in NAMES.items()}

    def message(self, pairs: Pairs, arguments: Tensors) -> Tensors:
        """Return the messages to all atoms."""
        job = _Job.on(pairs, PainnArguments(), arguments[3])
        self._given(job, arguments)
        results = self._to_receivers(job)
        job.run(self.calls["message"])
        return results

    def pullback(self, pairs: Pairs, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
        """Return the derivatives by the arguments."""
        job = _Job.on(pairs, PainnArguments(), arguments[3])
        self._given(job, arguments)
        job.features(gq=g[0], gm=g[1])
        results = self._wanted(job, arguments, needs)
        job.run(self.calls["pullback"])
        return _summed(results)

    def second(
        self, pairs: Pairs, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]
    ) -> Gradients:
        """Return the derivatives of the exchanged forms by the arguments and by g."""
        job = _Job.on(pairs, PainnArguments(), arguments[3])
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
        job, result = _Job.on(pairs, SchnetArguments(), z), z.new_empty(z.shape)
        job.features(w=w, z=z, by_g=result)
        job.run(self.calls["message"])
        return (result,)

    def pullback(self, pairs: Pairs, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
        """Return the derivatives by the arguments."""
        w, z = arguments
        results = [a.new_empty(a.shape) if need else None for a, need in zip(arguments, needs, strict=True)]
        job = _Job.on(pairs, SchnetArguments(), z)
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
        job = _Job.on(pairs, SchnetArguments(), z)
        job.features(w=w, z=z, g=g[0], w2=w2, z2=z2, by_w=by_w, by_z=by_z, by_g=by_g)
        job.run(self.calls["second"])
        return by_w, by_z, by_g


class Mix:
    """The derivatives of PaiNN's mixing; arguments and results are those of `mixing.MIX` and `mixing.MIX_LAST`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = _functions(library, "mix", MixArguments)

    def message(self, _: None, arguments: Tensors) -> Tensors:
        """Return Δq and, unless there is no d, Δμ."""
        job = self._given(arguments)
        results = self._results(job, ("by_q", "by_m"), (arguments[0], *arguments[2:3] * (len(arguments) - 3)))
        job.run(self.calls["message"])
        return results

    def pullback(self, _: None, arguments: Tensors, g: Tensors, needs: tuple[bool, ...]) -> Gradients:
        """Return the derivatives by the arguments."""
        job = self._given(arguments, g)
        results = self._results(job, ("by_b", "by_v", "by_w", "by_d"), arguments, needs)
        job.run(self.calls["pullback"])
        return results

    def second(
        self, _: None, arguments: Tensors, g: Tensors, cotangents: Gradients, needs: tuple[bool, ...]
    ) -> Gradients:
        """Return the derivatives of the exchanged forms by the arguments and by g."""
        job = self._given(arguments, g)
        cotangents = (
            torch.zeros_like(a) if cotangent is None else cotangent
            for a, cotangent in zip(arguments, cotangents, strict=True)
        )
        job.features(**dict(zip(("b2", "v2", "w2", "d2"), cotangents, strict=False)))
        results = self._results(job, ("by_b", "by_v", "by_w", "by_d"), arguments, needs)
        by_g = self._results(job, ("by_q", "by_m"), g)
        job.run(self.calls["second"])
        return *results, *by_g

    def _given(self, arguments: Tensors, g: Tensors = ()) -> _Job:
        like = arguments[0]
        job = _Job(MixArguments(), like)
        job.structure.members, job.structure.atoms, _ = like.shape
        job.structure.threads = torch.get_num_threads()
        job.features(**dict(zip(("b", "v", "w", "d"), arguments, strict=False)))
        job.features(**dict(zip(("gq", "gm"), g, strict=False)))
        return job

    def _results(self, job: _Job, names: tuple[str, ...], like: Tensors, needs: tuple[bool, ...] = ()) -> Gradients:
        needs = needs or (True,) * len(like)
        made = [one.new_empty(one.shape) if need else None for one, need in zip(like, needs, strict=True)]
        job.features(**dict(zip(names, made, strict=False)))
        return tuple(made)


def norm(library: ctypes.CDLL, v: Tensor, g: Tensor | None = None, c: Tensor | None = None) -> Tensor | Tensors:
    """Return n(v), or with g its pullback by v, or with a cotangent c too the derivatives of the latter by v and g."""
    job = _Job(MixArguments(), v)
    job.structure.members, _, job.structure.atoms, _ = v.shape
    job.structure.threads = torch.get_num_threads()
    by_n = None if g is not None and c is None else v.new_empty(v.shape[0], *v.shape[2:])
    by_v = None if g is None else v.new_empty(v.shape)
    job.features(v=v, gq=g, v2=c, by_q=by_n, by_v=by_v)
    job.run({v.dtype: entry(library, "norm", v.dtype, MixArguments)})
    return by_n if g is None else by_v if c is None else (by_v, by_n)


class _Job:
    """One call: the C structure, and the tensors that must live until it returns."""

    def __init__(self, structure: ctypes.Structure, like: Tensor) -> None:
        self.structure, self.like, self.alive = structure, like, []
        structure.channels = like.shape[-1]

    @classmethod
    def on(cls, pairs: Pairs, structure: ctypes.Structure, like: Tensor) -> _Job:
        """Begin a call that sums over pairs."""
        job = cls(structure, like)
        job.alive += [pairs.first, pairs.second]
        structure.atoms, structure.pairs, structure.members = pairs.n_atoms, len(pairs), pairs.members
        work = len(pairs) * pairs.members * like.shape[-1]
        structure.threads = torch.get_num_threads() if work > WORTH_THREADS else 1
        structure.first, structure.second = pairs.first.data_ptr(), pairs.second.data_ptr()
        return job

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
                setattr(self.structure, name, FeatureArray(tensor.data_ptr(), member, *(block or (0,)), atom))

    def run(self, calls: dict[torch.dtype, ctypes._CFuncPtr]) -> None:
        """Call the function for the dtype."""
        calls[self.like.dtype](self.structure)


@functools.cache
def entry(library: ctypes.CDLL, name: str, dtype: torch.dtype, structure: type) -> ctypes._CFuncPtr:
    """Return the C function for a dtype, which takes a pointer to `structure`; it raises MemoryError."""
    function = getattr(library, f"{name}_{NAMES[dtype]}")
    function.argtypes, function.restype, function.errcheck = [POINTER(structure)], c_int, _require_memory
    return function


def _require_memory(status: int, *_: object) -> int:
    if status:
        raise MemoryError("the compiled code found no memory for its intermediate results")
    return status


def _functions(library: ctypes.CDLL, kind: str, structure: type) -> dict[str, dict[torch.dtype, ctypes._CFuncPtr]]:
    return {
        what: {dtype: entry(library, f"{kind}_{what}", dtype, structure) for dtype in NAMES}
        for what in ("message", "pullback", "second")
    }


def _summed(results: list[Tensor | None]) -> Gradients:
    """Add up the parts of the derivatives by directions and basis."""
    by_u, by_b, *others = results
    sums = (None if parts is None else parts[0] if len(parts) == 1 else parts.sum(0) for parts in (by_u, by_b))
    return *sums, *others
