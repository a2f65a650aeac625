"""What a report says of planted runs: methods, domains, structure, generations, survival."""

import numpy as np
import pandas as pd
import pytest
from report_runs import learned_runs, row, write_evaluation, write_run

from uqbench.report import write_report
from uqbench.report.figures.costs import pareto


def report_on(tmp_path, runs=None, against="a"):
    """The folder of a report, and its text."""
    write_report(str(runs or tmp_path / "runs"), against=against, units="eV", output=str(tmp_path / "out"))
    return tmp_path / "out", (tmp_path / "out" / "report.md").read_text()


@pytest.fixture
def learned(tmp_path):
    learned_runs(tmp_path / "runs")
    return tmp_path / "runs"


def test_the_report_holds_every_method_and_can_be_written_again(tmp_path):
    for uq in ("a", "b"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", uq, seed, {"mae": 1.0 + seed, "spearman": np.nan, "cnll": -1.0})
    (out, text), _ = report_on(tmp_path), report_on(tmp_path)
    tables = {f"{name}.csv" for name in ("metrics", "summary", "differences", "ranks", "claims")}
    files = {path.name for path in out.iterdir() if path.suffix != ".png"}
    assert files == tables | {"metrics.parquet", "report.md", "report.html"}
    assert "| metric (runs) | a (2) | b (2) |" in text and "4 finished runs" in text
    assert "## Claims of the study" in text and "## Ranks" in text
    assert "| Spearman ρ | – | – |" in text, "undefined, not zero"
    page = (out / "report.html").read_text()
    assert not any(word in page for word in ("@import", "url(", "<script")), "asks for nothing else"
    tidy = pd.read_parquet(out / "metrics.parquet")
    assert tidy["path"].nunique() == 4 and {"variant", "path", "domain"} <= set(tidy.columns)
    assert pd.read_csv(out / "metrics.csv")["value"].equals(tidy["value"])
    assert pd.read_csv(out / "claims.csv")["claim"].tolist() == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert set(pd.read_csv(out / "summary.csv")["uq"]) == {"a", "b"}
    assert list(pd.read_csv(out / "ranks.csv")) == ["domain", "method", "mean_rank", "blocks", "left_out"]


def test_figures_drawn_in_processes_are_the_same(tmp_path, monkeypatch):
    for subset in ("s", "t"):
        for uq in ("a", "b"):
            write_run(tmp_path / "runs", uq, 0, {"mae": 1.0}, dataset__name=subset)
    alone = report_on(tmp_path)[0].joinpath("report.html").read_bytes()
    monkeypatch.setattr("uqbench.report.render.files.WORTH_A_PROCESS", 1)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    assert report_on(tmp_path)[0].joinpath("report.html").read_bytes() == alone


def test_the_structure_of_simulations_is_a_table_of_its_elements(tmp_path):
    names = {"survival": 1.0, "rdf_difference_Si–O": 0.2, "closest_shift_O–O": -0.8, "density": 2.2}
    for uq, worse in (("a", 1.0), ("b", 2.0)):
        for seed in (0, 1):
            rows = [
                row("structure", name, value * (1 if name in ("survival", "density") else worse), n=4)
                | {"population": "temperature=300K"}
                for name, value in names.items()
            ]
            write_evaluation(tmp_path / "runs", uq, seed, rows, split="test", source=f"{uq}{seed}", dataset="glass")
    _, text = report_on(tmp_path)
    assert "| share of replicas that stay sound, 300K |" in text
    assert "| shift of the shortest distance, O–O, 300K |" in text
    (line,) = (
        line for line in text.splitlines() if line.startswith("| ∫\\|Δg(r)\\| dr, Si–O, 300K |") and "**" in line
    )
    assert "0.2000" in line and "0.4000" in line
    assert "density" not in text and "## glass, t, test, net, structure\n" in text


def test_evaluations_elsewhere_are_out_of_domain_and_stand_beside(tmp_path):
    """The same models on the frames that they were tested on and on others."""
    for uq in ("a", "b"):
        for seed in (0, 1):
            path = write_run(tmp_path / "runs", uq, seed, {"mae": 1.0})
            rows = [row("forces", "mae", 3.0, ci_low=2.9, ci_high=3.1)]
            write_evaluation(tmp_path / "runs", uq, seed, rows, split="far", source=path)
    out, text = report_on(tmp_path)
    domains = pd.read_parquet(out / "metrics.parquet").groupby("split")["domain"].unique().map(list).to_dict()
    assert domains == {"test": ["in"], "far": ["out"]}
    assert "| metric | method | test (in) | far (out) |" in text.partition("## In domain and out of it")[2]


def test_active_learning_is_shown_with_generations_survival_and_differences(learned, tmp_path):
    out, text = report_on(tmp_path, against="ensemble")
    for heading in ("## Active learning: toy, net, oracle=xtb", "| metric | method | generation 1 | generation 2 |"):
        assert heading in text
    assert "| metric | method | adversarial − random |" in text and "method − ensemble" in text
    assert "share of replicas that survive, 300K | ensemble (acquisition=adversarial) | " in text
    for name in ("learning_toy-net-oracle-xtb.png", "survival_hot_toy-net-oracle-xtb.png"):
        assert name in text and (out / name).stat().st_size > 10_000


def test_a_damaged_table_of_replicas_is_named(learned, tmp_path):
    head = "temperature,time_ps,exploded\n"
    paths = sorted(learned.glob("al/*/*/*/*/generation_2_hot/md_replicas.csv"))
    damaged = dict(zip(paths, ["nothing,of,use\n", f"{head}a,b,c\n", f"{head}300,,True\n"], strict=False))
    assert len(damaged) == 3 < len(paths)
    for path, table in damaged.items():
        path.write_text(table)
    _, text = report_on(tmp_path, against="ensemble")
    for path in paths:
        assert (f"{path}: missing or damaged" in text) == (path in damaged)


def test_nothing_dominates_what_is_on_the_front():
    costs, bad = np.array([1.0, 2.0, 3.0, 3.0, np.nan]), np.array([3.0, 1.0, 2.0, 1.0, 0.0])
    assert pareto(costs, bad).tolist() == [True, True, False, False, False]
