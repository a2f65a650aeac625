"""Zeolites with whole frameworks held out, on small files made here; the real ones are in tests/real."""

import hashlib
import http.server
import re
import threading

import numpy as np
import pytest
from ase import Atoms
from ase.geometry import get_distances

from uqbench.data.sources import zeolite
from uqbench.data.sources.base import SPLITS
from uqbench.data.sources.zeolite import Zeolite
from uqbench.data.structures import check_splits
from uqbench.errors import DataError

SIZES = {"n_train": 10, "n_validation": 4, "n_test": 5, "n_out_of_domain": 6}
NUMBERS = {"sod": 2, "dft": 1, "oso": 3}  # formula units
SPREAD, STEP = 0.5, 0.01  # Å: independent frames, and neighbours of a trajectory


def make(root, held_out=("oso",), **changes):
    arguments = {"frameworks": list(NUMBERS), "held_out": list(held_out), "apart": 0.0, "split_seed": 0}
    arguments |= {"data_root": str(root), "cache": str(root / "cache"), "url": None}
    return Zeolite(**(arguments | SIZES | changes))


def write(folder, name, frames=40, seed=0):
    """Half of the frames are independent, half a trajectory that wanders out of the cell and across its faces."""
    rng = np.random.default_rng([seed, NUMBERS[name]])
    units = NUMBERS[name]
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0.5, -1.0, 7.0 * units]])
    ideal = rng.uniform(size=(3 * units, 3)) @ cell
    ideal = cell[None].mean(axis=1) + 2.5 * np.arange(3 * units)[:, None] * [0.3, 0.5, 1.0]
    independent = ideal + rng.uniform(-SPREAD, SPREAD, (frames // 2, 3 * units, 3))
    steps = rng.uniform(-STEP, STEP, (frames // 2, 3 * units, 3))
    trajectory = ideal + np.cumsum(steps, axis=0) + 0.3 * np.arange(frames // 2)[:, None, None]
    positions = np.concatenate([independent, trajectory])
    images = rng.integers(-1, 2, positions.shape) @ cell
    order = rng.permutation(frames)
    arrays = {
        "positions": (positions + images)[order].astype(np.float32),
        "energies": rng.normal(-23.8 * units, 1, frames).astype(np.float32),
        "forces": rng.normal(size=positions.shape).astype(np.float32),
        "cells": np.tile(cell, (frames, 1, 1)).astype(np.float32),
        "symbols": np.array(["Si"] * units + ["O"] * (2 * units)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


@pytest.fixture
def root(tmp_path):
    for name in NUMBERS:
        write(tmp_path / "zeolite", name)
    return tmp_path


def frameworks(structures, frames):
    counts = {3 * units: name for name, units in NUMBERS.items()}
    return {name: [counts[n] for n in structures.n_atoms[frames]].count(name) for name in NUMBERS}


def test_a_framework_that_is_held_out_stands_in_no_other_split(root):
    dataset = make(root)
    structures = dataset.load()
    splits = dataset.split(structures)
    assert tuple(splits) == (*SPLITS, "out_of_domain") and dataset.subset == "without-oso"
    check_splits(splits, len(structures))
    for name, size in zip(splits, SIZES.values(), strict=True):
        expected = {"oso": size} if name == "out_of_domain" else {"sod": size, "dft": size}
        assert frameworks(structures, splits[name]) == dict.fromkeys(NUMBERS, 0) | expected
    both = make(root, ["oso", "sod"]).split(structures)
    assert frameworks(structures, both["out_of_domain"]) == {"sod": 6, "dft": 0, "oso": 6}
    kept = [set(part["train"]) & set(np.flatnonzero(structures.n_atoms == 3)) for part in (splits, both)]
    assert kept[0] == kept[1], "the frames of one framework do not depend on the others"
    alone = make(root, [])
    assert alone.subset == "all" and len(alone.split(structures)["out_of_domain"]) == 0


def test_labels_are_those_of_the_files(root):
    arrays = write(root / "zeolite", "dft", seed=1)
    structures = make(root, frameworks=["dft", "sod"], held_out=["sod"]).load()
    np.testing.assert_array_equal(structures.energies[:40], arrays["energies"].astype(float))
    np.testing.assert_array_equal(structures.forces[: 40 * 3], arrays["forces"].reshape(-1, 3).astype(float))
    np.testing.assert_array_equal(structures.cells[39], arrays["cells"][39].astype(float))
    assert structures.pbc.all() and structures.numbers[:3].tolist() == [14, 8, 8]


def resemblance(structures, first, second):
    """Root mean square displacement of two frames, with the nearest images of ASE."""
    a, b = structures[[first, second]].to_atoms()
    shift = get_distances(b.positions[:1], a.positions[:1], a.cell, a.pbc)[0][0, 0]
    moved = np.array(
        [
            get_distances(y[None] + shift, x[None], a.cell, a.pbc)[0][0, 0]
            for x, y in zip(a.positions, b.positions, strict=True)
        ]
    )
    moved -= moved.mean(axis=0)
    return np.sqrt((moved**2).sum(axis=1).mean())


def test_neighbours_in_time_do_not_part(root):
    """Of a trajectory in random order no frame trains that resembles one of another split."""
    apart = 0.1
    sizes = {"n_train": None, "n_validation": 2, "n_test": 2}
    structures = make(root).load()
    closest = {}
    for kept in (0.0, apart):
        splits = make(root, apart=kept, **sizes).split(structures)
        found = []
        for part, others in (("test", ("validation", "train")), ("validation", ("train",))):
            for i in splits[part]:
                for other in others:
                    same = [j for j in splits[other] if structures.n_atoms[j] == structures.n_atoms[i]]
                    found += [resemblance(structures, i, j) for j in same]
        closest[kept] = min(found)
    assert closest[0.0] < 3 * STEP, "without the condition they do"
    assert closest[apart] >= apart
    assert len(splits["train"]) >= 20, "independent frames stay"


def test_sizes_and_seeds(root):
    structures = make(root).load()
    few, many = (make(root, n_train=size).split(structures) for size in (3, 0.5))
    assert set(few["train"]) < set(many["train"]) and len(many["train"]) == 40
    np.testing.assert_array_equal(few["test"], many["test"])
    assert set(make(root, split_seed=1).split(structures)["test"]) != set(few["test"])
    with pytest.raises(DataError, match="sod: split 'train' needs 32 frames, but 31 of 40 are left"):
        make(root, n_train=32).split(structures)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"held_out": ["xyz"]}, "held_out: expected some of frameworks .*, got 'xyz'"),
        ({"held_out": list(NUMBERS)}, "none is left to train on"),
    ],
)
def test_frameworks_that_cannot_be_held_out(change, message):
    settings = {"frameworks": list(NUMBERS), **change}
    assert any(re.match(message, line) or message in line for line in Zeolite.contradictions(**settings))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cells": np.eye(3)}, "cells have shape"),
        ({"forces": None}, "has no array forces"),
        ({"energies": np.zeros(3)}, "energies have shape"),
        ({"symbols": np.array(["Si", "O", "Xx"])}, "unknown element 'Xx'"),
    ],
)
def test_bad_files(root, change, message):
    arrays = write(root / "zeolite", "dft") | change
    np.savez(root / "zeolite/dft.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=f"dft.npz.*{message}") as caught:
        make(root).load()
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_it_comes_from(root):
    (root / "zeolite/dft.npz").unlink()
    with pytest.raises(DataError, match="zeolite/dft.npz does not exist, and dataset.url is null; put data/dft.npz of"):
        make(root).load()
    with pytest.raises(DataError, match="abw.npz does not exist, and no checksum of it is known"):
        make(root, frameworks=["sod", "abw"], held_out=["sod"], url="http://127.0.0.1:9/<framework>").load()


def test_files_that_are_not_there_are_downloaded_once(root, monkeypatch):
    content = (root / "zeolite/dft.npz").read_bytes()
    (root / "zeolite/dft.npz").unlink()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    dataset = make(root, url=f"http://127.0.0.1:{server.server_port}/data/<framework>.npz")
    with pytest.raises(DataError, match="has not the md5"):
        dataset.load()
    monkeypatch.setitem(zeolite.MD5, "dft", hashlib.md5(content).hexdigest())
    first = dataset.load().sha256()
    server.shutdown()
    assert make(root).load().sha256() == first, "from the cache, without a network"
    assert set(asked) == {"/data/dft.npz"} and (root / "cache/zeolite/dft.npz").read_bytes() == content


def test_a_strain_or_a_shift_is_no_displacement():
    rng = np.random.default_rng(0)
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0.5, -1.0, 7.0]])
    x = rng.uniform(0, 4, (6, 3))
    frames = [Atoms("Si2O4", x, cell=cell, pbc=True) for _ in range(4)]
    frames[1].positions += [2.0, -3.0, 9.0]
    frames[2].set_cell(1.1 * cell, scale_atoms=True)
    frames[3].positions[2] += [0.6, 0, 0]
    from ase.calculators.singlepoint import SinglePointCalculator

    from uqbench.data.structures import Structures

    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((6, 3)))
    structures = Structures.from_atoms(frames, origin="test")
    found = zeolite.distance_to(structures, np.arange(4), np.array([0]))
    # One atom of six moved: sqrt(d² / 6 - (d / 6)²).
    np.testing.assert_allclose(found, [0, 0, 0, 0.6 * np.sqrt(1 / 6 - 1 / 36)], atol=1e-12)
