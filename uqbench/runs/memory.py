"""How much memory this process can still get, and whether an error says that there was none."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# Of control groups of version 2 and 1: limit, usage, and what the kernel gives back of that before it gives up.
CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
RESOURCES = {"ulimit -v": (resource.RLIMIT_AS, "VmSize"), "ulimit -d": (resource.RLIMIT_DATA, "VmData")}
# glibc's heap grows by that much at a time (`models.compiled.allocator`): so much of what is free was never touched.
PAD = 256 * 2**20
EXHAUSTED = r"can't allocate memory|not enough memory|out of memory|bad_alloc|cannot allocate memory"


@dataclasses.dataclass(frozen=True)
class Available:
    """What can still be allocated.

    Attributes:
        bytes: of memory, 0 at least.
        of: what sets the limit, in words.
    """

    bytes: int
    of: str


def available(device: str = "cpu") -> Available | None:
    """Return what this process can still get of the device's memory, by the tightest limit; None where nobody says.

    On a CPU: of the machine's memory, swap excluded, of control groups' (versions 1 and 2), and by `ulimit -v` and
    `-d`. What the process has freed and keeps counts as available.
    """
    if device.startswith("cuda"):
        torch = sys.modules["torch"]
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Available(free + unused, f"of {device}")
    limits = list(_limits())
    return min(limits, key=lambda limit: limit.bytes) if limits else None


def exhausted(error: BaseException) -> bool:
    """Return whether an error says that there was no memory, whichever library raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(EXHAUSTED, str(error), re.IGNORECASE))


def readable(size: float) -> str:
    """Return a number of bytes in MB, or GB (10⁹ bytes) from one on."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _limits() -> Iterator[Available]:
    status, freed = _fields(PROC / "self" / "status"), _freed()
    for words, (kind, used) in RESOURCES.items():
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY and used in status:
            yield Available(max(0, limit - status[used] + freed), f"under {words}")
    freed = max(0, freed - PAD)
    machine = _fields(PROC / "meminfo").get("MemAvailable")
    if machine is not None:
        yield Available(machine + freed, "of the machine")
    yield from (Available(max(0, left + freed), "of the control group") for left in _cgroups())


def _cgroups() -> Iterator[int]:
    """Yield what is left in each control group that this process belongs to, its parents included."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(CGROUP_FILES):
            limit, usage, reclaimable = CGROUP_FILES[controller]
            # In a container the path may be that outside of it, where nothing is: its own group is then the root.
            folder = CGROUPS / controller / path.lstrip("/")
            while folder.is_relative_to(CGROUPS / controller):
                try:
                    sizes = [int((folder / name).read_text(encoding="utf-8")) for name in (limit, usage)]
                except (OSError, ValueError):  # not there, or `max`
                    pass
                else:
                    yield sizes[0] - sizes[1] + _fields(folder / "memory.stat", unit=1).get(reclaimable, 0)
                folder = folder.parent


def _fields(path: Path, unit: int = 1024) -> dict[str, int]:
    """Return the sizes that a file lists by name, bytes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = [re.fullmatch(r"(\w+):?\s+(\d+)(?: kB)?", line) for line in lines]
    return {row[1]: unit * int(row[2]) for row in rows if row}


class _HeapSizes(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


def _freed() -> int:
    """Bytes that the C library keeps for this process although they were freed."""
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _HeapSizes
    return libc.mallinfo2().fordblks
