"""The evaluation `md`: from a trained method to rows, files and figures."""

import io
import json
import shutil
import types
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase import units
from helpers import simulating, small_method
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from test_md import chain, frames_of, lithium, toy

import uqbench
from uqbench import config
from uqbench.errors import ConfigError, DataError
from uqbench.evaluations.md import Stability
from uqbench.figures import dynamics as figures
from uqbench.inference.calibration import Calibration
from uqbench.inference.trained_model import TrainedModel
from uqbench.md import outcome
from uqbench.report.load.run import read_run
from uqbench.runs import experiment, run_dir
from uqbench.runs.metrics_table import write_metrics
from uqbench.runs.run_dir import RunDir
from uqbench.runs.tables import READERS, render
from uqbench.uq.calibration import ConformalCalibration, LinearCalibration, ScoreCalibration

pytestmark = pytest.mark.numerics

LABELS = {"dataset": "toy", "subset": None, "backbone": "none", "uq": "none", "seed": 0}
OLD = Path(__file__).parents[1] / "data/runs_of_0.1/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305"
FEW = {"replicas": 4, "duration_ps": 0.05, "equilibration_ps": 0.01, "record_every": 5}


def stability(**changes) -> Stability:
    return config.build(simulating("evaluation", "md", **{**FEW, **changes}), slot="evaluation")


class ToyMethod(torch.nn.Module):
    """A method with the toy's analytic forces."""

    def __init__(self) -> None:
        super().__init__()
        scale, backbone = torch.tensor(1.0, dtype=torch.float64), types.SimpleNamespace(cutoff=2.0)
        self.potential = types.SimpleNamespace(scale=scale, backbone=backbone)
        self.predict = toy


def trained(method=None) -> TrainedModel:
    scores = ScoreCalibration(LinearCalibration(a=0.04, b=0.01, floor=0.01), ConformalCalibration({}))
    return TrainedModel(method or ToyMethod(), Calibration(forces=scores, energy=scores), "cpu")


def opened(folder, name="run") -> RunDir:
    labels = {"dataset": "toy", "backbone": "none", "uq": name, "seed": 0}
    return RunDir.open(root=folder, command="evaluate", config=OmegaConf.create(labels), **labels)


