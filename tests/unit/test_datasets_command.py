"""`uqbench data`: what it prints, on a terminal of 80 columns and into a pipe."""

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.spacegroup import crystal
from omegaconf import OmegaConf
from PIL import Image

from uqbench import config
from uqbench.cli.commands import data
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.figures.dataset import overview_table


def composed(option, figure=None, **settings):
    cfg = OmegaConf.create({"seed": 0, "data_root": None, "figure": None if figure is None else str(figure)})
    cfg.dataset = OmegaConf.merge(OmegaConf.load(config.conf_dir() / "dataset" / f"{option}.yaml"), settings)
    return cfg


def cells(line):
    return [part.strip() for part in line.split("  ") if part.strip()]


def test_the_numbers_are_those_of_the_data(capsys):
    data.run(composed("quickstart"))
    out = capsys.readouterr().out
    structures = config.build(composed("quickstart").dataset).load()
    rows = dict(row for line in out.splitlines() if len(row := cells(line)) == 2)
    assert rows["sha256"] == structures.sha256()
    assert rows["frames"] == "1000" and rows["atoms per frame"] == "9" and rows["elements"] == "H C O"
    assert rows["periodic"] == "no" and rows["repeated geometries"] == "0"
    assert rows["energy, eV"] == f"{min(structures.energies):.4f} to {max(structures.energies):.4f}"
    assert rows["force component rms, eV/Å"] == f"{np.sqrt((structures.forces**2).mean()):.3f}"
    assert rows["largest force, eV/Å"] == f"{np.sqrt((structures.forces**2).sum(axis=1)).max():.3f}"
    sizes = dict(row[:2] for line in out.splitlines() if len(row := cells(line)) == 5)
    assert sizes == {"split": "frames", "train": "700", "validation": "100", "test": "200"}
    table = [line for line in out.splitlines() if not line.startswith(("source", "sha256"))]
    assert max(map(len, table)) <= 80


@pytest.fixture
def repeated(tmp_path):
    """Ten dimers of which the last four repeat the first ones, the very last with another label."""
    distances = np.r_[np.linspace(1, 2, 6), np.linspace(1, 2, 6)[:4]]
    positions = np.zeros((10, 2, 3))
    positions[:, 1, 2] = distances
    energies = distances.copy()
    energies[9] += 1
    path = tmp_path / "dimers.npz"
    np.savez(path, positions=positions, energies=energies, forces=positions * 0, symbols=np.array(["N", "N"]))
    return {"path": str(path), "cells_key": None, "n_train": 5, "n_validation": 1}


def test_duplicates_across_splits_are_reported(repeated, capsys):
    data.run(composed("npz", **repeated, deduplicate=False))
    out = capsys.readouterr().out
    assert "repeated geometries" in out and "4, 1 with other labels" in out
    assert "geometries stand in more than one split, such as frame" in out
    data.run(composed("npz", **repeated, deduplicate=True))
    out = capsys.readouterr().out
    assert "more than one split" not in out and "with other labels" not in out


def test_frames_that_no_split_uses_are_counted(repeated, capsys):
    data.run(composed("npz", **repeated | {"n_train": 2}, n_test=1))
    assert ["unused", "2"] in map(cells, capsys.readouterr().out.splitlines())


def test_bad_files_and_splits_fail(repeated, tmp_path):
    with pytest.raises(DataError, match="absent.npz does not exist"):
        data.run(composed("npz", path=str(tmp_path / "absent.npz")))
    with pytest.raises(DataError, match="split 'train' needs 50 frames"):
        data.run(composed("npz", **repeated | {"n_train": 50}))


def test_mixed_compositions_and_periodicity():
    positions = np.array([[0, 0, 0], [0, 0, 1.2], [0, 0, 0], [0, 0, 1], [0, 1, 0.0]])
    structures = Structures.from_arrays(
        [6, 8, 8, 1, 1], positions, [1.0, 2.0], positions * 0, [0, 2, 5], origin="x",
        cells=[np.zeros((3, 3)), np.eye(3) * 5],
    )  # fmt: skip
    table = overview_table(structures, "")
    rows = dict(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert rows["atoms per frame"] == "2 to 3" and rows["elements"] == "H C O"
    assert rows["periodic"] == "50% of the frames" and rows["subset"] == "none"


@pytest.fixture
def quartz(tmp_path):
    """Shaken quartz in a file, twelve frames of 9 atoms."""
    frames = []
    for seed in range(12):
        sites = [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.2143)]
        atoms = crystal(("Si", "O"), sites, spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120])
        atoms.rattle(0.02, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=float(seed), forces=np.zeros((9, 3)))
        frames.append(atoms)
    ase.io.write(tmp_path / "quartz.extxyz", frames)
    return {"path": str(tmp_path / "quartz.extxyz")}


def test_the_structure_of_periodic_frames_is_printed_and_drawn(quartz, tmp_path, capsys):
    figure = tmp_path / "new" / "quartz.png"
    data.run(composed("file", figure, **quartz))
    out = capsys.readouterr().out
    rows = {row[0]: row[1:] for line in out.splitlines() if len(row := cells(line)) == 5 and "." in row[1]}
    assert rows["train"][0].startswith("2.64") and rows["train"][2:] == ["4: 100.0%", "2: 100.0%"]
    assert float(rows["test"][1]) == pytest.approx(1.6, abs=0.06)
    assert max(map(len, [line for line in out.splitlines() if "/" not in line])) <= 80
    with Image.open(figure) as image:
        assert image.format == "PNG" and min(image.size) > 500
    first = figure.read_bytes()
    data.run(composed("file", figure, **quartz))
    assert figure.read_bytes() == first
    with pytest.raises(ConfigError, match="cannot write .*choose another figure=FILE"):
        data.run(composed("file", figure / "below.png", **quartz))


def test_molecules_have_no_such_figure(tmp_path, capsys):
    with pytest.raises(DataError, match="need frames periodic in all directions"):
        data.run(composed("quickstart", tmp_path / "figure.png"))
    assert "structure" not in capsys.readouterr().out and not any(tmp_path.iterdir())
