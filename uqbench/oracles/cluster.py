"""The executor of an oracle on SLURM: a job for each geometry, through submitit."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqbench.errors import ConfigError, OracleError, UqbenchError
from uqbench.oracles.pool import FAULT, STARTUP_S, Answer, WorkerPool
from uqbench.oracles.worker import BROKEN
from uqbench.runs import ownership, slurm

if TYPE_CHECKING:
    from submitit import Job

CLUSTER = "slurm"
POLL_S = 2.0  # between looks at the queue
FOLDER = {"key": "oracle.executor", "remedy": "set another oracle.cache"}  # of messages about the folder


class SlurmPool:
    """Labels geometries as `WorkerPool` does, each in a SLURM job with a worker process of its own.

    Limits and crashes are thus the worker's, with the same words; the job's own time limit comes a little later.
    Partition, account and the memory of a job are sbatch's: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_MEM_PER_NODE.

    Args:
        target, settings, threads, timeout_s, memory_gb: as of `WorkerPool`.
        workers: jobs at once.
        folder: of the jobs' files, on a file system that all nodes see. Answers are unpickled from there, so nobody
            else may be able to write to it.
    """

    def __init__(
        self,
        target: str,
        settings: Mapping[str, Any],
        *,
        workers: int,
        threads: int,
        timeout_s: float,
        memory_gb: float | None,
        folder: Path,
    ) -> None:
        self.target, self.settings, self.workers, self.folder = target, dict(settings), workers, folder
        self.threads, self.timeout_s, self.memory_gb = threads, timeout_s, memory_gb

    def run(self, tasks: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Answer]]:
        """Yield (key, answer) for every (key, geometry), as they are ready; see `WorkerPool.run`."""
        executor = self._executor()
        tasks = iter(tasks)
        busy: dict[str, Job] = {}
        more = True
        try:
            while True:
                while more and len(busy) < self.workers:
                    key, geometry = next(tasks, (None, None))
                    if key is None:
                        more = False
                        break
                    busy[key] = self._submit(executor, geometry)
                if not busy:
                    return
                for key, answer in self._ready(busy):
                    slurm.forget(busy.pop(key))
                    yield key, answer
                if busy:
                    time.sleep(POLL_S)
        finally:
            for job in busy.values():
                job.cancel(check=False)
                slurm.forget(job)

    def close(self) -> None:
        """Nothing is kept between runs."""

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            advice = "pip install 'uqbench[cluster]'"
            raise ConfigError(f"oracle.executor: slurm needs submitit ({error}): {advice}") from error
        try:
            with ownership.unshared():
                executor = submitit.AutoExecutor(folder=self.folder, cluster=CLUSTER)
        except RuntimeError as error:
            raise ConfigError(f"oracle.executor: {error}") from error
        executor.update_parameters(
            name="uqbench-oracle",
            timeout_min=int((STARTUP_S + self.timeout_s) // 60) + 1,
            cpus_per_task=self.threads,
            slurm_srun_args=[f"--cpus-per-task={self.threads}"],  # since 22.05 srun does not take it over from its job
        )
        slurm.make_folder(self.folder, **FOLDER)
        return executor

    def _submit(self, executor: Any, geometry: dict[str, Any]) -> Job:
        one = {"target": self.target, "settings": self.settings, "geometry": geometry}
        limits = {"threads": self.threads, "timeout_s": self.timeout_s, "memory_gb": self.memory_gb}
        try:
            with ownership.unshared():  # which the job inherits, and so its answer
                return executor.submit(label_one, **one, **limits, path=sys.path)
        except RuntimeError as error:
            raise ConfigError(f"oracle.executor: {' '.join(str(error).split())}") from error

    def _ready(self, busy: Mapping[str, Job]) -> list[tuple[str, Answer]]:
        """The answers of jobs that have ended; of one that left none, SLURM's word for its end."""
        answers = []
        for (key, job), state in zip(busy.items(), slurm.states_of(busy.values(), CLUSTER), strict=True):
            if state not in slurm.ENDED:
                continue
            if not slurm.left_behind(job.paths.result_pickle, state):
                answers.append((key, (FAULT, f"lost: SLURM job {job.job_id} ended as {state}")))
                continue
            slurm.require_ours(job.paths.result_pickle, **FOLDER)
            try:
                kind, content = job.result()
            except RuntimeError as error:  # uqbench itself did not start there
                raise OracleError(f"oracle: a SLURM job failed; see {job.paths.stderr}") from error
            if kind == BROKEN:
                raise ConfigError(content)
            answers.append((key, (kind, content)))
        return answers


def label_one(
    target: str,
    settings: Mapping[str, Any],
    geometry: dict[str, Any],
    threads: int,
    timeout_s: float,
    memory_gb: float | None,
    path: list[str],
) -> Answer:
    """Label one geometry in the SLURM job that this is: its answer, or BROKEN and why no geometry can have one.

    `path` is where the submitting process finds modules, among them a calculator of the user's own.
    """
    sys.path += [entry for entry in path if entry not in sys.path]
    pool = WorkerPool(target, settings, workers=1, threads=threads, timeout_s=timeout_s, memory_gb=memory_gb)
    try:
        [(_, answer)] = pool.run([("", geometry)])
    except UqbenchError as error:
        return BROKEN, str(error)
    finally:
        pool.close()
    return answer
