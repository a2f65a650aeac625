"""The compiled library of the kernels: built where a compiler is found, once per user, CPU and version."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from uqbench.errors import UqbenchError
from uqbench.runs import ownership
from uqbench.runs.files import atomic_write, locked

log = logging.getLogger(__name__)

SOURCES = sorted(Path(__file__).parent.glob("*.?pp"))
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: it would drop what NaN and infinity mean, for the whole process where the library is loaded.
FLAGS = (
    "-O3",
    f"-march={os.environ.get('UQBENCH_MARCH', 'native')}",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
)
THREADS = "-fopenmp"
TIMEOUT = 300.0  # s


class NoKernels(UqbenchError):
    """There are no compiled kernels on this machine, for the reason given."""


@functools.cache
def library() -> ctypes.CDLL:
    """Load the compiled library, after building it if need be; raises NoKernels."""
    # The OpenMP library that comes with torch has to be there first: two of them get in each other's way.
    import torch  # noqa: F401

    compiler, target = find_compiler(), library_path()
    # To load it is to run it. Its folder first: nothing is to be written where others can put links.
    weakness = _made(target.parent) or _built(compiler, target)
    if weakness is None:
        return _load(target)
    line = "building the kernels for this process alone: %s, so the code there may be somebody else's; "
    log.warning(line + "chmod go-w or delete it, or set the environment UQBENCH_CACHE", weakness)
    return _private(compiler, target.name)


def library_path() -> Path:
    """Return where the library of these sources, this compiler and this CPU is kept; raises NoKernels."""
    return _folder() / f"{_key(find_compiler())}.so"


def _private(compiler: str, name: str) -> ctypes.CDLL:
    """Build a library that only this process finds; it stays in memory when its file is gone."""
    try:
        with tempfile.TemporaryDirectory(prefix="uqbench-kernels-") as folder:
            target = Path(folder) / name
            weakness = _built(compiler, target)
            if weakness:
                raise NoKernels(f"{weakness}; set the environment TMPDIR to a folder where others cannot write")
            return _load(target)
    except OSError as error:
        raise NoKernels(f"no temporary folder ({error.strerror or error}); set the environment TMPDIR") from None


def _load(target: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NoKernels(f"{target} cannot be loaded ({error}); delete it to have it built again") from None


def find_compiler() -> str:
    """Return the path of a C++ compiler, the one of the environment's CXX if that is set; raises NoKernels."""
    named = os.environ.get("CXX")
    for name in [named] if named else COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise NoKernels(f"no C++ compiler found ({named or ', '.join(COMPILERS)}); install one, or set the environment CXX")


def _folder() -> Path:
    cache = os.environ.get("UQBENCH_CACHE")
    if cache:
        return Path(cache).expanduser().absolute() / "kernels"
    import pooch

    return Path(pooch.os_cache("uqbench")) / "kernels"


def _key(compiler: str) -> str:
    """Name of the library: another source, compiler or CPU (home folders are shared) needs another one."""
    parts = [
        *(path.read_text(encoding="utf-8") for path in SOURCES),
        *FLAGS,
        THREADS,
        _run([compiler, "--version"]),
        platform.platform(),
        _cpu(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    kinds = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith(kinds)}))


def _made(folder: Path) -> str | None:
    """Make the folder of the libraries, and say why others could decide what is in it."""
    try:
        ownership.make_folder(folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return ownership.weakness(folder)


def _built(compiler: str, target: Path) -> str | None:
    """Build a library where there is none, and say why it may be somebody else's."""
    if not target.exists():
        _build(compiler, target)
    return ownership.weakness(target)


def _build(compiler: str, target: Path) -> None:
    try:
        with locked(target):
            if not target.exists():
                log.info("building the kernels with %s (once)", compiler)
                with atomic_write(target) as path:
                    _compile(compiler, path)
                    path.chmod(0o755)  # root may build for all users of a machine
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(path: Path, error: OSError) -> NoKernels:
    return NoKernels(f"cannot write {path} ({error.strerror or error}); set the environment UQBENCH_CACHE")


def _compile(compiler: str, path: Path) -> None:
    units = [str(source) for source in SOURCES if source.suffix == ".cpp"]
    command = [compiler, *FLAGS, "-shared", *units, "-o", str(path)]
    try:
        _run([*command, THREADS])
    except NoKernels:
        # Compilers without OpenMP, as on macOS: the kernels then use one thread.
        _run(command)


def _run(command: list[str]) -> str:
    try:
        # The compiler's output shall be writable for no one else, not even before it is whole.
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, umask=0o077)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernels(f"{command[0]} did not work ({error})") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise NoKernels(f"{command[0]} ended with {done.returncode} ({last})")
    return done.stdout
