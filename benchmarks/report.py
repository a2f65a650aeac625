"""Seconds that `uqbench report` needs for many runs: makes synthetic run directories, then times it on them."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from uqbench.runs.tables import COLUMNS

MOLECULES = "aspirin azobenzene benzene ethanol malonaldehyde naphthalene paracetamol salicylic toluene uracil".split()
METHODS = {"ensemble": 0.8, "mve": 1.0, "evidential": 1.05, "gmm": 1.0, "deterministic": 1.0, "shallow_ensemble": 0.95}
BACKBONES, SPLITS, RESAMPLES = ("painn", "schnet"), 5, 200
# As many as a run of `evaluation=metrics` leaves: about 100 with bootstrap values and their ideals.
PLAIN = "mae rmse ause roc_auc_80 roc_auc_90 roc_auc_95 spearman miscalibration_area miscalibration_area_norm nll"
PLAIN += " cnll zms ence crps sharpness dispersion coverage_50 coverage_68 coverage_90 coverage_95 width_50 width_68"
PLAIN += " width_90 width_95 ause_probabilistic conformal_coverage_50 conformal_coverage_90 conformal_radius_50"
PLAIN += " conformal_radius_68 conformal_radius_90"
CALIBRATED = "crps zms ence miscalibration_area miscalibration_area_norm sharpness dispersion coverage_50 coverage_90"
METRICS = PLAIN.split() + [f"calibrated_{metric}" for metric in CALIBRATED.split()] + [f"x{k}" for k in range(30)]
SETTINGS = {f"{group}.{key}": k for group in ("backbone", "training", "uq") for k, key in enumerate("abcdefghijklmno")}


def make(root: Path, count: int) -> None:
    """Write `count` finished run directories."""
    rng = np.random.default_rng(0)
    templates = [_bootstrap(root / f"bootstrap{k}.parquet", rng) for k in range(20)]
    tasks = list(itertools.product(range(1, SPLITS + 1), MOLECULES, BACKBONES, METHODS))
    for number in range(count):
        seed, (split, molecule, backbone, uq) = number // len(tasks), tasks[number % len(tasks)]
        path = root / "train" / f"rmd17-{molecule}" / backbone / uq / f"seed{seed}-{number:08x}"
        path.mkdir(parents=True)
        # The same files under many names: their content takes as long to read, and little room.
        (path / "bootstrap.parquet").hardlink_to(templates[number % len(templates)])
        labels = {"dataset": "rmd17", "subset": molecule, "backbone": backbone, "uq": uq, "seed": seed}
        _rows(labels, METHODS[uq], rng, path.name).to_csv(path / "metrics.csv", index=False)
        _write_config(path / "config.yaml", labels, split)
        files = {name: (path / name).stat().st_size for name in ("metrics.csv", "config.yaml", "bootstrap.parquet")}
        info = {"schema": 1, "digest": f"{number:064x}", "data_sha256": molecule, "status": "done", "files": files}
        info |= {"seconds": {"train": 300.0}, "launches": [{}], "labels": labels, "command": "synthetic"}
        info |= {"scored_sha256": f"{molecule}{split}", "choices": {"uq": uq, "backbone": backbone}}
        info["family"] = {"ensemble": "ensemble", "deterministic": "baseline"}.get(uq, "single")
        (path / "run.json").write_text(json.dumps(info, indent=2))


def _bootstrap(path: Path, rng: np.random.Generator) -> Path:
    names = list(itertools.product(("forces", "energy"), METRICS))
    table = pd.DataFrame(names, columns=["target", "metric"]).assign(population="all")
    table["values"] = [np.abs(0.5 + 0.02 * rng.normal(size=RESAMPLES)) for _ in names]
    table.to_parquet(path, index=False)
    return path


def _rows(labels: dict, factor: float, rng: np.random.Generator, run_id: str) -> pd.DataFrame:
    identity = {"run_id": run_id, "command": "train", "split": "test", "generation": None, **labels, "n": 9000}
    rows = []
    for target, metric in itertools.product(("forces", "energy"), METRICS):
        value = 0.5 * factor + 0.01 * rng.normal()
        unit = {"forces": "eV/Å", "energy": "eV"}[target] if metric in ("mae", "rmse") else "1"
        ends = {"ci_low": value - 0.02, "ci_high": value + 0.02}
        rows.append({"target": target, "population": "all", "metric": metric, "value": value, "unit": unit, **ends})
        if metric in ("spearman", "nll", "ause") or metric.startswith("roc"):
            rows.append(rows[-1] | {"metric": f"{metric}_ideal", "value": 0.6})
    for metric, value, unit in (("training_time", 300.0, "s"), ("inference_time", 2.0, "ms/structure")):
        cost = value * rng.uniform(0.9, 1.1) * (5 if labels["uq"] == "ensemble" else 1)
        ends = {"ci_low": None, "ci_high": None}
        rows.append({"target": "cost", "population": "run", "metric": metric, "value": cost, "unit": unit, **ends})
    return pd.DataFrame([identity | row for row in rows])[list(COLUMNS)]


def _write_config(path: Path, labels: dict, split: int) -> None:
    lines = ["command: train", f"seed: {labels['seed']}", "dataset:", f"  split: {split}", "  data_root: null"]
    for group, keys in itertools.groupby(SETTINGS.items(), lambda item: item[0].partition(".")[0]):
        lines += [f"{group}:", *(f"  {key.partition('.')[2]}: {value}" for key, value in keys)]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Print how long it took, and how much memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--at", help="folder to make the runs in, kept, and taken as it is when it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(options.at or scratch)
        if not (root / "train").exists():
            root.mkdir(parents=True, exist_ok=True)
            make(root, options.runs)
        begun = time.perf_counter()
        command = [sys.executable, "-m", "uqbench", "report", f"runs={root / 'train'}", f"output={root / 'report'}"]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"{options.runs} runs: {seconds:.1f} s, {peak:.2f} GB at the most")


if __name__ == "__main__":
    main()
