"""hydra/launcher=slurm: the jobs of a sweep as an array of SLURM, through submitit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from uqbench.runs import ownership, slurm

if TYPE_CHECKING:
    from submitit import Job

FAREWELL_S = 60.0  # what SLURM usually grants a cancelled job to end by itself, and some more


class SlurmLauncher(BaseSubmititLauncher):
    """Submits all jobs at once, waits for the end of every one, and says what became of those that were lost.

    A job that is told to stop while SLURM counts it as running (ahead of its time limit, or because another job is to
    have its place) writes its checkpoint, lets go of its run and only then asks SLURM to requeue it. submitit's own
    way, requeueing from within the signal handler, would end a training between any two instructions. A job that SLURM
    itself has ended, as scancel does, is left alone.

    Args:
        cluster: `slurm`, or `local` for processes of this machine.
        folder: of the jobs' output, on a file system that all nodes see; nobody else may be able to write to it.
        partition, account, qos: None for the cluster's own choice.
        time_min, mem_gb, cpus, gpus: of each job; memory None for the cluster's own choice.
        array_parallelism: jobs at once.
        signal_delay_s: how long before its time limit a job is told to stop.
        max_requeues: of each job.
        setup: shell commands ahead of each job.
        additional_parameters: further options of sbatch, or None.
        poll_s: seconds between looks at the queue.
    """

    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"],
        folder: str,
        partition: str | None,
        account: str | None,
        qos: str | None,
        time_min: int,
        mem_gb: float | None,
        cpus: int,
        gpus: int,
        array_parallelism: int,
        signal_delay_s: int,
        max_requeues: int,
        setup: Sequence[str],
        additional_parameters: Mapping[str, Any] | None,
        poll_s: float,
    ) -> None:
        super().__init__()
        self.cluster, self.folder, self.cpus = cluster, folder, cpus
        self.max_requeues, self.poll_s = max_requeues, poll_s
        self.umask = 0o077  # of this process, once it is known
        self.common = {
            "name": "uqbench",
            "timeout_min": time_min,
            "mem_gb": mem_gb,
            "cpus_per_task": cpus,
            "gpus_per_node": gpus or None,
        }
        self.for_slurm = {
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_qos": qos,
            "slurm_array_parallelism": array_parallelism,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_setup": list(setup) or None,
            "slurm_additional_parameters": {"requeue": True, **(additional_parameters or {})},
            # Since SLURM 22.05 srun does not take over the number of cores from its own job.
            "slurm_srun_args": [f"--cpus-per-task={cpus}"],
        }

    # ------------------------------------------------------------------------------------------------ in the job

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run one job of the sweep; called by submitit on the node."""
        from uqbench.cli.jobs import INTERRUPTED
        from uqbench.runs import signals

        os.umask(self.umask)
        os.environ.setdefault("OMP_NUM_THREADS", str(self.cpus))
        with signals.at_once(replacing=True):  # of the handlers that submitit has just set
            try:
                return super().__call__(*arguments)
            except KeyboardInterrupt:
                if self._goes_on():
                    from submitit import JobEnvironment

                    print("uqbench: told to stop; it goes on when its turn comes again", file=sys.stderr)
                    JobEnvironment()._requeue(0)
                raise SystemExit(INTERRUPTED) from None

    def _goes_on(self) -> bool:
        """Whether this job shall be requeued: SLURM counts it as running, so that nobody else has decided its end."""
        if self.cluster == "local":
            return True
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= self.max_requeues:
            print("uqbench: told to stop; it has been requeued max_requeues times", file=sys.stderr)
            return False
        return slurm.state(slurm.own_job()) == "RUNNING"

    # ---------------------------------------------------------------------------------------------- in the sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit all jobs and wait for all; on Ctrl-C cancel them and wait for their checkpoints.

        Raises ConfigError when there is no SLURM here or it does not accept the jobs.
        """
        jobs = self._submit(job_overrides, initial_job_idx)
        print(f"uqbench: {len(jobs)} jobs from {jobs[0].job_id} on; their output: {self.folder}", file=sys.stderr)
        try:
            states = self._wait(jobs)
        except KeyboardInterrupt:
            print("uqbench: cancelling the jobs and waiting for their checkpoints", file=sys.stderr)
            self._cancel(jobs)
            raise
        for number, (job, state) in enumerate(zip(jobs, states, strict=True), start=initial_job_idx):
            self._complete_record(Path(self.config.hydra.sweep.dir), number, job_overrides[number], job, state)
        return []

    def _submit(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        import submitit
        from submitit.core.utils import JobPaths

        from uqbench.errors import ConfigError

        if self.for_slurm["slurm_signal_delay_s"] >= 60 * self.common["timeout_min"]:
            raise ConfigError("hydra.launcher.signal_delay_s: must be less than time_min")
        arguments = [
            (list(overrides), "hydra.sweep.dir", number, str(number), Singleton.get_state())
            for number, overrides in enumerate(job_overrides, start=first)
        ]
        # Jobs are unpickled on the nodes; each sets the umask, which it inherits, back for its run.
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        try:
            with ownership.unshared() as self.umask:
                executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
                executor.update_parameters(**self.common, **self.for_slurm)
                slurm.make_folder(folder, "hydra/launcher=slurm", "choose another outputs=DIR")
                return executor.map_array(self, *zip(*arguments, strict=True))
        except (RuntimeError, ValueError, AssertionError, OSError) as error:
            raise ConfigError(f"hydra/launcher=slurm: {' '.join(str(error).split())}") from error

    def _wait(self, jobs: Sequence[Job]) -> list[str]:
        """The state of every job once all have ended."""
        shown, states = None, [slurm.UNKNOWN for _ in jobs]
        while True:
            before, now = states, slurm.states_of(jobs, self.cluster)
            # What SLURM has forgotten in the meantime ended in the way that it told while it knew.
            silent = {slurm.GONE, slurm.UNKNOWN}
            states = [
                old if old in slurm.ENDED and new in silent else new for old, new in zip(before, now, strict=True)
            ]
            counts = Counter("ended" if state in slurm.ENDED else state.lower() for state in states)
            if counts != shown:
                text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
                print(f"uqbench: jobs: {text}", file=sys.stderr)
            if counts["ended"] == len(jobs):
                return states
            shown = counts
            time.sleep(self.poll_s)

    def _cancel(self, jobs: Sequence[Job]) -> None:
        if self.cluster == "slurm":
            subprocess.run(["scancel", *(job.job_id for job in jobs)], check=False)
        else:
            for job in jobs:
                job.cancel()
        deadline = time.monotonic() + FAREWELL_S
        while time.monotonic() < deadline and not set(slurm.states_of(jobs, self.cluster)) <= slurm.ENDED:
            time.sleep(min(1.0, self.poll_s))

    def _complete_record(self, folder: Path, number: int, overrides: Sequence[str], job: Job, state: str) -> None:
        """Add to the record that a job has left what only SLURM knows; write it where the job was lost without one."""
        from uqbench.cli.jobs import read_record, record_path, write_record

        record = {"overrides": list(overrides), "exit_code": 1, "reasons": ["lost"], "log": None}
        if slurm.left_behind(record_path(folder, number), state):
            record = read_record(folder, number)
        if record["exit_code"] != 0:
            if record["reasons"] in (["lost"], ["interrupted"]):
                record["reasons"] = [f"{record['reasons'][0]}: job {job.job_id} ended as {state}"]
            record["log"] = record["log"] or os.path.relpath(job.paths.stderr)
        write_record(folder, number, record)
        slurm.forget(job)
