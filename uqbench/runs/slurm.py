"""What SLURM knows of jobs, by its own programs: no accounting data base is needed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from uqbench.errors import ConfigError
from uqbench.runs import ownership

if TYPE_CHECKING:
    from submitit import Job

GONE = "GONE"  # SLURM forgets a job some minutes after its end
UNKNOWN = "UNKNOWN"  # there is no answer, as while its controller is busy or away
ENDED = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "REVOKED", GONE),
}
VISIBLE_S = 30.0  # until a file that another node has written shows on a network file system


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


def make_folder(folder: Path, key: str, remedy: str) -> None:
    """Make the folder of submitit's files; raises ConfigError where it cannot be, or as `require_ours` does."""
    require_ours(folder, key, remedy)
    try:
        ownership.make_folder(folder)
    except OSError as error:
        raise ConfigError(f"{key}: cannot write to {folder} ({error.strerror}); {remedy}") from error


def require_ours(path: Path, key: str, remedy: str) -> None:
    """Raise ConfigError where others could decide what is at a path that is unpickled, which runs whatever it says."""
    weakness = ownership.weakness(path)
    if weakness:
        what = f"{weakness}, so that what is unpickled from {path} may be anybody's code"
        raise ConfigError(f"{key}: {what}; chmod go-w what is yours there, or {remedy}")


def states_of(jobs: Collection[Job], cluster: str) -> list[str]:
    """The states of jobs that submitit has submitted to a cluster: `slurm`, or `local` for processes here."""
    if cluster != "local":
        return states(job.job_id for job in jobs)
    return ["RUNNING" if not job.done() else _end_of(job) for job in jobs]


def _end_of(job: Job) -> str:
    return "COMPLETED" if job.paths.result_pickle.exists() else "FAILED"


def left_behind(path: Path, state: str) -> bool:
    """Whether a job that has ended in a state has left a file, for which one that was completed is given some time."""
    deadline = time.monotonic() + (VISIBLE_S if state == "COMPLETED" else 0.0)
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    return path.exists()


def forget(job: Job) -> None:
    """Remove the files of a job that has ended, except for its output."""
    for path in (job.paths.submitted_pickle, job.paths.result_pickle, job.paths.submission_file):
        path.unlink(missing_ok=True)


def _ask(*options: str) -> list[str] | None:
    try:
        query = ["squeue", "--noheader", "--states=all", *options]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if "Invalid job id" in answer.stderr:  # one that has long ended
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else None
