"""Active learning in the report: nothing counted twice, acquisitions named, generations side by side."""

import shutil

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.load.runs import collect
from uqbench.report.render.files import write_report
from uqbench.report.statistics.comparison import compare
from uqbench.runs.metrics_table import write_metrics
from uqbench.runs.run_dir import RunDir

GENERATIONS = (1, 2)
FAMILY = {"ensemble": "ensemble", "gmm": "layer", "mve": "single"}


def row(target, metric, value, *, population="all", unit="1", n=9):
    return {"target": target, "population": population, "metric": metric, "value": value, "unit": unit} | {
        "n": n,
        "ci_low": None,
        "ci_high": None,
    }


def nested(path, command, labels, rows, *, split, generation, fates=None, spread=0.01):
    config = OmegaConf.create({"command": command, "seed": labels["seed"], "generation": generation, "name": split})
    with RunDir(path, config, command) as run:
        run.update(labels=labels, family=FAMILY[labels["uq"]], data_sha256=split, scored_sha256=split)
        noise = np.random.default_rng(0).normal(size=50)
        samples = [{**one, "values": one["value"] + spread * noise} for one in rows if one["target"] == "forces"]
        if samples:
            run.write_parquet(RESAMPLES, pd.DataFrame(samples)[["target", "population", "metric", "values"]])
        if fates is not None:
            run.write_csv("md_replicas.csv", fates)
        write_metrics(run, rows, command=command, split=split, labels=labels, generation=generation)
        run.finish()


