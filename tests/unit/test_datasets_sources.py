"""The sources `npz`, `file`, `nff` and `quickstart`, against files written by ASE, NumPy and torch."""

import json
import pickle
import subprocess
import sys
import types

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from uqbench.data.sources.ammonia import Ammonia
from uqbench.data.sources.file import AseFile
from uqbench.data.sources.nff import NFF
from uqbench.data.sources.npz import Npz
from uqbench.data.sources.quickstart import FILE, Quickstart
from uqbench.errors import DataError

KCAL = units.kcal / units.mol
SPLIT = {"n_train": 0.5, "n_validation": 0.25, "n_test": None, "block": 1, "split_seed": 0, "split_file": None}
FORCES = "species:S:1:pos:R:3:forces:R:3"
UNITS = {"length_unit": "Ang", "energy_unit": "eV", "force_unit": "eV/Ang"}


def npz(path, **changes):
    keys = {f"{name}_key": name for name in ("positions", "energies", "forces", "cells")}
    arguments = {"path": str(path), "data_root": None, **keys, "species_key": "symbols", "deduplicate": True}
    return Npz(**(arguments | UNITS | SPLIT | changes))


def ase_file(path, **changes):
    arguments = {"path": str(path), "data_root": None, "format": None, "index": ":", "deduplicate": True}
    labels = {"energy_key": "energy", "force_key": "forces", "missing": "refuse"}
    return AseFile(**(arguments | labels | UNITS | SPLIT | changes))


def nff(path, **changes):
    arguments = {"path": str(path), "data_root": None, "energy_unit": None, "rows": None, "deduplicate": True}
    return NFF(**(arguments | SPLIT | changes))


def crystals(n=8):
    """n shaken rock-salt cells with random labels."""
    frames = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        atoms = bulk("NaCl", "rocksalt", 5.6 + 0.01 * seed)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(2, 3)))
        frames.append(atoms)
    return frames


def assert_same(structures, frames, energy=1.0, force=1.0, length=1.0):
    assert len(structures) == len(frames)
    for got, atoms in zip(structures.to_atoms(), frames, strict=True):
        assert got.get_chemical_symbols() == atoms.get_chemical_symbols()
        np.testing.assert_array_equal(got.pbc, atoms.pbc)
        np.testing.assert_allclose(got.cell[:], atoms.cell[:] * length, atol=1e-7)
        np.testing.assert_allclose(got.positions, atoms.positions * length, atol=1e-7)
        np.testing.assert_allclose(got.get_forces(), atoms.calc.results["forces"] * force, atol=1e-7)
        assert got.get_potential_energy() == pytest.approx(atoms.calc.results["energy"] * energy, abs=1e-7)


# ---------------------------------------------------------------------------------------------------- npz


@pytest.fixture
def packed(tmp_path):
    frames = crystals()
    arrays = {
        "positions": np.stack([atoms.positions for atoms in frames]),
        "energies": np.array([atoms.get_potential_energy() for atoms in frames]),
        "forces": np.stack([atoms.get_forces() for atoms in frames]),
        "cells": np.stack([atoms.cell[:] for atoms in frames]),
        "symbols": np.array(["Na", "Cl"]),
    }
    np.savez(tmp_path / "salt.npz", **arrays)
    return types.SimpleNamespace(path=tmp_path / "salt.npz", frames=frames, arrays=arrays)


def test_npz_holds_what_ase_wrote(packed):
    dataset = npz(packed.path)
    assert dataset.subset == "salt"
    assert_same(dataset.load(), packed.frames)


