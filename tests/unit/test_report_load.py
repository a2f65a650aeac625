"""From run directories to a comparison: what is averaged, what is kept apart, what is left out and said so."""

import html.parser
import json

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.figures.costs import pareto
from uqbench.report.load.runs import collect
from uqbench.report.render import files as report
from uqbench.report.statistics.comparison import compare
from uqbench.report.statistics.metrics import MAIN, badness, bounds
from uqbench.runs.metrics_table import write_metrics
from uqbench.runs.run_dir import RunDir


def write_run(root, uq, seed, values, *, frames="f", spread=0.01, common=None, unit="1", family="single", **settings):
    """A finished run with the given values of metrics of the forces; `common` is the part that structures decide."""
    config = OmegaConf.create({"command": "train", "seed": seed, "uq": {"name": uq}, "training": {"lr": 0.1}})
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    labels = {"dataset": "toy", "subset": "t", "backbone": "net", "uq": uq, "seed": seed}
    place = {key: labels[key] for key in ("dataset", "backbone", "uq", "seed")}
    noise = np.random.default_rng(0).normal(size=100) if common is None else common
    with RunDir.open(root=root, command="train", config=config, **place) as run:
        run.update(labels=labels, data_sha256="d", scored_sha256=frames, **({"family": family} if family else {}))
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


def test_families_are_those_that_runs_recorded_or_those_of_known_older_ones(tmp_path):
    for uq, family, target in (
        ("committee", "ensemble", "elsewhere.Committee"),
        ("older", None, "uqbench.uq.ensemble.Ensemble"),
        ("old_gmm", None, "uqbench.uq.gmm.GMM"),
        ("their_ensemble", None, "elsewhere.Ensemble"),
        ("odd_ensemble", "club", "uqbench.uq.ensemble.Ensemble"),
    ):
        write_run(tmp_path, uq, 0, {"mae": 1.0}, family=family, uq___target_=target)
    collected = collect([tmp_path])
    found = collected.rows.drop_duplicates("uq").set_index("uq")["family"]
    assert found.dropna().to_dict() == {"committee": "ensemble", "older": "ensemble", "old_gmm": "layer"}
    gaps = compare(collected, against="a", units="eV").gaps
    assert [line.split(" ")[2] for line in gaps if line.startswith("family of")] == ["odd_ensemble", "their_ensemble"]


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
    assert "## Claims of the study" in text and "## Ranks" in text
    assert "| Spearman ρ | – | – |" in text, "undefined, not zero"
    tidy = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    assert len(tidy) == len(collected.rows) and {"variant", "path", "domain"} <= set(tidy.columns)
    assert pd.read_csv(tmp_path / "out" / "metrics.csv")["value"].equals(tidy["value"])
    assert pd.read_csv(tmp_path / "out" / "claims.csv")["claim"].tolist() == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert set(pd.read_csv(tmp_path / "out" / "summary.csv")["uq"]) == {"a", "b"}
    assert list(pd.read_csv(tmp_path / "out" / "ranks.csv")) == ["domain", "method", "mean_rank", "blocks", "left_out"]


def test_good_values_are_small_after_judging():
    assert np.argmin(badness("zms", [0.2, 0.9, 1.5])) == 1
    assert np.argmin(badness("calibrated_coverage_68", [0.5, 0.66, 0.9])) == 1
    assert np.argmin(badness("conformal_coverage_97_5", [0.9, 0.97, 1.0])) == 1
    assert np.argmin(badness("roc_auc_95", [0.5, 0.9])) == 1
    assert np.argmin(badness("calibrated_miscalibration_area_norm", [0.0, 0.13, 0.3])) == 1
    assert np.argmin(badness("cnll", [-2.0, 1.0])) == 0
    assert badness("calibrated_width_90", [1.0]) is None
    assert np.argmin(badness("closest_shift_O–O", [-0.5, 0.1])) == 1 and bounds("closest_shift_O–O")[0] == -np.inf
    assert badness("Si_with_4_O", [0.9]) is badness("survival_reference", [1.0]) is None
    assert bounds("cnll")[0] == -np.inf and bounds("calibrated_miscalibration_area") == (0.0, 0.5)
    assert len(set(MAIN)) == len(MAIN)


