"""`uqbench al` from the command line: finished runs, killed runs, and what is left behind."""

import json
import shutil
import time

import pandas as pd
import pytest

from uqbench.cli import main
from uqbench.runs import lock, run_dir

pytest.importorskip("tblite", reason="the oracle needs the extra xtb")
pytestmark = pytest.mark.usefixtures("without_figures")

TINY = [
    *("uq=gmm", "uq.components=1", "uq.reg_covar=1e-3", "backbone.features=8", "backbone.layers=1"),
    *("training.epochs=4", "training.checkpoint_seconds=0", "evaluation.bootstrap=4", "evaluation.ideal_draws=1"),
    *("evaluations.out_of_domain.evaluation.bootstrap=0", "evaluations.out_of_domain.evaluation.ideal_draws=1"),
    *("acquisition.steps=4", "al.generations=2", "al.proposals=6", "al.batch=4", "oracle.workers=1"),
]


def command(folder, *changes):
    return ["al", *TINY, f"outputs={folder / 'outputs'}", f"oracle.cache={folder.parent / 'cache'}", *changes]


def run_of(folder):
    (path,) = (folder / "outputs").glob("al/*/*/*/seed0-*")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, without_figures):
    """A folder with a run of two generations, which nothing may change."""
    folder = tmp_path_factory.mktemp("al") / "finished"
    folder.mkdir()
    assert main(command(folder)) == 0
    return folder


def test_every_generation_is_a_run_with_its_own_frames(finished):
    path = run_of(finished)
    splits = [json.loads((path / f"generation_{g}" / "splits.json").read_text()) for g in (1, 2)]
    new = pd.read_csv(path / "labels_1.csv")
    labelled = int(new["energy"].notna().sum())
    assert {json.loads(info.read_text())["family"] for info in path.glob("**/run.json")} == {"layer"}
    assert 1 <= labelled <= 4
    assert len(splits[1]["train"]) + len(splits[1]["validation"]) == 47 + 16 + labelled
    assert splits[1]["test"] == splits[0]["test"] and splits[1]["out_of_domain"] == splits[0]["out_of_domain"]
    assert set(splits[0]["train"]) < set(splits[1]["train"])
    metrics = pd.read_csv(path / "metrics.csv")
    assert set(metrics["generation"]) == {1, 2} and set(metrics["split"]) == {"test", "out_of_domain"}
    mae = metrics[(metrics["metric"] == "mae") & (metrics["target"] == "forces")]
    assert len(mae) == 4
    row = metrics[(metrics["target"] == "acquisition") & (metrics["metric"] == "labelled")]
    assert row["generation"].tolist() == [1] and row["value"].item() == labelled
    assert (path / "learning_mae.png").stat().st_size > 10_000


def test_a_generation_can_be_evaluated_like_any_run(finished, tmp_path):
    run = run_of(finished) / "generation_2"
    assert run_dir.read(run).done
    assert main(["evaluate", f"run={run}", "split=validation", f"outputs={tmp_path}", "evaluation.bootstrap=0"]) == 0


def test_the_same_command_again_only_prints(finished, capsys):
    def written():
        files = [path for path in run_of(finished).rglob("*") if path.is_file() and path.name != lock.LOCK]
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    assert main(command(finished)) == 0
    assert "generation 2" in capsys.readouterr().out
    assert written() == before


def others(folder, *names):
    """Runs beside the first one, by what they were told."""
    return [path for path in (folder / "outputs").glob("al/*/*/*/seed0-*") if path.name not in names]


