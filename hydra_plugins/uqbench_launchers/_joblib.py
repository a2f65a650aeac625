"""hydra/launcher=joblib: several jobs of a sweep at once on this machine."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_joblib_launcher import joblib_launcher


class JoblibLauncher(joblib_launcher.JoblibLauncher):
    """Runs jobs in processes that share the cores among them.

    Each process computes with cores / processes threads, unless OMP_NUM_THREADS is set: more threads than cores
    would wait for each other, and take many times as long.

    Args:
        jobs: at once; None for one on each core.
    """

    def __init__(self, *, jobs: int | None) -> None:
        super().__init__(n_jobs=jobs, pre_dispatch="n_jobs", batch_size=1)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; raises joblib's error when one of the processes is lost."""
        from joblib import cpu_count

        # No more processes than jobs, so that few jobs have more threads each.
        self.joblib["n_jobs"] = min(self.joblib["n_jobs"] or cpu_count(), len(job_overrides))
        return super().launch(job_overrides, initial_job_idx)
