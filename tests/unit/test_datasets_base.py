"""What the sources share: paths, splits by blocks, duplicates, units, npz reading."""

import json

import numpy as np
import pytest
from ase import units

from uqbench.config.names import choose
from uqbench.data.arrays import numeric, read_npz, species_to_numbers
from uqbench.data.sources.base import distinct, find_file, read_split_file, split_frames
from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.units import energy_factor, force_factor, length_factor


def frames(n, ids=None):
    """n frames of argon dimers, each with its own distance."""
    positions = np.zeros((n, 2, 3))
    positions[:, 1, 0] = np.linspace(3, 5, n)
    return Structures.from_frames([18, 18], positions, np.arange(n), positions * 0, ids=ids, origin="dimers")


SIZES = {"train": 60, "validation": 20, "test": 20}


@pytest.mark.parametrize("block", [1, 10])
def test_splits_are_disjoint_and_repeatable(block):
    splits = split_frames(frames(100), SIZES, block, seed=1)
    assert {name: len(chosen) for name, chosen in splits.items()} == SIZES
    assert len(np.unique(np.concatenate(list(splits.values())))) == 100
    again, other = (split_frames(frames(100), SIZES, block, seed=seed) for seed in (1, 2))
    assert all(np.array_equal(splits[name], again[name]) for name in SIZES)
    assert not np.array_equal(splits["test"], other["test"])


def test_no_block_parts_between_splits():
    ids = np.delete(np.arange(130), np.arange(3, 130, 7))  # as after dropping duplicates
    structures = frames(len(ids), ids)
    splits = split_frames(structures, {"train": 30, "validation": 15, "test": 25}, 10, seed=0)
    owners = [set(structures.ids[chosen] // 10) for chosen in splits.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert [len(chosen) for chosen in splits.values()] == [30, 15, 25]
    # Training frames come from all blocks that test and validation leave, not only from as many as are needed.
    assert len(owners[0]) > 4


@pytest.mark.parametrize("block", [1, 10])
def test_fewer_training_frames_are_a_subset_and_leave_the_test_alone(block):
    many, few = (split_frames(frames(100), SIZES | {"train": n}, block, seed=0) for n in (60, 25))
    assert set(few["train"]) < set(many["train"])
    assert np.array_equal(few["test"], many["test"]) and np.array_equal(few["validation"], many["validation"])


def test_fractions_and_the_rest():
    sizes = {"train": 0.6, "validation": 0.2, "test": None}
    assert [len(chosen) for chosen in split_frames(frames(138), sizes, 1, 0).values()] == [83, 28, 27]
    sizes = {"train": None, "validation": 0, "test": 30}
    splits = split_frames(frames(100), sizes, 1, 0)
    assert [len(chosen) for chosen in splits.values()] == [70, 0, 30]
    sizes = {"train": 0, "validation": 0, "test": None}
    assert [len(chosen) for chosen in split_frames(frames(100), sizes, 50, 0).values()] == [0, 0, 100]


@pytest.mark.parametrize(
    "sizes, block, message",
    [
        ({"train": 61}, 1, "split 'train' needs 61 frames, but 60 of 100 are left"),
        ({"test": 41, "train": 50}, 50, "split 'validation' needs 20 frames, but 50|'train' needs 50 frames, but 0"),
        ({"test": None, "train": None}, 1, "only one of the split sizes can be null"),
    ],
)
def test_sizes_that_do_not_fit(sizes, block, message):
    with pytest.raises(DataError, match=message):
        split_frames(frames(100), SIZES | sizes, block, 0)


def test_split_file(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": [3, 1], "test": [0]}))
    splits = read_split_file(path, 5)
    assert splits["train"].tolist() == [3, 1] and splits["validation"].size == 0 and splits["test"].tolist() == [0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"train": ["a"]}', "not a JSON object"),
        ('{"train": [[1]]}', "not a JSON object of lists of frame indices"),
        ('{"train": [0.5]}', "train.0 Input should be a valid integer"),
        ('{"train": [true, false]}', "train.0 Input should be a valid integer"),
        ('{"train": null}', "train Input should be a valid"),
        ('{"trian": [1]}', "expected the lists"),
        ('{"train": [1], "test": [5]}', "points at frame 5, but the data set has frames 0..4"),
        ('{"train": [1], "test": [1]}', "share frame 1"),
    ],
)
def test_split_files_that_do_not_fit(tmp_path, text, message):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"splits.json: .*{message}"):
        read_split_file(path, 5)


