"""All methods with all kinds of backbone, from the command line to the report; with PaiNN in test_reproduce.py."""

import pandas as pd
import pytest

from uqbench.cli import main

METHODS = ("ensemble", "mve", "evidential", "gmm")
BACKBONES = ("schnet", "nequip")

pytestmark = pytest.mark.slow


def test_every_method_runs_with_every_other_backbone(tmp_path, without_figures):
    sweep = [f"uq={','.join(METHODS)}", f"backbone={','.join(BACKBONES)}"]
    tiny = ["dataset=ammonia", "backbone.features=4", "backbone.layers=1", "training.epochs=1"]
    quick = ["evaluation.bootstrap=2", "evaluation.ideal_draws=1", "evaluations.out_of_domain=null"]
    assert main(["train", "-m", *sweep, *tiny, *quick, f"outputs={tmp_path}"]) == 0
    assert main(["report", f"runs={tmp_path / 'train'}", f"output={tmp_path / 'report'}"]) == 0
    summary = pd.read_csv(tmp_path / "report" / "summary.csv")
    mae = summary[(summary["target"] == "forces") & (summary["metric"] == "mae")]
    assert set(zip(mae["uq"], mae["backbone"], strict=True)) == {(u, b) for u in METHODS for b in BACKBONES}
    assert mae["mean"].between(0, 500).all()
