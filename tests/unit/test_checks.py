"""Odd labels and splits are told before anything is trained; inputs of the kind that users bring."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from test_datasets_sources import ase_file

from uqbench.cli import main
from uqbench.data.checks import label_warnings, scorable
from uqbench.data.sources.npz import Npz
from uqbench.errors import DataError


def cluster(seed, symbols="Cu4"):
    """A shaken tetrahedron with labels of EMT."""
    base = np.array([[0, 0, 0], [2.4, 0, 0], [1.2, 2.1, 0], [1.2, 0.7, 2.0]])
    atoms = Atoms(symbols, positions=base + np.random.default_rng(seed).normal(0, 0.15, (4, 3)))
    return relabelled(atoms, EMT())


def relabelled(atoms, calculator=None, **labels):
    if calculator is not None:
        copy = atoms.copy()
        copy.calc = calculator
        labels = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


@pytest.fixture
def frames():
    return [cluster(seed) for seed in range(40)]


def saved(tmp_path, frames):
    path = tmp_path / "d.extxyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def test_sound_labels_cause_no_words(tmp_path, frames):
    assert label_warnings(ase_file(saved(tmp_path, frames)).load()) == []


def test_an_outlier_is_named_with_its_value(tmp_path, frames):
    forces = frames[7].get_forces()
    forces[0, 0] = 1e6
    relabelled(frames[7], energy=frames[7].get_potential_energy(), forces=forces)
    relabelled(frames[9], energy=frames[9].get_potential_energy() + 1e3, forces=frames[9].get_forces())
    lines = label_warnings(ase_file(saved(tmp_path, frames)).load())
    assert len(lines) == 2
    assert lines[0].startswith("frame(s) 7: largest force far outside of the rest, 1e+06 eV/Å in frame 7 (median ")
    assert lines[1].startswith("frame(s) 9: energy per atom far outside of the rest, 251.")


def test_one_energy_in_all_frames_is_asked_about_with_the_other_keys(tmp_path, frames, caplog):
    path = tmp_path / "d.extxyz"
    lines = []
    for atoms in frames:
        energies = f"energy=0.0 free_energy={atoms.get_potential_energy()}"
        lines += ["4", f"Properties=species:S:1:pos:R:3:forces:R:3 {energies}"]
        rows = np.hstack([atoms.positions, atoms.get_forces()])
        lines += ["Cu " + " ".join(f"{value:.8f}" for value in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    [line] = label_warnings(ase_file(path).load())
    assert "all energies are 0 eV although the forces differ" in line
    assert "keys whose numbers differ from frame to frame: free_energy" in caplog.text


def test_one_geometry_with_several_energies_is_told_with_the_difference(tmp_path, frames):
    other = frames[3].get_potential_energy() + 0.5
    frames.append(relabelled(frames[3].copy(), energy=other, forces=frames[3].get_forces()))
    [line] = label_warnings(ase_file(saved(tmp_path, frames), deduplicate=False).load())
    assert "1 geometries stand in several frames with different energies, by up to 0.5 eV (frames 3 and 40)" in line


def test_frames_that_lack_a_label_are_counted_or_left_out(tmp_path, frames, caplog):
    for k in (5, 17):
        relabelled(frames[k], forces=frames[k].get_forces())
    relabelled(frames[23], energy=frames[23].get_potential_energy())
    path = saved(tmp_path, frames)
    counts = "2 without energy, 1 without forces: frames 5, 17, 23"
    with pytest.raises(DataError, match=rf"3 of 40 frames lack a label \({counts}\); dataset.missing=drop"):
        ase_file(path).load()
    structures = ase_file(path, missing="drop").load()
    assert len(structures) == 37 and not {5, 17, 23} & set(structures.ids.tolist())
    assert "left out 3 of 40 frames" in caplog.text


@pytest.mark.parametrize(("key", "names"), [("energy_key", "REF_energy"), ("force_key", "DFT_forces")])
def test_labels_under_a_usual_name_are_suggested(tmp_path, frames, key, names):
    for atoms in frames:
        atoms.info["REF_energy"], atoms.arrays["DFT_forces"] = 1.0, np.ones((4, 3))
        known = {"energy": 1.0, "forces": np.zeros((4, 3))}
        del known["energy" if key == "energy_key" else "forces"]
        relabelled(atoms, **known)
    with pytest.raises(DataError, match=f"did you mean {key}={names}?"):
        ase_file(saved(tmp_path, frames)).load()


def test_isotopes_are_hydrogen_and_unknown_symbols_are_named(tmp_path, caplog):
    for symbol in ("D", "T", "Qq"):
        path = tmp_path / f"{symbol}.extxyz"
        frame = f"2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=0\nO 0 0 0 0 0 0\n{symbol} 0 0 1 0 0 0\n"
        path.write_text(frame)
        if symbol == "Qq":
            with pytest.raises(DataError, match="unknown element 'Qq'"):
                ase_file(path).load()
        else:
            assert ase_file(path).load().numbers.tolist() == [8, 1]
            assert "D and T are read as hydrogen" in caplog.text
    with pytest.raises(DataError, match="unknown element"):  # nothing is left behind in ASE's tables
        (tmp_path / "X.extxyz").write_text("1\nProperties=species:S:1:pos:R:3 energy=0\nDd 0 0 0\n")
        ase_file(tmp_path / "X.extxyz").load()


def test_energies_in_a_column_are_energies(tmp_path, frames):
    path = tmp_path / "d.npz"
    arrays = {"R": np.stack([atoms.positions for atoms in frames]), "F": np.stack([a.get_forces() for a in frames])}
    energies = np.array([[atoms.get_potential_energy()] for atoms in frames])
    np.savez(path, **arrays, E=energies, z=frames[0].numbers.astype(np.uint8), theory="EMT")
    keys = {"positions_key": "R", "energies_key": "E", "forces_key": "F", "species_key": "z", "cells_key": None}
    units = {"length_unit": "Ang", "energy_unit": "eV", "force_unit": "eV/Ang"}
    sizes = {"n_train": 20, "n_validation": 5, "n_test": 5, "block": 1, "split_seed": 0, "split_file": None}
    structures = Npz(str(path), None, **keys, **units, deduplicate=True, **sizes).load()
    np.testing.assert_array_equal(structures.energies, energies[:, 0])


def test_an_element_that_no_training_frame_has_is_told_with_split_and_frames(tmp_path, frames):
    frames += [cluster(100, "Cu3Ag"), cluster(101, "Cu3Ag")]
    structures = ase_file(saved(tmp_path, frames)).load()
    splits = {"train": np.arange(30), "validation": np.array([30, 31, 41]), "test": np.arange(32, 41)}
    kept, lines = scorable(structures, splits)
    assert kept["validation"].tolist() == [30, 31] and kept["test"].tolist() == list(range(32, 40))
    assert lines == [
        "split 'validation' has Ag, which no training frame has, in frame(s) 41: they are in no split",
        "split 'test' has Ag, which no training frame has, in frame(s) 40: they are in no split",
    ]
    with pytest.raises(DataError, match="'test' has Ag, which no training frame has, in frame.* 40, 41, and no others"):
        scorable(structures, {"train": np.arange(30), "test": np.array([40, 41])})


@pytest.mark.parametrize("key", ["stress", "virial"])
def test_stress_in_a_file_is_said_to_be_there(key, tmp_path, frames, caplog):
    for atoms in frames[:30]:
        if key == "stress":
            atoms.calc.results["stress"] = np.arange(6.0)
            atoms.set_cell([9, 9, 9])
        else:
            atoms.info["virial"] = np.eye(3)
    path = saved(tmp_path, frames)
    ase_file(path).load()
    assert f"{path}: 30 of 40 frames have {key}, which is not used" in caplog.text


def test_uqbench_data_says_it_all(tmp_path, frames, capsys):
    frames += [cluster(100, "Cu3Ag"), cluster(101, "Cu3Ag")]
    path = saved(tmp_path, frames)
    (tmp_path / "split.json").write_text(
        '{"train": %s, "validation": [30, 31], "test": [32, 40, 41]}' % list(range(30))  # noqa: UP031
    )
    files = [f"dataset.path={path}", f"dataset.split_file={tmp_path / 'split.json'}"]
    assert main(["data", "dataset=file", *files, f"outputs={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "warning: split 'test' has Ag, which no training frame has, in frame(s) 40, 41: they are in no split" in out
