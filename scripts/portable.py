"""Run the tests that compute as other CPUs would: with other instruction sets, numbers of threads, and kernels."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# What torch, MKL, oneDNN, OpenBLAS (of NumPy and SciPy) and the compiled kernels may use.
VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "UQBENCH_MARCH")
CAPABILITIES = {
    "native": (),  # whatever there is
    "default": ("default", "COMPATIBLE", "SSE41", "Prescott", "x86-64"),
    "avx2": ("avx2", "AVX2", "AVX2", "Haswell", "x86-64-v3"),
    "avx512": ("avx512", "AVX512", "AVX512_CORE", "SkylakeX", "x86-64-v4"),
}
X86 = ("default", "avx2", "avx512")  # each has what those before it have
COUNTS = ("tests", "failures", "errors", "skipped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capabilities", default=",".join(X86), help="instruction sets (default: %(default)s)")
    parser.add_argument("--threads", default="1,2", help="threads of each process (default: %(default)s)")
    parser.add_argument("--kernels", default="torch,native", help="torch, native, auto (default: %(default)s)")
    parser.add_argument("arguments", nargs="*", help="further arguments of pytest, after --")
    options = parser.parse_args()
    capabilities = options.capabilities.split(",")
    if unknown := set(capabilities) - set(CAPABILITIES):
        parser.error(f"no instruction set {', '.join(sorted(unknown))}; choose from {', '.join(CAPABILITIES)}")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        print(f"{options.capabilities} are of x86-64, and this machine is {platform.machine()}: native instead")
        capabilities = ["native"]
    best, codes = best_capability(), []
    for capability, threads, kernels in itertools.product(
        capabilities, map(int, options.threads.split(",")), options.kernels.split(",")
    ):
        name = f"{capability:7}  threads={threads}  kernels={kernels:6}"
        if capability in X86 and X86.index(capability) > best:
            print(f"{name}  not run: this CPU does not have it", flush=True)
            continue
        codes.append(run(name, environment(capability, threads, kernels), threads, options.arguments))
    if not codes:
        print("nothing was run")
    return max(codes, default=1)


def best_capability() -> int:
    """The place among `X86` of what torch finds here; that of the last where it finds more."""
    script = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"
    free = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    answer = subprocess.run([sys.executable, "-c", script], env=free, capture_output=True, text=True, check=True).stdout
    return X86.index(answer.strip()) if answer.strip() in X86 else len(X86) - 1


def environment(capability: str, threads: int, kernels: str) -> dict[str, str]:
    """The variables of a process that computes like this."""
    settings = dict(zip(VARIABLES, CAPABILITIES[capability], strict=False))
    # Threads that wait in a loop take many times as long on cores that others use as well.
    settings |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "UQBENCH_KERNELS": kernels}
    return os.environ | settings


def run(name: str, variables: dict[str, str], threads: int, arguments: list[str]) -> int:
    """Run the tests, print one line about them, and all that pytest says where one fails; returns its exit code."""
    workers = max(1, (os.cpu_count() or 1) // threads)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numerics", "-n", str(workers if workers > 1 else 0)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        counts = dict.fromkeys(COUNTS, 0)
        if report.exists():
            (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
            counts = {key: int(suite.get(key)) for key in COUNTS}
    seconds = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    if done.returncode:
        print(done.stdout)
    print(
        f"{name}  {passed} passed, {failed} failed, {counts['skipped']} skipped or expected to fail"
        f"  {seconds:.0f} s of CPU",
        flush=True,
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
