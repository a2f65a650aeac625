"""A few epochs on real rMD17 with the model of the mini protocol."""

import os

import numpy as np
import pandas as pd
import pytest

from uqbench.cli import main

DATA = os.environ.get("UQBENCH_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="UQBENCH_DATA is not set: no real data to train on")
def test_a_few_epochs_beat_predicting_no_force(tmp_path):
    molecule = "ethanol"
    command = ["experiment=rmd17_mini", "uq=deterministic", f"dataset.molecule={molecule}", "dataset.n_train=250"]
    assert (
        main(
            ["train", *command, "training=quick", "training.epochs=6", "evaluation.bootstrap=0", f"outputs={tmp_path}"]
        )
        == 0
    )
    (run,) = tmp_path.glob(f"train/rmd17-{molecule}/painn/deterministic/seed0-*")
    value = pd.read_csv(run / "metrics.csv").set_index(["target", "metric"]).value
    labels = np.concatenate(pd.read_parquet(run / "predictions_test.parquet").forces_reference)
    # 3.8 of 20 kcal/mol/Å were measured: half of what no force gives is far from it.
    assert value["forces", "mae"] < 0.5 * np.abs(labels).mean()
