"""Launchers of sweeps. Hydra takes plugins from below its own namespace only, and imports this package at its start."""

import contextlib

# Without the extra `cluster` the one or the other is missing, which is said when it is chosen.
with contextlib.suppress(ImportError):
    from hydra_plugins.uqbench_launchers._joblib import JoblibLauncher as JoblibLauncher
with contextlib.suppress(ImportError):
    from hydra_plugins.uqbench_launchers._slurm import SlurmLauncher as SlurmLauncher