def test_npz_units_and_keys(packed):
    renamed = {"R": "positions", "E": "energies", "F": "forces", "z": "symbols"}
    np.savez(packed.path, **{new: packed.arrays[old] for new, old in renamed.items()} | {"z": np.array([11, 17])})
    structures = npz(
        packed.path,
        positions_key="R", energies_key="E", forces_key="F", species_key="z", cells_key=None,
        length_unit="nm", energy_unit="kcal/mol", force_unit="Hartree/Bohr",
    ).load()  # fmt: skip
    molecules = [atoms.copy() for atoms in packed.frames]
    for atoms, original in zip(molecules, packed.frames, strict=True):
        atoms.calc = original.calc
        atoms.cell, atoms.pbc = None, False
    assert_same(structures, molecules, KCAL, units.Hartree / units.Bohr, 10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"forces": np.full((8, 2, 3), np.nan)}, "forces are not finite in 8 frame"),
        ({"forces": np.zeros((8, 3, 3))}, "forces have shape"),
        ({"energies": np.zeros(7)}, "energies have shape"),
        ({"cells": np.eye(3)}, "cells have shape"),
        ({"cells": np.zeros((8, 3))}, "cells have shape"),
        ({"cells": np.zeros((8, 3, 3))}, "periodic direction without a lattice vector"),
        ({"symbols": np.array(["Na"])}, "positions have shape"),
        ({"positions": np.array(["x"])}, "positions do not hold numbers"),
    ],
)
def test_npz_that_does_not_fit(packed, change, message):
    np.savez(packed.path, **packed.arrays | change)
    with pytest.raises(DataError, match=f"salt.npz: .*{message}"):
        npz(packed.path).load()


def test_duplicates_go_before_splitting(packed):
    again = {k: v if k == "symbols" else np.concatenate([v, v[::-1]]) for k, v in packed.arrays.items()}
    np.savez(packed.path, **again)
    structures = npz(packed.path).load()
    assert structures.ids.tolist() == list(range(8))
    assert len(npz(packed.path, deduplicate=False).load()) == 16


def test_splits_by_size_seed_and_file(packed, tmp_path):
    structures = npz(packed.path).load()
    splits = npz(packed.path).split(structures)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [4, 2, 2]
    differ = [npz(packed.path, split_seed=seed).split(structures)["test"].tolist() for seed in range(5)]
    assert len(set(map(tuple, differ))) > 1
    (tmp_path / "mine.json").write_text(json.dumps({"train": [7], "validation": [0], "test": [1, 2]}))
    mine = npz("salt.npz", data_root=str(tmp_path), split_file="mine.json").split(structures)
    assert {name: frames.tolist() for name, frames in mine.items()} == {"train": [7], "validation": [0], "test": [1, 2]}
    (tmp_path / "mine.json").write_text(json.dumps({"train": [8]}))
    with pytest.raises(DataError, match="points at frame 8"):
        npz("salt.npz", data_root=str(tmp_path), split_file="mine.json").split(structures)


# ---------------------------------------------------------------------------------------------------- ASE files


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.traj", "frames.db", "frames.json"])
@pytest.mark.parametrize("keys", [("energy", "forces"), (None, None)])
def test_labels_of_ase_files(tmp_path, name, keys):
    ase.io.write(tmp_path / name, crystals())
    dataset = ase_file(tmp_path / name, energy_key=keys[0], force_key=keys[1])
    assert_same(dataset.load(), crystals())
    assert dataset.subset == "frames"


def test_labels_under_other_names_win_over_the_calculator(tmp_path):
    frames = crystals()
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=99.0, forces=np.full((2, 3), 99.0))
    ase.io.write(tmp_path / "ref.extxyz", frames)
    assert_same(ase_file(tmp_path / "ref.extxyz", energy_key="REF_energy", force_key="REF_forces").load(), crystals())
    with pytest.raises(DataError, match=r"frame 0 has no forces: 'ref_forces' is missing \(keys there: .*REF_forces"):
        ase_file(tmp_path / "ref.extxyz", force_key="ref_forces").load()


@pytest.mark.parametrize("properties", ["species:S:1:pos:R:3", "species:S:1:pos:R:3:force:R:3"])
def test_extxyz_without_forces(tmp_path, properties):
    columns = "" if properties.endswith("pos:R:3") else " 0 0 0"
    text = f'2\nProperties={properties} energy=-1.0 pbc="F F F"\nH 0 0 0{columns}\nH 0 0 0.74{columns}\n'
    (tmp_path / "h2.extxyz").write_text(text)
    with pytest.raises(
        DataError, match="h2.extxyz: frame 0 has no forces: 'forces' is missing.*(set|did you mean) force_key"
    ) as caught:
        ase_file(tmp_path / "h2.extxyz").load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fixed.extxyz", "fixed.traj"])
