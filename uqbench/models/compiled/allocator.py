"""Tuning of the C allocator: large tensors are kept and reused instead of mapped and unmapped at every step."""

from __future__ import annotations

import ctypes
import platform
import resource

from uqbench.runs.memory import PAD

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def tune() -> bool:
    """Let glibc keep freed memory in this process; returns whether it did (False on other systems).

    glibc maps every block above 32 MB afresh and unmaps it on release, so each large tensor pays for its page faults
    again and again. Where the process has a limit (ulimit -v, -d), what is asked for at a time is a small part of it:
    what is not used could be missing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    pad = min([PAD, *(limit // 64 for limit in limits if limit != resource.RLIM_INFINITY)])
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: pad}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