def test_distinct_keeps_the_first_of_every_geometry_and_says_so(caplog):
    structures = frames(5)[[0, 1, 0, 2, 1]]
    assert distinct(structures).ids.tolist() == [0, 1, 2]
    assert "dropped 2 of 5 frames" in caplog.text
    assert distinct(frames(5)).ids.tolist() == [0, 1, 2, 3, 4]


def test_files_are_found_under_the_root_the_working_directory_or_as_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    target = tmp_path / "data" / "a.xyz"
    target.touch()
    monkeypatch.chdir(tmp_path)
    assert find_file("a.xyz", str(tmp_path / "data")) == target
    assert find_file("a.xyz", "data") == target
    assert find_file("data/a.xyz", None) == target
    assert find_file(str(target), "/no/such/root") == target
    with pytest.raises(DataError, match=f"^{tmp_path}/data/b.xyz does not exist; set dataset.path"):
        find_file("b.xyz", "data")
    with pytest.raises(DataError, match=f"^{tmp_path}/data is a folder, not a file"):
        find_file("data", None)
    with pytest.raises(DataError, match=f"^data_root {tmp_path}/nowhere is not a folder.*UQBENCH_DATA"):
        find_file("a.xyz", "nowhere")


def test_units_agree_with_the_definitions():
    # 2022 CODATA, NIST: 1 Hartree = 27.211386 eV, 1 Bohr = 0.529177 Å; 1 kcal/mol = 0.0433641 eV.
    assert energy_factor("kcal/mol") == pytest.approx(0.0433641039, rel=1e-6)
    assert energy_factor("Hartree") == pytest.approx(27.211386, rel=1e-6)
    assert energy_factor("kJ/mol") * 4.184 == pytest.approx(energy_factor("kcal/mol"))
    assert length_factor("nm") == 10 and length_factor("Bohr") == pytest.approx(0.529177, rel=1e-5)
    assert force_factor("kcal/mol/Ang") == energy_factor("kcal/mol")
    assert force_factor("Hartree/Bohr") == pytest.approx(units.Hartree / units.Bohr)
    assert force_factor("eV/nm") == pytest.approx(0.1)
    for function, unit in (
        (energy_factor, "kcal"),
        (length_factor, "A"),
        (force_factor, "kcal/mol"),
        (force_factor, "eV"),
    ):
        with pytest.raises(DataError, match=f"unit '/?{unit}'.*known: "):
            function(unit)


def test_near_misses_get_a_hint():
    assert choose("b", ["a", "b"], "letter") == "b"
    with pytest.raises(
        DataError, match="unknown molecule 'ethanl'; did you mean 'ethanol'\\? \\(known: ethanol, toluene"
    ):
        choose("ethanl", ["ethanol", "toluene"], "molecule")


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "frames.npz"
    np.savez(path, energies=np.random.default_rng(0).normal(size=4000), symbols=np.array(["C", "H"]))
    return path


def test_npz_keys_are_renamed(archive):
    arrays = read_npz(archive, {"e": "energies", "z": "symbols"})
    np.testing.assert_array_equal(arrays["e"], np.random.default_rng(0).normal(size=4000))
    assert species_to_numbers(arrays["z"], archive).tolist() == [6, 1]


def test_npz_without_a_key_names_it_and_what_is_there(archive):
    with pytest.raises(DataError, match=r"frames.npz has no array forces, cells \(arrays there: energies, symbols\)"):
        read_npz(archive, {"e": "energies", "f": "forces", "c": "cells"})


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_truncated_npz(archive, keep):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="frames.npz cannot be read as an npz file") as caught:
        read_npz(archive, {"e": "energies"})
    assert "\n" not in str(caught.value)


def test_npz_with_flipped_bytes(archive):
    content = bytearray(archive.read_bytes())
    content[5000] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an npz file.*CRC"):
        read_npz(archive, {"e": "energies"})


def test_npz_of_another_kind_and_pickles(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "evil.npz", energies=np.array([Evil()], dtype=object))
    (tmp_path / "text.npz").write_text("energies")
    for name in ("single", "evil", "text"):
        with pytest.raises(DataError, match=f"{name}.npz cannot be read as an npz file"):
            read_npz(tmp_path / f"{name}.npz", {"e": "energies"})
    assert not (tmp_path / "ran").exists()


def test_arrays_of_the_wrong_type(archive):
    for array in (np.array(["1"]), np.array([1j]), np.array([True])):
        with pytest.raises(DataError, match="energies do not hold numbers"):
            numeric(array, "energies", archive)
    with pytest.raises(DataError, match="unknown element 'Xx'"):
        species_to_numbers(np.array(["C", "Xx"]), archive)
    with pytest.raises(DataError, match=r"elements have shape \(3, 2\)"):
        species_to_numbers(np.zeros((3, 2), int), archive)
