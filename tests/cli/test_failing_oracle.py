"""`uqbench al` with an oracle that fails: too many failures stop it, and no label is lost or made again."""

import pandas as pd
import pytest
from helpers import CONF
from omegaconf import OmegaConf
from toy_calculators import calculations

from uqbench.cli import main
from uqbench.runs import run_dir

pytestmark = pytest.mark.usefixtures("without_figures")

TINY = [
    *("uq=gmm", "uq.components=1", "uq.reg_covar=1e-3", "backbone.features=8", "backbone.layers=1"),
    *("training.epochs=2", "evaluation.bootstrap=0", "evaluation.ideal_draws=1", "evaluations.out_of_domain=null"),
    *("acquisition=random", "al.generations=2", "al.proposals=6", "al.batch=4"),
    "oracle.workers=1",
]


def labels_in(cache):
    return len(list(cache.rglob("labels/*/*/*.json")))


def test_too_many_failures_stop_it_and_no_label_is_made_twice(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("UQBENCH_TRUSTED", "toy_calculators")
    monkeypatch.setattr("uqbench.active.loop.render", lambda drawings: {})
    monkeypatch.setattr("uqbench.active.learning.learning_figures", lambda rows, title: {})
    log, cache, ration = tmp_path / "log", tmp_path / "cache", tmp_path / "log.ration"
    command = ["al", *TINY, f"outputs={tmp_path / 'outputs'}", f"oracle.cache={cache}"]
    option = OmegaConf.load(CONF / "oracle" / "ase.yaml")
    option.merge_with({"calculator": "toy_calculators.Rationed", "arguments": {"k": 2.0, "log": str(log)}})
    (tmp_path / "conf" / "oracle").mkdir(parents=True)
    OmegaConf.save(option, tmp_path / "conf" / "oracle" / "rationed.yaml")
    command += ["--config-dir", str(tmp_path / "conf"), "oracle=rationed"]

    def fails(max_failed, calculable):
        ration.write_text(str(calculable))
        assert main([*command, f"oracle.max_failed={max_failed}"]) == 1
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uqbench: error:")]
        [run] = tmp_path.glob("outputs/al/*/*/*/seed0-*")
        assert labels_in(cache) == calculations(log) == calculable
        assert not list(tmp_path.rglob("*.tmp")) and not list(cache.rglob("*.lock"))
        assert run_dir.record(run)["status"] == "failed"
        return run, line

    # Frames of the data set: nothing is trained on what is left of them.
    run, line = fails(0.2, 60)
    record = pd.read_csv(run / "failures_0.csv")
    total = 60 + len(record)
    assert line.startswith(f"uqbench: error: oracle: {len(record)} of {total} frames have no label (")
    assert f"oracle.max_failed allows 20%), {len(record)} of them like frame {record.frame[0]}: RuntimeError: " in line
    assert (
        f"all reasons: {run / 'failures_0.csv'}; labels are kept: repeat the command with a larger oracle.max" in line
    )
    assert set(record.reason) == {"RuntimeError: nothing left"} and set(record.attempts) == {1}
    assert not (run / "data_1.npz").exists() and not list(run.glob("generation_1/best.pt"))
    # Proposals: the same run goes on, with the labels that were there.
    again, line = fails(0.2, total + 1)
    assert again == run and not (run / "failures_0.csv").exists()
    assert line.startswith("uqbench: error: oracle: 3 of 4 frames have no label (75%; oracle.max_failed allows 20%), ")
    record = pd.read_csv(run / "failures_1.csv")
    assert len(record) == 3 and f"like proposal {record.proposal[0]}: " in line
    assert not (run / "labels_1.csv").exists() and not (run / "data_2.npz").exists()
    trained = (run / "generation_1" / "best.pt").stat().st_mtime_ns
    # So it does with a larger share, whose other labels are not asked for again.
    caplog.clear()
    assert main([*command, "oracle.max_failed=0.75"]) == 0
    assert caplog.text.count("could not be labelled: RuntimeError: nothing left") == 3, "and failures only once"
    assert calculations(log) == labels_in(cache) == total + 1
    assert (run / "generation_1" / "best.pt").stat().st_mtime_ns == trained
    assert pd.read_csv(run / "labels_1.csv")["failure"].notna().sum() == 3
    splits = run_dir.read(run / "generation_2").read_json("splits.json")
    assert sum(map(len, splits.values())) == total + 1


@pytest.mark.parametrize("relabel", ["true", "false"])
def test_impossible_electrons_are_refused_before_anything_is_trained(tmp_path, capsys, relabel):
    command = ["al", "oracle=xtb", "oracle.charge=1", f"al.relabel={relabel}", f"outputs={tmp_path}"]
    assert main([*command, f"oracle.cache={tmp_path / 'cache'}"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "uqbench: error: oracle.multiplicity: 1 is impossible for frame 0 (H3N), which has 7 valence electrons with "
        "oracle.charge=1; possible are 2, 4, 6, 8"
    ]
    assert not any(tmp_path.iterdir()), "nothing is left behind"
