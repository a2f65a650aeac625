"""Seconds for all metrics with bootstrap intervals, beside scipy and scikit-learn for the ranking metrics alone."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from uqbench import config
from uqbench.metrics.reliability import simulate_errors
from uqbench.metrics.summary import force_summary

ATOMS_PER_STRUCTURE = 50
PEER = "scipy + scikit-learn"


def sample(atoms: int, own_order: bool) -> tuple:
    """Return what `force_summary` takes; with `own_order` score, variance and calibrated variance all rank differently.

    That is the expensive case: every ranking needs sorting and weighting of its own.
    """
    rng = np.random.default_rng(0)
    variance = np.exp(rng.normal(-6, 1, atoms))
    reference = rng.normal(size=(atoms, 3))
    predicted = reference + simulate_errors(variance, 3, rng)
    score, calibrated = variance, 2 * variance + 1e-4
    if own_order:
        score, calibrated = (variance * np.exp(0.5 * rng.normal(size=atoms)) for _ in range(2))
    return reference, predicted, score, variance, calibrated, np.arange(0, atoms + 1, ATOMS_PER_STRUCTURE)


def peer_resample(arguments: tuple, quantiles: tuple[float, ...]) -> Callable[[], None]:
    """Return one bootstrap resample by repeated rows: Spearman and the ROC-AUCs, nothing else."""
    reference, predicted, score, *_, ptr = arguments
    squared, rng = np.square(predicted - reference).sum(axis=1), np.random.default_rng(1)

    def call() -> None:
        drawn = rng.integers(len(ptr) - 1, size=len(ptr) - 1)
        rows = (ptr[drawn][:, None] + np.arange(ATOMS_PER_STRUCTURE)).ravel()
        spearmanr(score[rows], squared[rows])
        for quantile in quantiles:
            roc_auc_score(squared[rows] > np.quantile(squared[rows], quantile), score[rows])

    return call


def main() -> None:
    """Time both orders of magnitude of a test set and both cases of ordering."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atoms", type=int, nargs="+", default=[9000, 1_000_000])
    parser.add_argument("--peer-resamples", type=int, default=2, help="timed for the peer; the median counts for all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args()
    settings = config.build(OmegaConf.load(config.conf_dir() / "evaluation" / "metrics.yaml")).settings
    print(f"all force metrics, {settings.bootstrap} resamples; {PEER}: the ranking metrics alone, extrapolated")
    print(f"{'workload':<36}{'ours, s':>10}{'peer, s':>10}{'ratio':>8}")
    rows = []
    for atoms in options.atoms:
        for own_order in (False, True):
            arguments = sample(atoms, own_order)
            peer, taken = peer_resample(arguments, settings.quantiles), []
            for _ in range(options.peer_resamples):
                taken.append(_seconds(peer))
            ours = _seconds(
                lambda a=arguments: force_summary(*a, settings=settings, generator=np.random.default_rng(2))
            )
            theirs = settings.bootstrap * statistics.median(taken)
            name = f"{atoms} atoms, {'three orders' if own_order else 'one order'}"
            rows.append({"workload": name, "ours_ms": 1e3 * ours, "peer": PEER, "peer_ms": 1e3 * theirs})
            rows[-1]["ratio"] = theirs / ours
            print(f"{name:<36}{ours:>10.1f}{theirs:>10.1f}{theirs / ours:>8.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