def test_constraints_do_not_touch_the_labels(tmp_path, name):
    frames = crystals()
    for atoms in frames:
        atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / name, frames)
    read_back = ase.io.read(tmp_path / name, ":")
    assert not any(atoms.get_forces().any() for atoms in read_back)  # what a plain reading would train on
    # Lengths change too: a constraint would also pin the positions while they are converted.
    structures = ase_file(tmp_path / name, length_unit="nm", force_unit="eV/nm").load()
    assert_same(structures, frames, force=0.1, length=10)


def test_file_units_and_frame_selection(tmp_path):
    ase.io.write(tmp_path / "frames.extxyz", crystals())
    dataset = ase_file(
        tmp_path / "frames.extxyz",
        index="1::2", energy_unit="Hartree", length_unit="Bohr", force_unit="Hartree/Bohr",
    )  # fmt: skip
    assert_same(dataset.load(), crystals()[1::2], units.Hartree, units.Hartree / units.Bohr, units.Bohr)
    assert len(ase_file(tmp_path / "frames.extxyz", index=0).load()) == 1


@pytest.mark.parametrize(
    "name, content, index, message",
    [
        ("a.extxyz", "3\nnot a frame\n", ":", "ASE cannot read it as the format"),
        ("a.unknown", "hello", ":", "ASE cannot read it as the format"),
        ("a.extxyz", "", ":", "ASE cannot read it|holds no frame"),
        ("a.traj", "hello", ":", "ASE cannot read it"),
        ("a.extxyz", "1\nenergy=0\nH 0 0 0\n", "5", "ASE cannot read it"),
        ("a.extxyz", f"1\nProperties={FORCES} energy=0\nH 0 0 0 nan 0 0\n", ":", "forces are not finite"),
        ("a.extxyz", f"1\nProperties={FORCES} energy=nan\nH 0 0 0 0 0 0\n", ":", "energies are not finite"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, index, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}: .*({message})") as caught:
        ase_file(tmp_path / name, index=index).load()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- NFF

torch = pytest.importorskip("torch")


@pytest.fixture
def save_nff(tmp_path, monkeypatch):
    """Return save(props, units, module, legacy) -> path: a pickled Dataset, as the packages nff and uq wrote them."""

    def save(props, units="kcal/mol", module="nff.data.dataset", legacy=True):
        parts = module.split(".")
        for k in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:k]), types.ModuleType(".".join(parts[:k])))
        cls = type("Dataset", (), {"__module__": module})
        sys.modules[module].Dataset = cls
        stored = cls()
        stored.props = props
        if units is not None:
            stored.units = units
        path = tmp_path / "set.pth.tar"
        torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
        for k in range(1, len(parts) + 1):
            sys.modules.pop(".".join(parts[:k]))
        return path

    return save


def nff_props(frames):
    props = {
        "nxyz": [torch.tensor(np.column_stack([atoms.numbers, atoms.positions])) for atoms in frames],
        "energy": torch.tensor([atoms.get_potential_energy() for atoms in frames], dtype=torch.float64),
        "energy_grad": [torch.tensor(-atoms.get_forces()) for atoms in frames],
        "num_atoms": torch.tensor([len(atoms) for atoms in frames]),
    }
    if frames[0].pbc.any():
        props["lattice"] = [torch.tensor(atoms.cell[:]) for atoms in frames]
    return props


def molecules():
    frames = []
    for seed, name in enumerate(["NH3", "H2O", "CH4", "NH3", "CO2", "C2H6"]):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=seed)
        rng = np.random.default_rng(seed)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("make", [molecules, crystals])
@pytest.mark.parametrize("module", ["nff.data.dataset", "uq.data.dataset"])
@pytest.mark.parametrize("legacy", [True, False])
def test_nff_forces_are_minus_the_gradients_in_the_units_of_the_file(save_nff, make, module, legacy):
    path = save_nff(nff_props(make()), module=module, legacy=legacy)
    dataset = nff(path)
    assert dataset.subset == "set"
    assert_same(dataset.load(), make(), KCAL, KCAL)


