"""Tuning of the C allocator: large tensors are kept and reused instead of mapped and unmapped at every step."""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def tune() -> bool:
    """Let glibc keep freed memory in this process; returns whether it did (False on other systems).

    glibc maps every block above 32 MB afresh and unmaps it on release, so each large tensor pays for its page faults
    again and again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 256 * 2**20}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
