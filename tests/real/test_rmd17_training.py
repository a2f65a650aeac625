"""A few epochs on real rMD17 with the model of the mini protocol."""

import os

import pandas as pd
import pytest

from uqbench.cli import main
from uqbench.uq.base import KCAL_PER_MOL

DATA = os.environ.get("UQBENCH_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="UQBENCH_DATA is not set: no real data to train on")
@pytest.mark.parametrize("molecule", ["ethanol", "aspirin"])
def test_a_few_epochs_beat_predicting_no_force(molecule, tmp_path):
    command = ["experiment=rmd17_mini", "uq=deterministic", f"dataset.molecule={molecule}", "dataset.n_train=250"]
    assert (
        main(
            ["train", *command, "training=quick", "training.epochs=6", "evaluation.bootstrap=0", f"outputs={tmp_path}"]
        )
        == 0
    )
    (run,) = tmp_path.glob(f"train/rmd17-{molecule}/painn/deterministic/seed0-*")
    value = pd.read_csv(run / "metrics.csv").set_index(["target", "metric"]).value
    # The mean absolute force component of these molecules is 20 to 22 kcal/mol/Å.
    assert value["forces", "mae"] / KCAL_PER_MOL < 12