class Page(html.parser.HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.ids, self.images = [], [], set(), 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [value for key, value in attributes.items() if key in ("src", "href")]
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        self.images += tag == "img"
        assert tag != "img" or attributes["alt"]
        if tag not in ("img", "meta", "br", "hr", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    for uq in ("a", "b<i>"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", uq, seed, {"mae": 1.0 + seed, "cnll": -1.0})
    collected = collect([tmp_path / "runs"])
    report.write_report(tmp_path / "out", collected, compare(collected, against="a", units="eV"))
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    inside = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert inside and set(inside) <= page.ids
    rest = [link for link in page.links if not link.startswith("#")]
    assert rest and all(link.startswith("data:image/png;base64,") for link in rest)
    assert page.images == len(list((tmp_path / "out").glob("*.png")))
    assert "b<i>" not in text and "b&lt;i&gt;" in text, "names are text, not markup"
    assert "@import" not in text and "url(" not in text and "<script" not in text


def test_settings_of_the_method_itself_do_not_name_the_others(tmp_path):
    write_run(tmp_path, "a", 0, {"mae": 1.0})
    write_run(tmp_path, "b", 0, {"mae": 1.0}, uq__components=2)
    write_run(tmp_path, "b", 0, {"mae": 2.0}, uq__components=3)
    rows, comparison = summary_of(tmp_path)
    assert set(rows.index.droplevel("metric")) == {("a", ""), ("b", "uq.components=2"), ("b", "uq.components=3")}
    assert set(comparison.differences["variant"]) == {"uq.components=2", "uq.components=3"}, "both against a"


def test_what_is_evaluated_afterwards_makes_no_other_method(tmp_path):
    """`evaluations` are no part of what names a run of `train`, whatever they were in each run."""
    for seed, replicas in ((0, 4), (1, 8)):
        for uq in ("a", "b"):
            write_run(tmp_path, uq, seed, {"mae": 1.0}, evaluations__md__evaluation__replicas=replicas)
    rows, comparison = summary_of(tmp_path)
    assert set(rows.index.get_level_values("variant")) == {""} or rows.index.get_level_values("variant").isna().all()
    assert set(rows.runs) == {2}


def test_the_structure_of_simulations_is_a_table_of_its_elements(tmp_path):
    names = {"survival": 1.0, "rdf_difference_Si–O": 0.2, "closest_shift_O–O": -0.8, "density": 2.2}
    for uq, worse in (("a", 1.0), ("b", 2.0)):
        for seed in (0, 1):
            labels = {"dataset": "glass", "subset": "t", "backbone": "net", "uq": uq, "seed": seed}
            config = OmegaConf.create({"command": "evaluate", "seed": seed, "split": "test", "uq": {"name": uq}})
            place = {key: labels[key] for key in ("dataset", "backbone", "uq", "seed")}
            with RunDir.open(root=tmp_path / "runs", command="evaluate", config=config, **place) as run:
                run.update(labels=labels, data_sha256="d", source=f"{uq}{seed}", source_settings={"uq.name": uq})
                rows = [
                    {"target": "structure", "population": "temperature=300K", "metric": name, "n": 4, "unit": "1"}
                    | {
                        "value": value * (1.0 if name in ("survival", "density") else worse),
                        "ci_low": None,
                        "ci_high": None,
                    }
                    for name, value in names.items()
                ]
                write_metrics(run, rows, command="evaluate", split="test", labels=labels)
                run.finish()
    collected = collect([tmp_path / "runs"])
    report.write_report(tmp_path / "out", collected, compare(collected, against="a", units="eV"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "| share of replicas that stay sound, 300K |" in text
        and "| shift of the shortest distance, O–O, 300K |" in text
    )
    (line,) = (
        line for line in text.splitlines() if line.startswith("| ∫\\|Δg(r)\\| dr, Si–O, 300K |") and "**" in line
    )
    assert "0.2000" in line and "0.4000" in line
    assert "density" not in text and "## glass, t, test, net, structure\n" in text


def test_conditions_name_all_methods_and_pair_them(tmp_path):
    for lr in (0.1, 0.5):
        for uq in ("a", "b"):
            write_run(tmp_path, uq, 0, {"mae": 1.0 + lr + (uq == "b")}, training__lr=lr)
    write_run(tmp_path, "c", 0, {"mae": 1.0})
    _, comparison = summary_of(tmp_path)
    gaps = comparison.differences.set_index(["uq", "variant"])["mean"]
    assert gaps["b", "training.lr=0.1"] == pytest.approx(1.0) == gaps["b", "training.lr=0.5"]
    assert comparison.gaps == ["train, toy, t, net: c was not run, or not to its end, with training.lr=0.5"]


def test_many_runs_are_read_in_processes_to_the_same_table(tmp_path, monkeypatch):
    for seed in range(4):
        write_run(tmp_path, "a", seed, {"mae": 1.0 + seed})
    broken = write_run(tmp_path, "a", 4, {"mae": 1.0})
    (broken / "metrics.csv").unlink()
    alone = collect([tmp_path])
    monkeypatch.setattr("uqbench.report.load.runs.WORTH_A_PROCESS", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    together = collect([tmp_path])
    pd.testing.assert_frame_equal(alone.rows, together.rows)
    assert alone.problems == together.problems and len(alone.problems) == 1


def test_evaluations_elsewhere_are_out_of_domain_and_stand_beside(tmp_path):
    """The same models on the frames that they were tested on and on others."""
    for uq in ("a", "b"):
        for seed in (0, 1):
            path = write_run(tmp_path / "runs", uq, seed, {"mae": 1.0})
            labels = {"dataset": "toy", "subset": "t", "backbone": "net", "uq": uq, "seed": seed}
            config = OmegaConf.create({"command": "evaluate", "seed": seed, "split": "far", "run": str(path)})
            place = {key: labels[key] for key in ("dataset", "backbone", "uq", "seed")}
            with RunDir.open(root=tmp_path / "runs", command="evaluate", config=config, **place) as run:
                run.update(labels=labels, data_sha256="far", source=str(path), source_settings={"uq.name": uq})
                row = {"target": "forces", "population": "all", "metric": "mae", "value": 3.0, "unit": "1", "n": 9}
                write_metrics(
                    run, [row | {"ci_low": 2.9, "ci_high": 3.1}], command="evaluate", split="far", labels=labels
                )
                run.finish()
    collected = collect([tmp_path / "runs"])
    domains = collected.rows.groupby("split")["domain"].unique().map(list).to_dict()
    assert domains == {"test": ["in"], "far": ["out"]}
    report.write_report(tmp_path / "out", collected, compare(collected, against="a", units="eV"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| metric | method | test (in) | far (out) |" in text.partition("## In domain and out of it")[2]


def test_nothing_dominates_what_is_on_the_front():
    costs, bad = np.array([1.0, 2.0, 3.0, 3.0, np.nan]), np.array([3.0, 1.0, 2.0, 1.0, 0.0])
    assert pareto(costs, bad).tolist() == [True, True, False, False, False]
