"""Which body computes a message: compiled code where it is there and verified, plain torch everywhere else."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from uqbench.errors import ConfigError
from uqbench.models.compiled.build import NoKernels, library
from uqbench.models.compiled.multilinear import Form
from uqbench.models.compiled.native import NAMES, forms
from uqbench.models.compiled.verification import kernel_error

log = logging.getLogger(__name__)

MODES = ("auto", "torch", "native")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
current = os.environ.get("UQBENCH_KERNELS", "auto")


def use(mode: str) -> str:
    """Choose the kernels of this process and return those that run on a CPU, `native` or `torch`.

    auto: native where it can be built, else torch, with a line in the log. native: raises ConfigError where it cannot.
    """
    global current
    if mode not in MODES:
        raise ConfigError(f"kernels: '{mode}' is unknown; choose one of {', '.join(MODES)}")
    current = mode
    reason = None if mode == "torch" else native_forms()[1]
    if mode == "native" and reason:
        raise ConfigError(f"kernels=native: {reason}; or take kernels=auto")
    return "torch" if mode == "torch" or reason else "native"


@contextlib.contextmanager
def using(mode: str) -> Iterator[str]:
    """Choose the kernels of a block, as `use` does; afterwards those before are taken again."""
    global current
    before = current
    try:
        yield use(mode)
    finally:
        current = before


def reset() -> None:
    """Forget the library and what was found out about it, as after a change of the environment's CXX."""
    for known in (library, native_forms, verified_form):
        known.cache_clear()


def chosen(reference: Form, like: Tensor) -> Form:
    """Return the form's body for tensors of this device and dtype, given the one in torch."""
    if current == "torch" or not like.is_cpu or like.dtype not in NAMES:
        return reference
    return verified_form(reference)


def compiled(like: Tensor) -> ctypes.CDLL | None:
    """Return the library for tensors of this device and dtype; None where torch is to be taken."""
    if current == "torch" or not like.is_cpu or like.dtype not in NAMES or native_forms()[1]:
        return None
    return library()


def scratch_peak() -> int:
    """Return the most bytes that compiled code has taken for intermediate results since the last call."""
    if current == "torch" or native_forms()[1]:
        return 0
    function = library().scratch_peak
    function.restype = ctypes.c_int64
    return function()


@functools.cache
def native_forms() -> tuple[dict[str, Form], str | None]:
    """Native bodies by the form's name, and why there are none."""
    try:
        return forms(library()), None
    except NoKernels as reason:
        log.warning("kernels in torch, which are slower: %s", reason)
        return {}, str(reason)


@functools.cache
def verified_form(reference: Form) -> Form:
    """Return the native body of a form where it is there and agrees with the one in torch, else that one."""
    body = native_forms()[0].get(reference.name, reference)
    for dtype, tolerance in TOLERANCE.items():
        error = kernel_error(body, reference, dtype)
        if not error < tolerance:
            reason = f"the native {reference.name} kernel is off by {error:.1g} in {NAMES[dtype]}"
            log.warning("kernels in torch, which are slower: %s; please report this", reason)
            return reference
    return body