def al_run(root, uq, seed, acquisition, mae, *, finish=True, kT=None, survivors=(8, 10)):
    """An active-learning run: `mae` out of domain at each generation, of 10 replicas `survivors` at each."""
    settings = {"_target_": f"uqbench.active.{acquisition}.X", "steps" if acquisition == "adversarial" else "reach": 1}
    settings |= {"kT": kT} if kT else {}
    config = {"command": "al", "seed": seed, "uq": {"name": uq}, "acquisition": settings, "oracle": {"_target_": "a.B"}}
    labels = {"dataset": "toy", "subset": None, "backbone": "net", "uq": uq, "seed": seed}
    place = {key: labels[key] for key in ("dataset", "backbone", "uq", "seed")}
    choices = {
        "uq": uq,
        "acquisition": acquisition,
        "oracle": "xtb",
        "evaluation@evaluations.far.evaluation": "metrics",
    }
    with RunDir.open(root=root, command="al", config=OmegaConf.create(config), **place) as run:
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
                name = folder if split == "test" else folder.with_name(f"{folder.name}_{split}")
                nested(name, command, labels, rows, split=split, generation=generation, fates=table)
                everything += [one | {"split": split, "generation": generation} for one in rows]
            if generation < GENERATIONS[-1]:
                facts = row("acquisition", "above_random", 0.9)
                everything.append(facts | {"split": "test", "generation": generation})
        write_metrics(run, everything, command="al", split="test", labels=labels)
        if finish:
            run.finish()
    return run.path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two methods, two acquisitions, three seeds; at the last generation the attack is better by 1, by construction."""
    root, rng = tmp_path_factory.mktemp("learned") / "runs", np.random.default_rng(0)
    for seed in range(3):
        for uq in ("ensemble", "gmm"):
            for acquisition, last in (("adversarial", 2.0), ("random", 3.0)):
                # What the seed does to both acquisitions alike is larger than what separates them.
                base = 5.0 * seed
                mae = (base + 4.0, base + last + 0.1 * rng.normal())
                al_run(root, uq, seed, acquisition, mae)
    return root


@pytest.fixture
def learned(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def test_generations_are_counted_once_and_can_be_asked_for(learned):
    rows = collect([learned]).rows
    assert rows["path"].nunique() == 12 and set(rows["command"]) == {"al"}
    one = sorted(learned.glob("al/*/*/*/*"))[0]
    inner = collect([one / "generation_1", one / "generation_2_far"]).rows
    assert inner["path"].nunique() == 2 and set(inner["command"]) == {"train", "evaluate"}
    assert collect([one, one / "generation_1"]).rows["path"].nunique() == 1


def test_an_unfinished_run_is_left_out_with_all_in_it(tmp_path):
    al_run(tmp_path, "gmm", 0, "random", (2, 1))
    path = al_run(tmp_path, "gmm", 1, "random", (2, 1), finish=False)
    found = collect([tmp_path])
    assert found.rows["path"].nunique() == 1
    (problem,) = found.problems
    assert str(path) in problem and "not finished" in problem
    with pytest.raises(DataError, match="not finished"):
        collect([path])


def test_options_of_a_group_stand_for_their_keys(learned):
    rows = collect([learned]).rows
    assert set(rows["variant"]) == {"acquisition=adversarial", "acquisition=random"}
    al_run(learned, "gmm", 0, "adversarial", (1, 1), kT=2)
    rows = collect([learned]).rows
    assert set(rows.loc[rows["uq"] == "gmm", "variant"]) == {
        "acquisition=adversarial, acquisition.kT=null",
        "acquisition=adversarial, acquisition.kT=2",
        "acquisition=random",
    }


def test_intervals_use_the_resamples_of_the_nested_runs(tmp_path):
    al_run(tmp_path, "gmm", 0, "random", (2.0, 1.0))
    summary = compare(collect([tmp_path]), against="ensemble", units="eV").summary
    found = summary[(summary["target"] == "forces") & (summary["split"] == "far")].set_index("generation")
    noise = np.random.default_rng(0).normal(size=50)
    assert found.loc[1, "ci_high"] - 2.0 == pytest.approx(0.01 * 2.0096 * noise.std(ddof=1), rel=1e-3)


def test_a_planted_gain_is_found_seed_by_seed(learned):
    comparison = compare(collect([learned]), against="ensemble", units="eV")
    gains = comparison.acquisitions.query("split == 'far' and metric == 'mae'").set_index(["uq", "generation"])
    for uq in ("ensemble", "gmm"):
        assert gains.loc[(uq, 2), "ci_high"] < 0, "although the seeds differ by more"
        assert np.isnan(gains.loc[(uq, 1), "ci_low"]) or gains.loc[(uq, 1), "mean"] == 0
    methods = comparison.differences.query("split == 'far' and metric == 'mae' and generation == 2")
    assert set(methods["variant"]) == {"acquisition=adversarial", "acquisition=random"}, "under the same acquisition"
    assert (methods["ci_low"] < 0).all() and (methods["ci_high"] > 0).all()


def test_acquisitions_without_a_seed_in_common_are_not_compared(tmp_path):
    al_run(tmp_path, "gmm", 0, "random", (2, 1))
    al_run(tmp_path, "gmm", 1, "adversarial", (2, 1))
    assert not len(compare(collect([tmp_path]), against="ensemble", units="eV").acquisitions)


def test_barrier_errors_of_different_sign_do_not_cancel(learned):
    rows = compare(collect([learned]), against="ensemble", units="eV").summary
    rows = rows[(rows["target"] == "neb") & (rows["generation"] == 1)].groupby("metric")["mean"].first()
    assert rows["barrier_error"] == pytest.approx((4 - 9 + 14) / 3)
    assert rows["barrier_abs_error"] == pytest.approx((4 + 9 + 14) / 3)


def test_missing_cells_are_named(learned):
    al_run(learned, "mve", 0, "random", (2, 1))
    gaps = compare(collect([learned]), against="ensemble", units="eV").gaps
    place = "al, toy, net, oracle=xtb"
    assert gaps == [
        f"{place}: mve was not run, or not to its end, with acquisition=adversarial",
        f"{place}: mve, acquisition=random lacks seed 1, 2",
    ]


def test_the_report_shows_generations_survival_and_differences(learned, tmp_path):
    collected = collect([learned])
    names = write_report(tmp_path / "out", collected, compare(collected, against="ensemble", units="eV"))
    text = (tmp_path / "out" / "report.md").read_text()
    for heading in ("## Active learning: toy, net, oracle=xtb", "| metric | method | generation 1 | generation 2 |"):
        assert heading in text
    assert "| metric | method | adversarial − random |" in text and "method − ensemble" in text
    assert "share of replicas that survive, 300K | ensemble (acquisition=adversarial) | " in text
    for name in ("learning_toy-net-oracle-xtb.png", "survival_hot_toy-net-oracle-xtb.png"):
        assert name in names and name in text
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_a_damaged_table_of_replicas_is_named(learned, tmp_path):
    path = next(learned.glob("al/*/*/*/*/generation_2_hot/md_replicas.csv"))
    path.write_text("nothing,of,use\n")
    collected = collect([learned])
    write_report(tmp_path / "out", collected, compare(collected, against="ensemble", units="eV"))
    assert f"{path}: missing or damaged" in (tmp_path / "out" / "report.md").read_text()
