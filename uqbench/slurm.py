"""What SLURM knows of jobs, by its own programs: no accounting data base is needed."""

import os
import subprocess
from collections.abc import Iterable

GONE = "GONE"  # SLURM forgets a job some minutes after its end
UNKNOWN = "UNKNOWN"  # there is no answer, as while its controller is busy or away
ENDED = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "REVOKED", GONE),
}


def own_job() -> str | None:
    """The id of the SLURM job that this process belongs to."""
    return os.environ.get("SLURM_JOB_ID")


def states(ids: Iterable[str]) -> list[str]:
    """The state of each job of this user, such as `12` or `12_3` of an array, in SLURM's words or one of the above."""
    lines = _ask("--me", "--array", "--format=%i %T")
    known = dict(line.split() for line in lines or ())
    return [UNKNOWN if lines is None else known.get(job, GONE) for job in ids]


def state(job: str) -> str:
    """The state of one job of anybody, by the number that it has as SLURM_JOB_ID."""
    lines = _ask(f"--jobs={job}", "--format=%T")
    return UNKNOWN if lines is None else next(iter(lines), GONE)


def _ask(*options: str) -> list[str] | None:
    try:
        query = ["squeue", "--noheader", "--states=all", *options]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if "Invalid job id" in answer.stderr:  # one that has long ended
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else None