def test_nff_units_rows_and_duplicates(save_nff):
    frames = molecules()
    turned = frames[1].copy()
    turned.rotate(40, (1, 2, 3))
    turned.calc = SinglePointCalculator(turned, energy=0.0, forces=np.zeros((3, 3)))
    path = save_nff(nff_props([*frames, turned]), units=None)
    with pytest.raises(DataError, match="names no units; set dataset.energy_unit"):
        nff(path).load()
    assert_same(nff(path, energy_unit="eV").load(), frames)
    assert nff(path, energy_unit="eV", rows=[2, 5]).load().ids.tolist() == [2, 3, 4]
    assert len(nff(path, energy_unit="eV", deduplicate=False).load()) == 7
    for rows in ([0, 8], [3, 3], [-1, 2], [1]):
        with pytest.raises(DataError, match=r"has rows 0..6; dataset.rows must be \[start, stop\]"):
            nff(path, energy_unit="eV", rows=rows).load()
    with pytest.raises(DataError, match="unknown energy unit 'atomic'"):
        nff(save_nff(nff_props(frames), units="atomic")).load()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"energy_grad": None}, r"has no energy_grad \(properties there: nxyz, energy, num_atoms\)"),
        ({"energy": None}, "has no energy"),
        ({"energy": torch.zeros(2)}, "do not fit together"),
        ({"energy": ["low"] * 6}, "do not fit together"),
        ({"energy_grad": [torch.zeros(4, 2)] * 6}, "row 0 has nxyz"),
        ({"energy_grad": [torch.zeros(4, 3)] * 6}, "row 1 has nxyz"),
        ({"nxyz": torch.zeros(6)}, "do not fit together|row 0 has nxyz"),
        ({"lattice": [torch.eye(3)]}, "do not fit together"),
        ({"energy": torch.full((6,), float("nan"))}, "energies are not finite"),
    ],
)
def test_nff_files_that_do_not_fit(save_nff, change, message):
    props = {name: value for name, value in (nff_props(molecules()) | change).items() if value is not None}
    with pytest.raises(DataError, match=message):
        nff(save_nff(props)).load()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, how):
    path, mark = tmp_path / "evil.pth.tar", tmp_path / "ran"
    if how == "plain pickle":
        path.write_bytes(pickle.dumps({"nxyz": Evil(mark)}, protocol=2))
    else:
        torch.save({"nxyz": Evil(mark)}, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(DataError, match="evil.pth.tar.*(refused, because it asks to load|cannot be read)") as caught:
        nff(path).load()
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_damaged_or_other_nff_files(save_nff, tmp_path):
    path = save_nff(nff_props(molecules()))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be read as an NFF data set") as caught:
        nff(path).load()
    assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth.tar")
    with pytest.raises(DataError, match="no NFF data set"):
        nff(tmp_path / "list.pth.tar").load()


# ---------------------------------------------------------------------------------------------------- quickstart


@pytest.fixture(scope="module")
def ethanol():
    return Quickstart(700, 100, 200, 100, 0).load()


def test_quickstart_is_small_and_whole(ethanol):
    assert FILE.stat().st_size < 500_000
    assert len(ethanol) == 1000
    assert set(ethanol.n_atoms) == {9} and ethanol.elements == [1, 6, 8]
    assert ethanol.to_atoms()[0].get_chemical_formula() == "C2H6O"
    assert len(np.unique(ethanol.geometry_groups())) == 1000


def test_quickstart_samples_500_kelvin(ethanol):
    temperatures = np.load(FILE)["temperatures"]
    # Ten trajectories of 4 ps; instantaneous values spread by 500 sqrt(2/27) = 136 K.
    assert temperatures.mean() == pytest.approx(500, abs=15)
    assert temperatures.std() == pytest.approx(500 * np.sqrt(2 / 27), rel=0.15)
    # 21 vibrations: harmonic mean potential energy and spread, with room for the soft torsions.
    kt = units.kB * 500
    assert ethanol.energies.std() == pytest.approx(np.sqrt(21 / 2) * kt, rel=0.2)
    assert np.sqrt((ethanol.forces**2).mean()) == pytest.approx(1.0, abs=0.2)


def test_quickstart_forces_have_no_net_force_or_torque(ethanol):
    forces, x = ethanol.forces.reshape(-1, 9, 3), ethanol.positions.reshape(-1, 9, 3)
    assert np.abs(forces.sum(axis=1)).max() < 1e-4
    assert np.abs(np.cross(x, forces).sum(axis=1)).max() < 1e-3


def test_quickstart_splits_by_trajectory(ethanol):
    splits = Quickstart(700, 100, 200, 100, 0).split(ethanol)
    assert {name: len(np.unique(frames // 100)) for name, frames in splits.items()} == {
        "train": 7, "validation": 1, "test": 2,
    }  # fmt: skip
    few = Quickstart(70, 50, 200, 100, 0).split(ethanol)
    assert len(np.unique(few["train"] // 100)) == 7 and set(few["validation"]) < set(splits["validation"])


def test_quickstart_labels_are_those_of_tblite(ethanol):
    pytest.importorskip("tblite")
    program = (
        "import sys, numpy as np\n"
        "from ase import Atoms\n"
        "from tblite.ase import TBLite\n"
        "z = np.load(sys.argv[1])\n"
        "for k in (0, 123, 999):\n"
        "    a = Atoms(list(z['symbols']), z['positions'][k].astype(float))\n"
        "    a.calc = TBLite(method='GFN2-xTB', accuracy=0.01, verbosity=0)\n"
        "    assert abs(a.get_potential_energy() - z['energies'][k]) < 1e-5, k\n"
        "    assert abs(a.get_forces() - z['forces'][k]).max() < 1e-4, k\n"
        "    step, direction = 1e-3, np.random.default_rng(k).normal(size=(9, 3))\n"
        "    x, e = a.positions.copy(), []\n"
        "    for sign in (1, -1):\n"
        "        a.positions = x + sign * step * direction\n"
        "        e.append(a.get_potential_energy())\n"
        "    assert abs((e[1] - e[0]) / (2 * step) - (z['forces'][k] * direction).sum()) < 1e-2, k\n"
    )
    # A process of its own: torch, which this one has loaded, has disturbed tblite.
    done = subprocess.run([sys.executable, "-c", program, str(FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_atom_alone_is_a_frame(tmp_path):
    atoms = Atoms("He", [[0, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)))
    ase.io.write(tmp_path / "he.extxyz", [atoms, atoms])
    assert len(ase_file(tmp_path / "he.extxyz").load()) == 1


def test_the_embedded_ammonia_is_what_its_docstring_says():
    dataset = Ammonia(n_train=0.6, n_validation=0.2, n_test=None, split_seed=0)
    structures = dataset.load()
    splits = dataset.split(structures)
    assert {name: len(frames) for name, frames in splits.items()} == {
        **{"train": 47, "validation": 16, "test": 15, "out_of_domain": 224}
    }
    assert (structures.numbers.reshape(-1, 4) == [7, 1, 1, 1]).all()
    positions = structures.positions.reshape(-1, 4, 3)
    a, b, c = (positions[:, k] for k in (1, 2, 3))
    normal = np.cross(b - a, c - a)
    heights = np.einsum("ij,ij->i", positions[:, 0] - a, normal) / np.linalg.norm(normal, axis=1)
    near, far = np.abs(heights[:78]), np.abs(heights[splits["out_of_domain"]])
    assert near.min() > 0.14, "no training frame near the planar transition state"
    assert far.max() > 0.3 and (far < 0.1).sum() >= 20, "the test goes there"
    kcal = (structures.energies - structures.energies.min()) * 23.060548
    assert kcal[:78].max() < 5.1 and 15 < kcal[78:].max() < 60
    # The two points nearest to the planar state differ by less than the tolerance of this comparison.
    assert len(set(structures.geometry_groups())) >= 301, "no geometry twice"
