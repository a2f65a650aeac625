"""A run of active learning: its parts, its loop, its table and figures."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig

from uqbench import config
from uqbench.models import compiled
from uqbench.report.figures.curves import learning_figures
from uqbench.report.statistics.metrics import convert_units
from uqbench.runs.evaluation import open_run
from uqbench.runs.experiment import Experiment
from uqbench.runs.metrics_table import METRICS, title_of, write_metrics
from uqbench.runs.run_dir import Run
from uqbench.uq.base import require_family
from uqbench.uq.io import locate_method


def learn(cfg: DictConfig, choices: Mapping[str, str]) -> Run:
    """Bring the run of `cfg` to its end, from wherever it stands, and return it."""
    experiment = Experiment(cfg, choices)
    with open_run(cfg, "al", experiment.labels) as run:
        if run.done:
            return run
        run.update(labels=experiment.labels, choices=experiment.choices, kernels=compiled.use(cfg.kernels))
        with config.build(cfg.oracle) as oracle:
            parts = {"acquisition": config.build(cfg.acquisition), "selection": config.build(cfg.selection)}
            # Before anything is trained: it would not be proposed from.
            method = locate_method(cfg.uq)
            parts["acquisition"].check(method)
            run.update(family=require_family(method))
            loop = config.build(cfg.al, run=run, oracle=oracle, seed=cfg.seed, **parts)
            rows = loop.learn(experiment)
        write_metrics(run, rows, command="al", split="test", labels=experiment.labels)
        written = convert_units(run.read_csv(METRICS), "kcal/mol")
        for name, png in learning_figures(written, title_of(experiment.labels, "active learning")).items():
            run.write_bytes(name, png)
        run.finish()
    return run