def evaluated(folder, frames, method=None, name="run", **changes):
    """Rows by population and metric, and the folder of the run."""
    with opened(folder, name) as run:
        rows = stability(**changes).evaluate(run, trained(method), frames, split="test", title="toy")
        write_metrics(run, rows, command="evaluate", split="test", labels=LABELS)
        run.finish()
    return {(row["population"], row["metric"]): row for row in rows}, run


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures out, which take most of the time of a short simulation."""
    monkeypatch.setattr("uqbench.evaluations.md.render", lambda drawings: {})


@pytest.fixture(scope="module")
def carbon():
    return frames_of([chain(3), chain(4), chain(3)])


@pytest.fixture(scope="module")
def mixed():
    """Two molecules that hold and two that fly apart."""
    return frames_of([chain(3), lithium(), chain(4), lithium()])


def test_when_all_survive(carbon, tmp_path):
    rows, run = evaluated(tmp_path, carbon)
    for temperature in (300, 500):
        population = f"temperature={temperature}K"
        survival = rows[population, "survival"]
        assert (survival["value"], survival["n"], survival["ci_high"]) == (1, 4, 1)
        assert survival["ci_low"] == pytest.approx(0.025**0.25)  # Clopper and Pearson
        assert rows[population, "restricted_mean_survival_time"]["value"] == pytest.approx(0.05)
        assert rows[population, "exploded"]["value"] == 0
        assert (population, "warning_auc") not in rows
    assert {row["target"] for row in rows.values()} == {"md", "cost"}
    assert not (run.path / "md_exploded.extxyz").exists()
    table = pd.read_parquet(run.path / "md.parquet")
    assert len(table) == 2 * 4 * (100 // 5 + 1)
    one = table[(table.temperature == 300) & (table.replica == 0)]
    np.testing.assert_allclose(one.time_ps, 0.0025 * np.arange(21))
    np.testing.assert_allclose(table.force_std_max, np.sqrt(0.04 * table.score_max + 0.01))
    assert np.all(table.score_mean <= table.score_max) and np.all(table.force_std_mean <= table.force_std_max + 1e-12)
    mean = table[(table.temperature == 500) & (table.time_ps > 0.01)].groupby("replica").kinetic_temperature.mean()
    assert rows["temperature=500K", "mean_temperature"]["value"] == pytest.approx(mean.mean())
    assert rows["temperature=500K", "mean_temperature"]["n"] == 4
    assert "MD, temperature=300K" in render(run.read_rows("metrics.csv", READERS))


def test_when_all_explode(tmp_path):
    rows, run = evaluated(tmp_path, frames_of([lithium(), lithium()]), duration_ps=0.2)
    fates = pd.read_csv(run.path / "md_replicas.csv")
    assert fates.exploded.all() and fates.time_ps.max() < 0.2
    for temperature, own in fates.groupby("temperature"):
        population = f"temperature={temperature:g}K"
        survival = rows[population, "survival"]
        assert (survival["value"], survival["ci_low"]) == (0, 0) and survival["ci_high"] == pytest.approx(
            1 - 0.025**0.25
        )
        assert rows[population, "restricted_mean_survival_time"]["value"] == pytest.approx(own.time_ps.mean())
        assert rows[population, "exploded"]["value"] == 4
        by_reason = [row["value"] for key, row in rows.items() if key[0] == population and "exploded_" in key[1]]
        assert sum(by_reason) == 4
        assert np.isnan(rows[population, "mean_temperature"]["value"])
        assert np.isnan(rows[population, "energy_drift"]["value"])
    render(run.read_rows("metrics.csv", READERS))


def test_trajectories_of_the_exploded_end_with_the_explosion(mixed, tmp_path, undrawn):
    _, run = evaluated(tmp_path, mixed, duration_ps=0.1, keep_frames=3, record_every=2, temperatures=[400])
    fates = pd.read_csv(run.path / "md_replicas.csv")
    assert 0 < fates.exploded.sum() < len(fates)
    assert set(fates[fates.exploded].frame) == {1, 3} and set(fates[~fates.exploded].frame) == {0, 2}
    assert np.all(fates[~fates.exploded].time_ps == 0.1)
    table = pd.read_parquet(run.path / "md.parquet")
    frames = ase.io.read(io.StringIO((run.path / "md_exploded.extxyz").read_text()), ":", format="extxyz")
    assert {atoms.info["replica"] for atoms in frames} == set(fates[fates.exploded].replica)
    for replica, fate in fates[fates.exploded].set_index("replica").iterrows():
        own = [atoms for atoms in frames if atoms.info["replica"] == replica]
        assert [atoms.info["exploded"] for atoms in own] == [False] * 3 + [True]
        times = [atoms.info["time_ps"] for atoms in own]
        assert times == sorted(times) and times[-1] == pytest.approx(fate.time_ps)
        assert own[-1].info["reason"] == fate.reason
        recorded = table[table.replica == replica].tail(3)
        np.testing.assert_allclose(times[:3], recorded.time_ps)
        assert recorded.time_ps.max() < fate.time_ps <= recorded.time_ps.max() + 2 * 0.5e-3 + 1e-9
        np.testing.assert_allclose([atoms.get_potential_energy() for atoms in own[:3]], recorded.energy)
        np.testing.assert_allclose([atoms.arrays["score"].max() for atoms in own[:3]], recorded.score_max, atol=1e-7)
        assert np.linalg.norm(own[0].get_forces()[0]) > 1
        assert own[-1].get_forces().shape == (3, 3)


def test_replicas_do_not_depend_on_their_number_their_batch_or_other_temperatures(mixed, tmp_path, undrawn):
    keys, short = ["temperature", "replica", "time_ps"], {"duration_ps": 0.03}
    _, run = evaluated(tmp_path, mixed, name="whole", **short)
    whole = pd.read_parquet(run.path / "md.parquet").set_index(keys)
    for name, changes in {
        "parts": {"batch_size": 3},
        "fewer": {"replicas": 2},
        "cold": {"temperatures": [300]},
        "twisted": {"temperatures": [500, 300]},
    }.items():
        _, run = evaluated(tmp_path, mixed, name=name, **short, **changes)
        other = pd.read_parquet(run.path / "md.parquet").set_index(keys)
        pd.testing.assert_frame_equal(other.sort_index(), whole.loc[other.index].sort_index(), check_exact=True)
    _, run = evaluated(tmp_path, mixed, name="seed", seed=1, **short)
    assert not np.allclose(pd.read_parquet(run.path / "md.parquet").energy.iloc[:5], whole.energy.iloc[:5])


def test_the_same_command_gives_the_same_bits_on_a_network(ethanol, tmp_path):
    method = small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 2}).to(torch.float32)
    tables, files = [], []
    for name in ("one", "two"):
        _, run = evaluated(
            tmp_path, ethanol, method, name, duration_ps=0.01, equilibration_ps=0.0, kinetic_alarm=1e-300
        )
        tables.append(pd.read_parquet(run.path / "md.parquet"))
        files.append((run.path / "md_uncertainty.png").read_bytes())
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert files[0] == files[1]
    assert np.isfinite(tables[0].energy).all() and tables[0].score_max.gt(0).all()
    assert tables[0][tables[0].time_ps == 0].frame.nunique() == 4


def test_starting_from_one_frame(mixed, tmp_path, undrawn):
    _, run = evaluated(tmp_path, mixed, start_frame=2)
    table = pd.read_parquet(run.path / "md.parquet")
    assert set(table.frame) == {2} and table.groupby(["temperature", "time_ps"]).energy.nunique().iloc[-1] == 4


def test_an_interrupted_simulation_leaves_no_results(carbon, tmp_path):
    method, calls = ToyMethod(), []

    def interrupted(batch):
        calls.append(len(batch))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return toy(batch)

    method.predict = interrupted
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        stability().evaluate(run, trained(method), carbon, split="test", title="toy")
    assert run.info["status"] == "interrupted"
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "run.json", ".lock"}


# ---------------------------------------------------------------------------------------------- what rows mean


def recorded(scores: dict[int, list[float]], exploded: set[int], temperature=300.0):
    """Frames and fates of replicas with these scores, one recorded every picosecond."""
    rows = [
        {
            "temperature": temperature, "replica": replica, "frame": 0, "n_atoms": 4, "time_ps": float(time),
            "score_max": score, "force_std_max": 10 * score, "kinetic_temperature": 300.0 + replica,
            "conserved_energy": 0.004 * time * (replica + 1),
        }
        for replica, values in scores.items()
        for time, score in enumerate(values)
    ]  # fmt: skip
    fates = [
        {
            "temperature": temperature, "replica": replica, "exploded": replica in exploded,
            "time_ps": len(values) - 0.5 if replica in exploded else 9.0,
            "reason": "min_distance" if replica in exploded else "",
        }
        for replica, values in scores.items()
    ]  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(fates)


def rows_of(frames, fates, warning=2, equilibration=0.0):
    found = outcome.rows(frames, fates, duration=9.0, equilibration=equilibration, warning=warning)
    return {row["metric"]: row for row in found}


def test_the_warning_compares_the_last_frames_with_all_others():
    frames, fates = recorded({0: [1.0] * 10, 1: [1.0, 2.0, 1.0, 4.0, 6.0], 2: [1.0, 1.0, 3.0]}, exploded={1, 2})
    rows = rows_of(frames, fates)
    # Late: 4 6 of one, 1 3 of the other; calm: 13 ones and a two.
    assert rows["force_std_rise"]["value"] == pytest.approx(np.median([5.0, 2.0]))
    assert rows["force_std_rise"]["n"] == 2
    assert rows["median_force_std"]["value"] == 10 and rows["median_force_std"]["n"] == 14
    wins = [14, 14, 0.5 * 13, 14]  # of 6 4 1 3 against thirteen ones and a two
    assert rows["warning_auc"]["value"] == pytest.approx(sum(wins) / (4 * 14))
    assert rows["exploded_min_distance"]["value"] == 2


def test_a_warning_without_calm_frames_is_undefined():
    frames, fates = recorded({0: [1.0], 1: [2.0, 3.0]}, exploded={0, 1})
    rows = rows_of(frames, fates)
    assert np.isnan(rows["force_std_rise"]["value"]) and np.isnan(rows["warning_auc"]["value"])


def test_temperature_and_drift_are_those_of_survivors_after_equilibration():
    frames, fates = recorded({0: [1.0] * 10, 1: [1.0] * 5, 2: [1.0] * 10, 3: [1.0] * 10}, exploded={1})
    frames.loc[frames.time_ps <= 3, ["kinetic_temperature", "conserved_energy"]] = 1e6
    rows = rows_of(frames, fates, equilibration=3.0)
    values = np.array([300.0, 302.0, 303.0])
    assert rows["mean_temperature"]["value"] == pytest.approx(values.mean())
    from scipy import stats

    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (rows["mean_temperature"]["ci_low"], rows["mean_temperature"]["ci_high"]) == pytest.approx((low, high))
    assert rows["energy_drift"]["value"] == pytest.approx(0.001 * np.mean([1, 3, 4]))


def test_figures_show_every_temperature():
    cold, hot = recorded({0: [1.0] * 10, 1: [1.0] * 5}, {1}), recorded({0: [1.0, 50.0], 1: [2.0, 3.0]}, {0, 1}, 900.0)
    frames, fates = (pd.concat(parts, ignore_index=True) for parts in zip(cold, hot, strict=True))
    axes = Figure().add_subplot()
    figures.survival(axes, fates)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["300 K: 1 of 2 left", "900 K: 0 of 2 left"]
    x, y = next(line for line in axes.get_lines() if line.get_label().startswith("900")).get_data()
    assert y.tolist() == [100, 50, 0, 0] or y.tolist() == [100, 0, 0]
    axes = Figure().add_subplot()
    figures.uncertainty(axes, outcome.marked(frames, fates, 2), fates)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "300 K, 1 survivors: median, 5–95 %" in labels and "900 K, exploded: 2 of 2 drawn" in labels
    assert axes.get_yscale() == "log"


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": []}, "evaluation.temperatures"),
        ({"temperatures": [300, 300]}, "evaluation.temperatures"),
        ({"temperatures": [-1]}, "evaluation.temperatures"),
        ({"replicas": 0}, "evaluation.replicas"),
        ({"friction_per_ps": -1.0}, "protocol.friction_per_ps"),
        ({"timestep_fs": 0.0}, "protocol.timestep_fs"),
        ({"duration_ps": 0.001}, "protocol.duration_ps"),
        ({"equilibration_ps": 1.0}, "protocol.equilibration_ps"),
        ({"record_every": 0}, "protocol.record_every"),
        ({"keep_frames": 0}, "evaluation.keep_frames"),
        ({"warning_frames": 0}, "evaluation.warning_frames"),
        ({"batch_size": 0}, "protocol.batch_size"),
        ({"skin": 0.0}, "protocol.skin"),
        ({"seed": -1}, "evaluation.seed"),
        ({"max_distance": 0.1}, "protocol.limits.max_distance"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        stability(**change)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_distance": 2.5}, r"protocol.limits.max_distance: 2.5 Å .* frame 0 of split 'test' atoms 0 and 2"),
        ({"min_distance": 1.44}, r"protocol.limits.min_distance: 1.44 Å .* atoms 0 and 1 are 1.432 Å"),
        ({"start_frame": 17}, r"evaluation.start_frame: no frame 17 .* 0, 1, 2"),
    ],
)
def test_starts_that_are_no_starts_leave_no_run(change, message, carbon, tmp_path):
    with pytest.raises((DataError, ConfigError), match=message), opened(tmp_path) as run:
        stability(**change, bond_stretch=None).evaluate(run, trained(), carbon, split="test", title="toy")
    assert not list(tmp_path.iterdir())


def test_units_of_time_and_temperature():
    """A free atom drifts with its velocity: 1 ps is 1000 fs, and 300 K are 3/2 kB 300 K of kinetic energy."""
    kinetic = 1.5 * units.kB * 300
    assert kinetic == pytest.approx(0.0388, abs=1e-4)
    protocol = stability(duration_ps=1.0, timestep_fs=0.5).protocol
    assert protocol.steps == 2000 and protocol.duration == pytest.approx(1.0)


def test_a_protocol_is_nothing_else():
    for name, message in {
        "uqbench.md.limits.Limits": "expected a Protocol",
        "os.system": "'os.system' is not trusted",
    }.items():
        settings = simulating("evaluation", "md")
        settings.protocol._target_ = name
        with pytest.raises(ConfigError, match=f"evaluation.protocol._target_: .*{message}"):
            config.build(OmegaConf.create({"evaluation": settings}).evaluation)
    settings = simulating("evaluation", "md", duration_ps="long")
    del settings.protocol.limits.min_distance
    with pytest.raises(ConfigError) as error:
        config.build(OmegaConf.create({"evaluation": settings}).evaluation)
    assert str(error.value).splitlines() == [
        "evaluation.protocol.duration_ps: expected a number > 0, got 'long'",
        "evaluation.protocol.limits.min_distance: missing; uqbench.md.limits.Limits needs it",
    ]


# ---------------------------------------------------------------------------------------------- earlier versions

FLAT = """
_target_: uqbench.simulate.stability.Stability
temperatures: [300]
replicas: 4
start_frame: null
duration_ps: 1.0
timestep_fs: 0.5
friction_per_ps: 10.0
min_distance: 0.75
max_distance: null
bond_tolerance: 1.25
bond_stretch: null
kinetic_alarm: 1.0e-12
kinetic_excess: 4.0
record_every: 20
keep_frames: 20
equilibration_ps: 0.2
warning_frames: 5
skin: 1.0
batch_size: 200
seed: 0
"""


def test_a_model_that_was_trained_with_the_former_keys_of_dynamics_loads_and_can_be_evaluated(tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "run")
    stored = OmegaConf.load(folder / "config.yaml")
    stored.evaluations = {"stability": {"split": "test", "evaluation": OmegaConf.create(FLAT)}}
    OmegaConf.save(stored, folder / "config.yaml")
    info = json.loads((folder / "run.json").read_text())
    info["files"]["config.yaml"] = (folder / "config.yaml").stat().st_size
    (folder / "run.json").write_text(json.dumps(info))
    assert uqbench.load(folder).elements == ["H", "C", "O"]
    settings = simulating("evaluation", "md", **FEW | {"replicas": 1, "temperatures": [10], "duration_ps": 0.02})
    asked = {"command": "evaluate", "seed": 0, "outputs": str(tmp_path), "data_root": None, "kernels": "auto"}
    asked |= {"run": str(folder), "split": "test", "dataset": None, "evaluation": settings}
    evaluated = experiment.evaluate(OmegaConf.create(asked), {"evaluation": "md"})
    assert "md" in set(evaluated.read_csv("metrics.csv").target)


def test_tables_of_an_evaluation_with_the_former_keys_can_be_read(carbon, tmp_path, undrawn):
    settings = OmegaConf.create({**LABELS, "command": "evaluate", "evaluation": OmegaConf.create(FLAT)})
    place = {name: LABELS[name] for name in ("dataset", "backbone", "uq", "seed")}
    with RunDir.open(root=tmp_path, command="evaluate", config=settings, **place) as run:
        rows = stability().evaluate(run, trained(), carbon, split="test", title="toy")
        write_metrics(run, rows, command="evaluate", split="test", labels=LABELS)
        run.update(labels=LABELS)
        run.finish()
    config.require_slots(run_dir.read(run.path).config)
    record, table = read_run(run.path)
    assert record.settings["evaluation.duration_ps"] == 1 and table.num_rows == len(rows)
    assert len(pd.read_parquet(run.path / "md.parquet"))
