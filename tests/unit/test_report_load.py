"""From run directories to rows: what is kept apart, counted once, missing, damaged and said so."""

import json

import joblib
import pandas as pd
import pytest
from report_runs import al_run, learned_runs, write_run

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.load.missing import missing_runs
from uqbench.report.load.runs import load_runs
from uqbench.report.statistics.comparison import compare
from uqbench.runs.files import file_sha256


def missing(root):
    return list(missing_runs(load_runs([root]).rows))


def change_info(path, **changes):
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | changes))


def change_rows(path, **columns):
    """Write other values into all rows of a run; its record stays true of the file."""
    rows = pd.read_csv(path / "metrics.csv", dtype=str, keep_default_na=False).assign(**columns)
    rows.to_csv(path / "metrics.csv", index=False)
    info = json.loads((path / "run.json").read_text())
    sizes = info["files"] | {"metrics.csv": (path / "metrics.csv").stat().st_size}
    change_info(path, files=sizes, sha256=info["sha256"] | {"metrics.csv": file_sha256(path / "metrics.csv")})


@pytest.fixture
def learned(tmp_path):
    learned_runs(tmp_path / "runs")
    return tmp_path / "runs"


def test_other_settings_make_another_method(tmp_path):
    for lr, mae in ((0.1, 1.0), (0.5, 3.0)):
        for seed in (0, 1):
            write_run(tmp_path, "a", seed, {"mae": mae}, training__lr=lr)
    rows = load_runs([tmp_path]).rows
    assert rows.groupby("variant")["value"].unique().map(list).to_dict() == {
        "training.lr=0.1": [1.0],
        "training.lr=0.5": [3.0],
    }


