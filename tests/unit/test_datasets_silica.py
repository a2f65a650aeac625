"""The study's silica from a file: either format gives the same frames, and the test is the more extreme part."""

import json

import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import CONF
from omegaconf import OmegaConf

from uqbench import config
from uqbench.data.sources.base import SPLITS
from uqbench.data.structures import check_splits
from uqbench.errors import DataError

KCAL = units.kcal / units.mol
SERIES, LENGTH = 30, 4  # trajectories of frames, each hotter than the one before
STIFFNESS = 5.0  # eV/Å²


def frames():
    """Trajectories of a crystal with springs, at 100, 200, ... 3000 K."""
    made = []
    for series in range(SERIES):
        rng = np.random.default_rng(series)
        temperature = 100.0 * (series + 1)
        for _ in range(LENGTH):
            atoms = bulk("NaCl", "rocksalt", 5.6, cubic=True)
            moved = np.clip(rng.normal(size=(8, 3)), -2, 2) * np.sqrt(units.kB * temperature / STIFFNESS)
            atoms.positions += moved
            energy = 0.5 * STIFFNESS * (moved**2).sum()
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=-STIFFNESS * moved)
            atoms.info["temperature"] = temperature
            made.append(atoms)
    return made


def save(folder, made, name):
    path = folder / name
    if name.endswith(".pth.tar"):
        props = {
            "nxyz": [torch.tensor(np.column_stack([atoms.numbers, atoms.positions])) for atoms in made],
            "energy": torch.tensor([atoms.get_potential_energy() / KCAL for atoms in made], dtype=torch.float64),
            "energy_grad": [torch.tensor(-atoms.get_forces() / KCAL) for atoms in made],
            "temperature": torch.tensor([atoms.info["temperature"] for atoms in made]),
        }
        if all(atoms.pbc.all() for atoms in made):
            props["lattice"] = [torch.tensor(atoms.cell[:]) for atoms in made]
        torch.save(props, path, _use_new_zipfile_serialization=False)
    else:
        ase.io.write(path, made)
    return path


def silica(path, **changes):
    node = OmegaConf.load(CONF / "dataset" / "silica.yaml")
    given = {"path": str(path), "data_root": None, "block": LENGTH}
    given |= {"energy_unit": "kcal/mol" if str(path).endswith(".pth.tar") else None}
    return config.build(OmegaConf.create({"dataset": OmegaConf.merge(node, given, changes)}).dataset)


@pytest.fixture
def nff(tmp_path):
    return save(tmp_path, frames(), "silica.pth.tar")


def largest(structures, chosen):
    """The largest force component of some frames, eV/Å."""
    return np.abs(structures[chosen].forces).max()


@pytest.mark.parametrize("name", ["silica.pth.tar", "silica.extxyz", "other-name"])
def test_either_format_gives_the_frames(tmp_path, name):
    made = frames()
    path = save(tmp_path, made, "silica.extxyz" if name == "other-name" else name)
    if name == "other-name":
        path = path.rename(tmp_path / name)
    structures = silica(path, format="extxyz" if name == "other-name" else None).load()
    assert len(structures) == SERIES * LENGTH and structures.pbc.all()
    np.testing.assert_allclose(structures.energies, [atoms.get_potential_energy() for atoms in made], atol=1e-7)
    np.testing.assert_allclose(structures.forces, np.concatenate([atoms.get_forces() for atoms in made]), atol=1e-7)
    np.testing.assert_allclose(structures.cells[-1], made[-1].cell[:], atol=1e-7)


