"""From run directories to a comparison: what is averaged, what is kept apart, what is left out and said so."""

import json

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.results import report
from uqbench.results.catalogue import MAIN, badness, bounds
from uqbench.results.collect import collect
from uqbench.results.comparison import compare
from uqbench.results.runs import write_metrics
from uqbench.rundir import RunDir


def write_run(root, uq, seed, values, *, frames="f", spread=0.01, common=None, unit="1", **settings):
    """A finished run with the given values of metrics of the forces; `common` is the part that structures decide."""
    config = OmegaConf.create({"command": "train", "seed": seed, "uq": {"name": uq}, "training": {"lr": 0.1}})
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    labels = {"dataset": "toy", "subset": "t", "backbone": "net", "uq": uq, "seed": seed}
    place = {key: labels[key] for key in ("dataset", "backbone", "uq", "seed")}
    noise = np.random.default_rng(0).normal(size=100) if common is None else common
    with RunDir.open(root=root, command="train", config=config, **place) as run:
        run.update(labels=labels, data_sha256="d", scored_sha256=frames)
        rows = [
            {"target": "forces", "population": "all", "metric": name, "value": value, "unit": unit}
            | {"n": 9, "ci_low": value, "ci_high": value}
            for name, value in values.items()
        ]
        table = [{**row, "values": row["value"] + spread * noise} for row in rows]
        run.write_parquet(RESAMPLES, pd.DataFrame(table)[["target", "population", "metric", "values"]])
        write_metrics(run, rows, command="train", split="test", labels=labels)
        run.finish()
    return run.path


def summary_of(root, units="eV"):
    comparison = compare(collect([root]), against="a", units=units)
    rows = comparison.summary.set_index(["uq", "variant", "metric"])
    return rows, comparison


def test_a_better_method_comes_out_better_and_an_equal_one_equal(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(4):
        jitter = 0.01 * rng.normal(size=3)
        for uq, mae, jit in (("a", 1.0, jitter[0]), ("b", 1.0, jitter[1]), ("c", 1.2, jitter[2])):
            write_run(tmp_path, uq, seed, {"mae": mae + jit, "spearman": 0.9 - mae / 2 + jit, "sharpness": 1.0})
    rows, comparison = summary_of(tmp_path)
    assert rows["best"].xs("mae", level="metric").to_dict() == {("a", ""): True, ("b", ""): True, ("c", ""): False}
    assert not rows.loc["c", "", "spearman"]["best"], "high is good for a rank correlation"
    assert not rows["best"].xs("sharpness", level="metric").any(), "not a judgement"
    differences = comparison.differences.set_index(["uq", "metric"])
    assert differences.loc["c", "mae"]["ci_low"] > 0.1
    assert differences.loc["b", "mae"]["ci_low"] < 0 < differences.loc["b", "mae"]["ci_high"]
    assert comparison.gaps == []


def test_other_settings_make_another_method_that_is_never_averaged_with_the_first(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a", seed, {"mae": 1.0})
        write_run(tmp_path, "a", seed, {"mae": 3.0}, training__lr=0.5)
    rows, _ = summary_of(tmp_path)
    assert rows.loc["a", "training.lr=0.1", "mae"]["mean"] == 1.0
    assert rows.loc["a", "training.lr=0.5", "mae"]["mean"] == 3.0


def test_missing_cells_are_named(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    write_run(tmp_path, "a", 1, {"mae": 1.0})
    write_run(tmp_path, "b", 0, {"mae": 1.0})
    _, comparison = summary_of(tmp_path)
    assert comparison.gaps == ["train, toy, t, net: b lacks seed 1"]


def test_units_change_values_and_intervals_alike(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0}, unit="eV/Å")
    (electronvolts, _), (kcal, _) = summary_of(tmp_path), summary_of(tmp_path, "kcal/mol")
    first, second = (rows.loc["a", "", "mae"] for rows in (electronvolts, kcal))
    assert second["unit"] == "kcal/mol/Å"
    for name in ("mean", "ci_low", "ci_high"):
        assert second[name] / first[name] == pytest.approx(23.060548)


def test_ideals_stand_beside_their_metric(tmp_path):
    write_run(tmp_path, "a", 0, {"spearman": 0.4, "spearman_ideal": 0.5, "mae": 1.0})
    rows, _ = summary_of(tmp_path)
    assert rows.loc["a", "", "spearman"]["ideal"] == 0.5 and np.isnan(rows.loc["a", "", "mae"]["ideal"])
    assert not any(metric.endswith("_ideal") for metric in rows.index.get_level_values("metric"))


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    paths = [write_run(tmp_path, "b", seed, {"mae": 1.0}) for seed in range(5)]
    (paths[0] / "metrics.csv").write_text("what,is,this\n1,2,3\n")
    info = json.loads((paths[1] / "run.json").read_text())
    (paths[1] / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    (paths[2] / "run.json").write_text(json.dumps(info | {"schema": 99}))
    (paths[3] / "metrics.csv").unlink()
    (paths[4] / RESAMPLES).write_bytes(b"x" * (paths[4] / RESAMPLES).stat().st_size)
    found = collect([tmp_path])
    assert found.rows["path"].nunique() == 2
    assert len(found.problems) == 4
    for path, problem in zip(paths, sorted(found.problems), strict=False):
        assert str(path) in problem
    (problem,) = compare(found, against="a", units="eV").problems
    assert str(paths[4]) in problem and "used without its bootstrap values" in problem
    with pytest.raises(DataError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no finished run below"):
        collect([tmp_path / "empty"])


def test_the_report_holds_every_method_and_can_be_written_again(tmp_path):
    for uq in ("a", "b"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", uq, seed, {"mae": 1.0 + seed, "spearman": np.nan, "cnll": -1.0})
    collected = collect([tmp_path / "runs"])
    comparison = compare(collected, against="a", units="eV")
    for _ in range(2):
        names = report.write_report(tmp_path / "out", collected, comparison)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| metric (runs) | a (2) | b (2) |" in text and "4 finished runs" in text
    assert "| Spearman ρ | – | – |" in text, "undefined, not zero"
    assert len(pd.read_parquet(tmp_path / "out" / "metrics.parquet")) == len(collected.rows)
    assert set(pd.read_csv(tmp_path / "out" / "summary.csv")["uq"]) == {"a", "b"}


def test_good_values_are_small_after_judging():
    assert np.argmin(badness("zms", [0.2, 0.9, 1.5])) == 1
    assert np.argmin(badness("calibrated_coverage_68", [0.5, 0.66, 0.9])) == 1
    assert np.argmin(badness("conformal_coverage_97_5", [0.9, 0.97, 1.0])) == 1
    assert np.argmin(badness("roc_auc_95", [0.5, 0.9])) == 1
    assert np.argmin(badness("calibrated_miscalibration_area_norm", [0.0, 0.13, 0.3])) == 1
    assert np.argmin(badness("cnll", [-2.0, 1.0])) == 0
    assert badness("calibrated_width_90", [1.0]) is None
    assert bounds("cnll")[0] == -np.inf and bounds("calibrated_miscalibration_area") == (0.0, 0.5)
    assert len(set(MAIN)) == len(MAIN)