def test_settings_of_the_method_itself_do_not_name_the_others(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    for components in (2, 3):
        write_run(tmp_path, "b", 0, {"mae": 1.0}, uq__components=components)
    rows = load_runs([tmp_path]).rows
    assert set(zip(rows["uq"], rows["variant"], strict=True)) == {
        *(("a", ""), ("b", "uq.components=2"), ("b", "uq.components=3"))
    }
    assert set(rows["shared"]) == {""}


def test_what_is_evaluated_afterwards_makes_no_other_method(tmp_path):
    """`evaluations` are no part of what names a run of `train`, whatever they were in each run."""
    for seed, replicas in ((0, 4), (1, 8)):
        write_run(tmp_path, "a", seed, {"mae": 1.0}, evaluations__md__evaluation__replicas=replicas)
    assert set(load_runs([tmp_path]).rows["variant"]) == {""}


def test_options_of_a_group_stand_for_their_keys(learned):
    rows = load_runs([learned]).rows
    assert set(rows["variant"]) == {"acquisition=adversarial", "acquisition=random"}
    al_run(learned, "gmm", 0, "adversarial", (1, 1), kT=2)
    rows = load_runs([learned]).rows
    assert set(rows.loc[rows["uq"] == "gmm", "variant"]) == {
        "acquisition=adversarial, acquisition.kT=null",
        "acquisition=adversarial, acquisition.kT=2",
        "acquisition=random",
    }


def test_an_option_is_named_in_full_and_a_class_without_its_module(tmp_path):
    paths = [al_run(tmp_path, "gmm", seed, "random", (2, 1)) for seed in (0, 1)]
    change_info(paths[0], choices={"acquisition": "random.v2"})
    change_info(paths[1], choices={})
    assert set(load_runs([tmp_path]).rows["acquisition"]) == {"random.v2", "X"}


def test_generations_are_counted_once_and_can_be_asked_for(learned):
    rows = load_runs([learned]).rows
    assert rows["path"].nunique() == 12 and set(rows["command"]) == {"al"}
    one = sorted(learned.glob("al/*/*/*/*"))[0]
    inner = load_runs([one / "generation_1", one / "generation_2_far"]).rows
    assert inner["path"].nunique() == 2 and set(inner["command"]) == {"train", "evaluate"}
    assert load_runs([one, one / "generation_1"]).rows["path"].nunique() == 1


def test_an_unfinished_run_is_left_out_with_all_in_it(tmp_path):
    al_run(tmp_path, "gmm", 0, "random", (2, 1))
    path = al_run(tmp_path, "gmm", 1, "random", (2, 1), finish=False)
    runs = load_runs([tmp_path])
    assert runs.rows["path"].nunique() == 1
    (problem,) = runs.problems
    assert str(path) in problem and "not finished" in problem
    with pytest.raises(DataError, match="not finished"):
        load_runs([path])


def test_missing_seeds_are_named(tmp_path):
    for uq, seed in (("a", 0), ("a", 1), ("b", 0)):
        write_run(tmp_path, uq, seed, {"mae": 1.0})
    assert missing(tmp_path) == ["train, toy, t, net: b lacks seed 1"]


def test_missing_conditions_are_named(tmp_path):
    for lr in (0.1, 0.5):
        write_run(tmp_path, "a", 0, {"mae": 1.0}, training__lr=lr)
    write_run(tmp_path, "c", 0, {"mae": 1.0})
    assert missing(tmp_path) == ["train, toy, t, net: c was not run, or not to its end, with training.lr=0.5"]


def test_missing_runs_of_active_learning_are_named(learned):
    al_run(learned, "mve", 0, "random", (2, 1))
    assert missing(learned) == [
        "al, toy, net, oracle=xtb: mve was not run, or not to its end, with acquisition=adversarial",
        "al, toy, net, oracle=xtb: mve, acquisition=random lacks seed 1, 2",
    ]


def test_families_are_those_that_runs_recorded_or_those_of_known_older_ones(tmp_path):
    for uq, family, target in (
        ("committee", "ensemble", "elsewhere.Committee"),
        ("older", None, "uqbench.uq.ensemble.Ensemble"),
        ("old_gmm", None, "uqbench.uq.gmm.GMM"),
        ("their_ensemble", None, "elsewhere.Ensemble"),
        ("odd_ensemble", "club", "uqbench.uq.ensemble.Ensemble"),
    ):
        write_run(tmp_path, uq, 0, {"mae": 1.0}, family=family, uq___target_=target)
    families = load_runs([tmp_path]).rows.drop_duplicates("uq").set_index("uq")["family"]
    assert families.dropna().to_dict() == {"committee": "ensemble", "older": "ensemble", "old_gmm": "layer"}
    unknown = [line.split(" ")[2] for line in missing(tmp_path) if line.startswith("family of")]
    assert unknown == ["odd_ensemble", "their_ensemble"]


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    paths = [write_run(tmp_path, "b", seed, {"mae": 1.0}) for seed in range(5)]
    (paths[0] / "metrics.csv").write_text("what,is,this\n1,2,3\n")
    change_info(paths[1], status="interrupted")
    change_info(paths[2], schema=99)
    (paths[3] / "metrics.csv").unlink()
    (paths[4] / RESAMPLES).write_bytes(b"x" * (paths[4] / RESAMPLES).stat().st_size)
    runs = load_runs([tmp_path])
    assert runs.rows["path"].nunique() == 2
    assert len(runs.problems) == 4
    for path, problem in zip(paths, sorted(runs.problems), strict=False):
        assert str(path) in problem
    (problem,) = compare(runs, against="a", units="eV").problems
    assert str(paths[4]) in problem and "used without its bootstrap values" in problem
    with pytest.raises(DataError, match="no such folder"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no finished run below"):
        load_runs([tmp_path / "empty"])


@pytest.mark.parametrize("column", ["uq", "seed", "target", "population", "metric", "unit"])
def test_rows_that_lack_what_they_are_of_are_damaged(tmp_path, column):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    path = write_run(tmp_path, "b", 0, {"mae": 1.0})
    change_rows(path, **{column: ""})
    runs = load_runs([tmp_path])
    assert set(runs.rows["uq"]) == {"a"}
    assert runs.problems == [f"{path / 'metrics.csv'}: damaged (rows without {column})"]


@pytest.mark.parametrize("change", [{"choices": ["a"]}, {"source": 3}, {"source_settings": "x"}, {"files": [1]}])
def test_a_record_of_another_shape_is_damaged(tmp_path, change):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    path = write_run(tmp_path, "b", 0, {"mae": 1.0})
    change_info(path, **change)
    runs = load_runs([tmp_path])
    assert set(runs.rows["uq"]) == {"a"}
    (problem,) = runs.problems
    assert problem.startswith(f"{path / 'run.json'}: damaged (")


def test_many_runs_are_read_in_processes_to_the_same_table(tmp_path, monkeypatch):
    for seed in range(4):
        write_run(tmp_path, "a", seed, {"mae": 1.0 + seed})
    broken = write_run(tmp_path, "a", 4, {"mae": 1.0})
    (broken / "metrics.csv").unlink()
    alone = load_runs([tmp_path])
    monkeypatch.setattr("uqbench.report.load.runs.BATCH", 1)
    monkeypatch.setattr("uqbench.report.load.runs.WORTH_A_PROCESS", 2)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    together = load_runs([tmp_path])
    pd.testing.assert_frame_equal(alone.rows, together.rows)
    assert alone.problems == together.problems and len(alone.problems) == 1


def test_a_run_with_two_rows_for_one_metric_is_left_out_and_named(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    path = write_run(tmp_path, "b", 0, {"mae": 1.0, "rmse": 1.0})
    change_rows(path, metric="mae")
    runs = load_runs([tmp_path])
    assert set(runs.rows["uq"]) == {"a"} and runs.problems == [f"{path}: two rows for forces/all/mae"]


def test_tables_are_enough_where_checkpoints_were_removed_to_save_space(tmp_path):
    path = write_run(tmp_path, "a", 0, {"mae": 1.0})
    info = json.loads((path / "run.json").read_text())
    change_info(path, files=info["files"] | {"best.pt": 10**6})
    assert load_runs([tmp_path]).problems == []


def test_tables_that_were_changed_since_are_left_out(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    path = write_run(tmp_path, "b", 0, {"mae": 1.0})
    text = (path / "metrics.csv").read_text()
    (path / "metrics.csv").write_text(text.replace("1.0", "0.1"))
    runs = load_runs([tmp_path])
    assert set(runs.rows["uq"]) == {"a"} and "metrics.csv: changed since the run finished" in runs.problems[0]
