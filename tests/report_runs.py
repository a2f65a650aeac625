"""Finished runs as the report reads them: of trainings, evaluations and active learning, with planted values."""

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.load.runs import load_runs
from uqbench.report.statistics.comparison import compare
from uqbench.runs.metrics_table import write_metrics
from uqbench.runs.run_dir import RunDir

GENERATIONS = (1, 2)
FAMILY = {"ensemble": "ensemble", "gmm": "layer", "mve": "single"}


def row(target, metric, value, *, population="all", unit="1", n=9, **changes):
    numbers = {"value": value, "unit": unit, "n": n, "ci_low": None, "ci_high": None}
    return {"target": target, "population": population, "metric": metric} | numbers | changes


def open_run(root, command, config, labels):
    place = {key: labels[key] for key in ("dataset", "backbone", "uq", "seed")}
    return RunDir.open(root=root, command=command, config=OmegaConf.create({"command": command, **config}), **place)


def labels_of(uq, seed, dataset="toy", subset="t"):
    return {"dataset": dataset, "subset": subset, "backbone": "net", "uq": uq, "seed": seed}


def resamples(rows, noise):
    """Bootstrap values that move as `noise` says, together in all runs."""
    table = pd.DataFrame([{**one, "values": one["value"] + noise} for one in rows])
    return table[["target", "population", "metric", "values"]]


def write_run(root, uq, seed, values, *, frames="f", spread=0.01, unit="1", family="single", **settings):
    """A finished training with the given values of metrics of the forces."""
    config = OmegaConf.create({"seed": seed, "uq": {"name": uq}, "training": {"lr": 0.1}})
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    labels = labels_of(uq, seed)
    with open_run(root, "train", config, labels) as run:
        run.update(labels=labels, data_sha256="d", scored_sha256=frames, **({"family": family} if family else {}))
        rows = [row("forces", name, value, unit=unit, ci_low=value, ci_high=value) for name, value in values.items()]
        run.write_parquet(RESAMPLES, resamples(rows, spread * np.random.default_rng(0).normal(size=100)))
        write_metrics(run, rows, command="train", split="test", labels=labels)
        run.finish()
    return run.path


def write_evaluation(root, uq, seed, rows, *, split, source, dataset="toy"):
    """A finished evaluation of the model of another run."""
    labels = labels_of(uq, seed, dataset)
    with open_run(root, "evaluate", {"seed": seed, "split": split, "run": str(source)}, labels) as run:
        run.update(labels=labels, data_sha256=split, source=str(source), source_settings={"uq.name": uq})
        write_metrics(run, rows, command="evaluate", split=split, labels=labels)
        run.finish()
    return run.path


def write_generation(path, command, labels, rows, *, split, generation, fates=None, spread=0.01):
    """A run inside a run of active learning."""
    config = OmegaConf.create({"command": command, "seed": labels["seed"], "generation": generation, "name": split})
    with RunDir(path, config, command) as run:
        run.update(labels=labels, family=FAMILY[labels["uq"]], data_sha256=split, scored_sha256=split)
        scored = [one for one in rows if one["target"] == "forces"]
        if scored:
            run.write_parquet(RESAMPLES, resamples(scored, spread * np.random.default_rng(0).normal(size=50)))
        if fates is not None:
            run.write_csv("md_replicas.csv", fates)
        write_metrics(run, rows, command=command, split=split, labels=labels, generation=generation)
        run.finish()


def al_run(root, uq, seed, acquisition, mae, *, finish=True, kT=None, survivors=(8, 10)):
    """An active-learning run: `mae` out of domain at each generation, of 10 replicas `survivors` at each."""
    settings = {"_target_": f"uqbench.active.{acquisition}.X", "steps" if acquisition == "adversarial" else "reach": 1}
    settings |= {"kT": kT} if kT else {}
    config = {"seed": seed, "uq": {"name": uq}, "acquisition": settings, "oracle": {"_target_": "a.B"}}
    labels = labels_of(uq, seed, subset=None)
    choices = {"uq": uq, "acquisition": acquisition, "oracle": "xtb"}
    choices |= {"evaluation@evaluations.far.evaluation": "metrics"}
    with open_run(root, "al", config, labels) as run:
        run.update(labels=labels, choices=choices, family=FAMILY[uq])
        everything = []
        for generation, value, left in zip(GENERATIONS, mae, survivors, strict=True):
            folder = run.path / f"generation_{generation}"
            fates = pd.DataFrame({"temperature": 300.0, "time_ps": np.where(np.arange(10) < left, 1.0, 0.5)})
            fates["exploded"] = np.arange(10) >= left
            parts = {
                "test": ("train", [row("forces", "mae", value / 10, unit="eV/Å")], None),
                "far": ("evaluate", [row("forces", "mae", value, unit="eV/Å")], None),
                "path": ("evaluate", [row("neb", "barrier_error", (-1) ** seed * value, unit="eV")], None),
                "hot": ("evaluate", [row("md", "survival", left / 10, population="temperature=300K", n=10)], fates),
            }
            for split, (command, rows, table) in parts.items():
                path = folder if split == "test" else folder.with_name(f"{folder.name}_{split}")
                write_generation(path, command, labels, rows, split=split, generation=generation, fates=table)
                everything += [one | {"split": split, "generation": generation} for one in rows]
            if generation < GENERATIONS[-1]:
                facts = row("acquisition", "above_random", 0.9)
                everything.append(facts | {"split": "test", "generation": generation})
        write_metrics(run, everything, command="al", split="test", labels=labels)
        if finish:
            run.finish()
    return run.path


def learned_runs(root):
    """Two methods, two acquisitions, three seeds; at the last generation the attack is better by 1, by construction."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        for uq in ("ensemble", "gmm"):
            for acquisition, last in (("adversarial", 2.0), ("random", 3.0)):
                # What the seed does to both acquisitions alike is larger than what separates them.
                base = 5.0 * seed
                al_run(root, uq, seed, acquisition, (base + 4.0, base + last + 0.1 * rng.normal()))


def compared(root, *, against="a", units="eV"):
    """The comparison of all runs below a folder, and its summary by method, variant and metric."""
    comparison = compare(load_runs([root]), against=against, units=units)
    return comparison, comparison.summary.set_index(["uq", "variant", "metric"])