def test_runs_that_begin_alike_share_the_beginning(finished, tmp_path):
    """A run with another acquisition adopts the first generation, and comes to what it would have trained itself."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    shutil.copytree(finished, together)
    first = run_of(together).name
    wanted = command(together, "acquisition=random", f"oracle.cache={finished.parent / 'cache'}")
    wanted.remove("acquisition.steps=4")
    assert main(wanted) == 0
    assert main([word.replace(str(together), str(alone)) for word in wanted]) == 0
    (path,), unshared = others(together, first), run_of(alone)
    assert run_dir.read(path / "generation_1").info["adopted_from"].endswith(f"{first}/generation_1")
    assert "adopted_from" not in run_dir.read(unshared / "generation_1").info
    assert "adopted_from" not in run_dir.read(path / "generation_2").info, "its frames are its own"
    tables = [pd.read_csv(run / "metrics.csv").query("target != 'cost'") for run in (path, unshared)]
    pd.testing.assert_frame_equal(*tables)
    for name in ("generation_1/predictions_test.parquet", "data_2.npz"):
        assert (path / name).read_bytes() == (unshared / name).read_bytes(), name


@pytest.mark.parametrize("change", ["training.epochs=3", "dataset.split_seed=7"])
def test_runs_that_begin_otherwise_share_nothing(finished, tmp_path, change):
    together = tmp_path / "together"
    shutil.copytree(finished, together)
    first = run_of(together).name
    assert main(command(together, change, "al.generations=1", f"oracle.cache={finished.parent / 'cache'}")) == 0
    (path,) = others(together, first)
    assert "adopted_from" not in run_dir.read(path / "generation_1").info


def test_a_generation_without_new_frames_is_the_last_one_again(tmp_path, finished, capsys, caplog):
    folder = tmp_path / "nothing"
    folder.mkdir()
    # All bonds N-H are shorter than 1.2 times the sum of the radii, whatever the model is sure of.
    wanted = ["selection.min_distance=1.2", f"oracle.cache={finished.parent / 'cache'}"]
    assert main(command(folder, *wanted)) == 0
    assert "none of the proposals is fit to be labelled: 6 " in caplog.text
    second = run_dir.read(run_of(folder) / "generation_2")
    assert second.info["adopted_from"].endswith("generation_1")
    tables = [pd.read_csv(run_of(folder) / f"generation_{g}" / "metrics.csv") for g in (1, 2)]
    assert set(tables[1]["generation"]) == {2} and set(tables[1]["run_id"]) == {"generation_2"}
    pd.testing.assert_series_equal(tables[0]["value"], tables[1]["value"])
    rows = pd.read_csv(run_of(folder) / "metrics.csv")
    kinds = ["target", "population", "metric"]
    assert rows[rows["split"] == "out_of_domain"].groupby(kinds)["value"].nunique().max() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "marker", ["data_1.npz", "generation_1/layer.pt", "generation_1/last.pt", "labels_1.csv", "generation_2/last.pt"]
)
def test_killed_anywhere_it_goes_on_to_the_same_frames(finished, tmp_path, marker, program):
    folder = tmp_path / "killed"
    folder.mkdir()
    process = program.start(command(folder, f"oracle.cache={finished.parent / 'cache'}"), figures=False)
    deadline = time.monotonic() + 200
    while not list(folder.glob(f"outputs/al/*/*/*/seed0-*/{marker}")):
        assert process.poll() is None and time.monotonic() < deadline, f"ended before it could be killed: {process.err}"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert main(command(folder, f"oracle.cache={finished.parent / 'cache'}")) == 0
    for name in ("data_1.npz", "data_2.npz", "proposals_1.extxyz", "labels_1.csv"):
        assert (run_of(folder) / name).read_bytes() == (run_of(finished) / name).read_bytes(), name
    steps = [json.loads(line) for line in (run_of(folder) / "journal.jsonl").read_text().splitlines()]
    done = [(step["generation"], step["step"]) for step in steps]
    assert done == [(1, "data"), (1, "propose"), (1, "label"), (2, "data")], "nothing twice, nothing skipped"


def test_a_file_of_a_finished_step_that_changed_is_noticed(finished, tmp_path, capsys):
    """In a run that is not finished; a finished one is watched by its own list of files."""
    from uqbench.active.journal import Journal
    from uqbench.errors import DataError

    class Folder:
        path = tmp_path

        def write_bytes(self, name, content):
            (tmp_path / name).write_bytes(content)

        def write_text(self, name, content):
            (tmp_path / name).write_text(content)

    calls = []

    def make():
        calls.append(1)
        return b"content", {"fact": 7}

    assert Journal(Folder()).once(1, "data", "a.bin", make)["fact"] == 7
    assert Journal(Folder()).once(1, "data", "a.bin", make)["fact"] == 7
    assert len(calls) == 1, "not repeated"
    (tmp_path / "a.bin").write_bytes(b"changed")
    with pytest.raises(DataError, match="a.bin: missing or changed"):
        Journal(Folder()).once(1, "data", "a.bin", make)
    (tmp_path / "journal.jsonl").write_text("{half a li")
    with pytest.raises(DataError, match="damaged"):
        Journal(Folder())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("al.batch=100", "al.batch: expected an integer <= proposals"),
        ("al.generations=0", "al.generations: expected an integer >= 1, got 0"),
        ("acquisition.kT=0", "acquisition.kT"),
        ("evaluations.out_of_domain.split=out_of_domian", "did you mean 'out_of_domain'"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, capsys, change, words):
    folder = tmp_path / "bad"
    folder.mkdir()
    assert main(command(folder, change)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error.splitlines()[-1]
    assert "epoch" not in error, "before anything is trained"


def test_a_method_that_is_sure_of_everything_is_refused_before_it_is_trained(tmp_path, capsys):
    words = [word for word in command(tmp_path) if not word.startswith("uq")]
    assert main([*words, "uq=deterministic"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("uqbench: error: uq: Deterministic is equally sure") and "\n" not in error
    assert not list(tmp_path.glob("outputs/al/*/*/*/*")), "nothing is left behind"


def test_an_evaluation_can_be_left_out(finished, tmp_path):
    folder = tmp_path / "without"
    folder.mkdir()
    wanted = [word for word in command(folder) if not word.startswith("evaluations.out_of_domain")]
    wanted += ["evaluations.out_of_domain=null", "al.generations=1", f"oracle.cache={finished.parent / 'cache'}"]
    assert main(wanted) == 0
    assert set(pd.read_csv(run_of(folder) / "metrics.csv")["split"]) == {"test"}