def test_the_test_spans_about_twice_the_forces_of_the_training(nff):
    dataset = silica(nff, n_train=0.5, n_validation=0.1)
    structures = dataset.load()
    splits = dataset.split(structures)
    assert tuple(splits) == (*SPLITS, "out_of_domain") and dataset.subset == "SiO2"
    check_splits(splits, len(structures))
    mild = np.concatenate([splits[name] for name in SPLITS])
    limit = largest(structures, np.arange(len(structures))) / 2
    assert largest(structures, mild) <= limit < min(largest(structures, [i]) for i in splits["out_of_domain"])
    ratio = largest(structures, splits["out_of_domain"]) / largest(structures, splits["train"])
    assert 2.0 <= ratio < 3.0
    assert [np.isin(splits[name], mild).all() for name in SPLITS] == [True] * 3
    # A trajectory in which one frame is too extreme neither trains nor tests in the domain.
    series = {name: set(structures.ids[frames] // LENGTH) for name, frames in splits.items()}
    assert not series["train"] & series["test"] and not series["train"] & series["validation"]
    assert not set().union(*(series[name] for name in SPLITS)) & series["out_of_domain"]


@pytest.mark.parametrize("name", ["silica.pth.tar", "silica.extxyz"])
def test_by_temperature(tmp_path, name):
    made = frames()
    order = np.random.default_rng(0).permutation(SERIES)
    shuffled = [made[k * LENGTH + i] for k in order for i in range(LENGTH)]
    shuffled.insert(LENGTH, shuffled[0])  # a repeated frame, so that rows and frames differ
    dataset = silica(save(tmp_path, shuffled, name), by="temperature", below=1000, block=1)
    structures = dataset.load()
    splits = dataset.split(structures)
    temperatures = np.array([atoms.info["temperature"] for atoms in shuffled])[structures.ids]
    assert len(structures) == SERIES * LENGTH
    assert {name: (temperatures[frames] <= 1000).all() for name, frames in splits.items()} == {
        **dict.fromkeys(SPLITS, True), "out_of_domain": False,
    }  # fmt: skip
    assert set(temperatures[splits["out_of_domain"]]) == {100.0 * k for k in range(11, 31)}
    assert sum(map(len, splits.values())) == len(structures)


def test_by_energy(nff):
    structures = silica(nff).load()
    splits = silica(nff, by="energy", below=0.1, block=1).split(structures)
    per_atom = (structures.energies - structures.energies.min()) / 8
    assert per_atom[splits["train"]].max() <= 0.1 < per_atom[splits["out_of_domain"]].min()
    assert sum(map(len, splits.values())) == len(structures)


def test_sizes_seeds_and_split_files(nff, tmp_path):
    structures = silica(nff).load()
    sized = silica(nff, n_train=5, n_validation=3, n_test=0.1, n_out_of_domain=7, block=1)
    sizes = {name: len(frames) for name, frames in sized.split(structures).items()}
    assert (sizes["train"], sizes["validation"], sizes["out_of_domain"]) == (5, 3, 7) and sizes["test"] > 0
    drawn = [silica(nff, n_out_of_domain=7, split_seed=seed).split(structures)["out_of_domain"] for seed in (0, 1)]
    assert set(drawn[0]) != set(drawn[1])
    with pytest.raises(DataError, match="out_of_domain needs 118 frames, .* are that extreme"):
        silica(nff, n_out_of_domain=118).split(structures)
    with pytest.raises(DataError, match="split 'train' needs 100 frames"):
        silica(nff, n_train=100).split(structures)
    own = {"train": [0, 2], "validation": [1], "test": [3], "out_of_domain": [119]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    found = silica("silica.pth.tar", data_root=str(tmp_path), split_file="own.json").split(structures)
    assert {name: frames.tolist() for name, frames in found.items()} == own
    (tmp_path / "own.json").write_text(json.dumps({"training": [0]}))
    with pytest.raises(DataError, match="expected the lists train, validation, test, out_of_domain, found training"):
        silica(nff, split_file=str(tmp_path / "own.json")).split(structures)


@pytest.mark.parametrize("below, message", [(1e-9, "no frame is below"), (1e3, "no frame is above")])
def test_a_limit_that_divides_nothing(nff, below, message):
    structures = silica(nff).load()
    with pytest.raises(
        DataError, match=rf"{message} dataset.below = .* eV/Å \(forces go from .* choose another"
    ) as caught:
        silica(nff, below=below).split(structures)
    assert "\n" not in str(caught.value)


def test_blocks_that_are_too_long(nff):
    structures = silica(nff).load()
    with pytest.raises(DataError, match="no frame is below .* in blocks of 120 frames.; choose another dataset.below"):
        silica(nff, block=120).split(structures)


def refused(path, message, **changes):
    with pytest.raises(DataError, match=message) as caught:
        dataset = silica(path, **changes)
        dataset.split(dataset.load())
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["silica.pth.tar", "silica.extxyz"])
def test_frames_without_a_lattice(tmp_path, name):
    made = frames()
    for atoms in made:
        atoms.pbc = atoms.calc.atoms.pbc = False
    refused(save(tmp_path, made, name), f"{name}: frame 0 has no (lattice|cell that is periodic)")


def test_files_that_are_missing_or_bad(nff, tmp_path):
    refused(tmp_path / "absent.extxyz", "absent.extxyz does not exist; .* the study's data are at materialscloud:55-sd")
    (tmp_path / "half.pth.tar").write_bytes(nff.read_bytes()[:400])
    refused(tmp_path / "half.pth.tar", "half.pth.tar cannot be read as an NFF data set")
    (tmp_path / "bad.extxyz").write_text("3\nnot a frame\n")
    refused(tmp_path / "bad.extxyz", "bad.extxyz: ASE cannot read it")
    refused(nff, "names no units; set dataset.energy_unit", energy_unit=None)
    refused(
        nff,
        "no temperature 'T' .keys there: nxyz, energy, energy_grad, temperature",
        by="temperature",
        temperature_key="T",
    )
    refused(nff, "'nxyz' does not hold one number for each frame", by="temperature", temperature_key="nxyz")
