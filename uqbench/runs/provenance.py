"""Where a result comes from: versions, source commit, machine and memory, without importing anything heavy."""

import os
import platform
import resource
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "numpy", "scipy", "pandas", "ase", "vesin", "nequip", "lightning", "hydra-core", "omegaconf")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_machine() -> dict:
    """Host, platform, cores and the versions of Python, uqbench and the packages that compute."""
    return {
        "uqbench": version("uqbench"),
        "git": git_state(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_state() -> dict | None:
    """Commit of the checkout that this package is imported from and whether files differ from it; None elsewhere."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    answers = []
    for query in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", checkout, *query], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "dirty": bool(answers[1])}


def command_line(command: str) -> str:
    """The command that repeats this job alone, also from within a sweep."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        return shlex.join(["uqbench", command, *HydraConfig.get().overrides.task])
    return shlex.join(sys.argv)


def reset_peak_memory() -> None:
    """Start the peak anew, so that a job of a sweep does not inherit its predecessor's (Linux; elsewhere nothing)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> dict[str, float]:
    """Peak resident memory of this process and, where torch runs on CUDA, of the device, in MB (10⁶ bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["peak_device_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak
