"""Predictions written and read again in every format, and what is said of files that are none."""

import dataclasses
import json

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import fitted_method

from uqbench.data.structures import Structures, Systems
from uqbench.errors import DataError
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import VALUES, PredictionSet
from uqbench.inference.trained_model import TrainedModel
from uqbench.uq.calibration import ConformalCalibration, LinearCalibration, ScoreCalibration

SUFFIXES = (".parquet", ".extxyz", ".csv")
CALIBRATION = Calibration(
    forces=ScoreCalibration(LinearCalibration(0.1, 0.3, 1e-3), ConformalCalibration({0.5: 0.7, 0.9: float("inf")})),
    energy=ScoreCalibration(LinearCalibration(1 / 3, -2e-9, 1e-7), ConformalCalibration({0.5: 1 / 7})),
)


def frames_of():
    """A molecule, an atom, a crystal, a slab, and a molecule in a box that is not periodic."""
    slab = Atoms("Cu2", [[0, 0, 5], [1.8, 1.8, 6]], cell=[3.6, 3.6, 0], pbc=[True, True, False])
    boxed = Atoms("H2O", [[0, 0, 0], [0, 0, 1], [0, 1, 0]], cell=[[9, 0, 0], [1, 9, 0], [0, 2, 9]], pbc=False)
    frames = [molecule("CH3CH2OH"), Atoms("Ar", [[1, 2, 3]]), bulk("NaCl", "rocksalt", 5.6), slab, boxed]
    rng = np.random.default_rng(1)
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal() * 1e4, forces=forces)
    return frames


def predictions_of(labels="all", variances=True, calibration=None):
    """Arbitrary predictions; numbers of all magnitudes, zero and minus zero among them."""
    frames = frames_of()
    if labels == "some":
        frames[0].calc = None
        del frames[2].calc.results["forces"], frames[4].calc.results["energy"]
    structures = Structures.from_atoms(frames, origin="frames", labels=labels)
    structures = dataclasses.replace(structures, ids=np.array([7, 3, 2**40, 0, 5]))
    rng = np.random.default_rng(2)
    n, s = len(structures.numbers), len(structures)

    def numbers(*shape):
        drawn = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, shape)
        drawn.flat[0] = -0.0
        return drawn

    own = {"energy_variance": None, "force_variance": None}
    if variances:
        own = {"energy_variance": np.abs(numbers(s)), "force_variance": np.abs(numbers(n))}
    return PredictionSet(
        structures=structures,
        energy=numbers(s),
        forces=numbers(n, 3),
        **own,
        score=numbers(n),
        energy_score=numbers(s),
        calibration=calibration,
    )


def same(a, b):
    """Equal to the bit, or both None."""
    if a is None or b is None:
        assert a is None and b is None
        return
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)
    if a.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


def equal(found, expected):
    for name in VALUES:
        same(getattr(found, name), getattr(expected, name))
    for field in dataclasses.fields(Structures):
        if field.name != "origin":
            same(getattr(found.structures, field.name), getattr(expected.structures, field.name))
    assert found.calibration == expected.calibration and found.seconds is None
    for name in ("energy_std", "forces_std"):
        same(getattr(found, name), getattr(expected, name))
    for name in ("energy_radii", "forces_radii"):
        assert getattr(found, name).keys() == getattr(expected, name).keys()


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["own", "calibrated"])
@pytest.mark.parametrize("variances", [True, False], ids=["variances", "scores only"])
@pytest.mark.parametrize("labels", ["all", "some", "none"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(suffix, labels, variances, calibration, tmp_path):
    expected = predictions_of(labels, variances, calibration)
    path = tmp_path / f"predictions{suffix}"
    dataclasses.replace(expected, seconds=3.0).write(path)
    found = PredictionSet.read(path)
    equal(found, expected)
    assert found.structures.origin == str(path)
    assert found.structures.sha256() == expected.structures.sha256()
    assert path.read_bytes() == expected.encoded(suffix) == found.encoded(suffix), "a function of the predictions alone"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("uq", ["ensemble", "gmm"])
def test_predictions_of_a_model_survive_every_format(uq, labelled, ethanol, tmp_path):
    method = fitted_method(ethanol, "painn_small", uq)
    plain = TrainedModel(method, None, "cpu")
    model = TrainedModel(method, Calibration.fit(plain.predict(ethanol[:20]), (0.5, 0.9)), "cpu")
    frames = ethanol[20:25] if labelled else [atoms.copy() for atoms in ethanol[20:25].to_atoms()]
    expected = model.predict(frames, batch_size=2)
    assert expected.seconds is None and expected.calibrated and set(expected.forces_radii) == {0.5, 0.9}
    assert expected.structures.has_forces.all() == labelled == (expected.structures.energies is not None)
    for suffix in SUFFIXES:
        expected.write(tmp_path / f"p{suffix}")
        equal(PredictionSet.read(tmp_path / f"p{suffix}"), expected)
    equal(plain.predict(frames, batch_size=2), dataclasses.replace(expected, calibration=None))


def test_files_of_earlier_versions_have_no_geometry(tmp_path):
    expected = predictions_of()
    old = ["id", "n_atoms", "numbers", "energy_reference", "energy", "energy_variance", "energy_score"]
    old += ["forces_reference", "forces", "force_variance", "score"]
    table = expected.frame()
    assert list(table) == [*old, "positions", "cell", "pbc"]
    table[old].to_parquet(tmp_path / "old.parquet", index=False)
    found = PredictionSet.read(tmp_path / "old.parquet")
    assert type(found.structures) is Systems and len(found) == 5 and found.ptr.tolist() == expected.ptr.tolist()
    for name in VALUES:
        same(getattr(found, name), getattr(expected, name))
    for name in ("numbers", "ptr", "energies", "forces", "ids"):
        same(getattr(found.structures, name), getattr(expected.structures, name))
    for suffix in (".csv", ".parquet"):
        found.write(tmp_path / f"again{suffix}")
        same(PredictionSet.read(tmp_path / f"again{suffix}").forces, expected.forces)
    with pytest.raises(DataError, match="extended XYZ needs positions"):
        found.write(tmp_path / "again.extxyz")
    equal(dataclasses.replace(found, structures=expected.structures), expected)


def test_other_programs_see_the_numbers_under_clear_names(tmp_path):
    expected = predictions_of(calibration=CALIBRATION)
    expected.write(tmp_path / "p.extxyz")
    frames = ase.io.read(tmp_path / "p.extxyz", ":")
    s = expected.structures
    for k, atoms in enumerate(frames):
        rows = slice(s.ptr[k], s.ptr[k + 1])
        assert atoms.get_potential_energy() == expected.energy[k]
        np.testing.assert_array_equal(atoms.get_forces(), expected.forces[rows])
        np.testing.assert_array_equal(atoms.arrays["forces_reference"], s.forces[rows])
        np.testing.assert_array_equal(atoms.arrays["force_std"], expected.forces_std[rows])
        np.testing.assert_array_equal(atoms.arrays["score"], expected.score[rows])
        assert atoms.info["energy_reference"] == s.energies[k] and atoms.info["energy_std"] == expected.energy_std[k]
        assert atoms.info["id"] == s.ids[k] and atoms.pbc.tolist() == s.pbc[k].tolist()
    expected.write(tmp_path / "p.csv")
    rows = pd.read_csv(tmp_path / "p.csv", comment="#", dtype=str)
    assert len(rows) == len(s.numbers) and rows["element"].tolist()[:3] == ["C", "C", "O"]
    np.testing.assert_array_equal(rows[["forces_x", "forces_y", "forces_z"]].to_numpy(float), expected.forces)
    np.testing.assert_array_equal(rows["force_std"].to_numpy(float), expected.forces_std)
    np.testing.assert_array_equal(rows.drop_duplicates("frame")["energy"].to_numpy(float), expected.energy)


@pytest.mark.parametrize("suffix", [".extxyz", ".csv"])
def test_standard_deviations_of_other_programs_are_taken_for_variances(suffix, tmp_path):
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".csv":
        path.write_text(
            "frame,n_atoms,atom,element,forces_x,forces_y,forces_z,force_std,energy,energy_std\n"
            "0,2,0,H,1,0,0,0.5,-3,2\n0,2,1,H,-1,0,0,0.25,-3,2\n"
        )
    else:
        path.write_text(
            "2\nProperties=species:S:1:pos:R:3:forces:R:3:force_std:R:1 energy=-3 energy_std=2\n"
            "H 0 0 0 1 0 0 0.5\nH 0 0 0.7 -1 0 0 0.25\n"
        )
    found = PredictionSet.read(path)
    assert found.force_variance.tolist() == found.score.tolist() == [0.25, 0.0625]
    assert found.energy_variance.tolist() == found.energy_score.tolist() == [4.0]
    assert found.structures.forces is None and found.structures.ids.tolist() == [0]
    assert isinstance(found.structures, Structures) == (suffix == ".extxyz")


def refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        PredictionSet.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_are_cut_or_of_another_kind_are_refused(suffix, tmp_path):
    path = tmp_path / f"p{suffix}"
    refused(path, "cannot be read")
    content = predictions_of(calibration=CALIBRATION).encoded(suffix)
    others = [predictions_of().encoded(other) for other in SUFFIXES if other != suffix]
    foreign = (b"", b"\n", b"hello\n", b"3 4\n5 6 7\n", bytes(range(256)), *others)
    for wrong in (content[:-1], content[:-30], content[: len(content) // 2], *foreign):
        path.write_bytes(wrong)
        refused(path, None)
    if suffix != ".parquet":
        path.write_bytes(b"\n".join(content.splitlines()[:-1]) + b"\n")
        refused(path, "rows are missing|damaged")
        path.write_bytes(content.replace(b"linear", b"cubic"))
        refused(path, "the calibration is damaged")
        path.write_bytes(content.replace(b"uqbench_calibration {", b"uqbench_calibration [").replace(b"_JSON {", b"["))
        refused(path, "the calibration is damaged")


@pytest.mark.parametrize("name", ["p", "p.txt", "p.npz"])
def test_the_suffix_names_the_format(name, tmp_path):
    with pytest.raises(DataError, match=r"predictions are kept as .parquet, .extxyz, .csv; the name ends in"):
        predictions_of().write(tmp_path / name)
    refused(tmp_path / name, "predictions are kept as")
    assert not list(tmp_path.iterdir())
    predictions_of().write(str(tmp_path / "P.CSV"))
    assert len(PredictionSet.read(str(tmp_path / "P.CSV"))) == 5
    with pytest.raises(DataError, match="cannot be written"):
        predictions_of().write(tmp_path / "nowhere" / "p.csv")


def longer(values):
    return [np.append(row, 0.0) if k == 3 else row for k, row in enumerate(values)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["energy"]), "has no energy "),
        (lambda t: t.drop(columns=["forces", "score", "force_variance"]), "has no forces, score"),
        (lambda t: t.drop(columns=["numbers"]), "no column numbers"),
        (lambda t: t.assign(forces=longer(t.forces)), "frame 3 has 7 values of forces, expected 6"),
        (lambda t: t.assign(score=longer(t.score)), "frame 3 has 3 values of score, expected 2"),
        (lambda t: t.assign(n_atoms=t.n_atoms + 1), "frame 0 has 9 values of numbers, expected 10"),
        (lambda t: t.assign(cell=longer(t.cell)), "frame 3 has 10 values of cell, expected 9"),
        (lambda t: t.assign(energy=["a"] * 5), "energy cannot be read"),
        (lambda t: t.assign(energy=[[1.0, 2.0]] * 5), "frame 0 has 2 values of energy, expected 1"),
        (lambda t: t.assign(energy=np.nan), "energy holds values that are not finite"),
        (lambda t: t.assign(energy_reference=np.inf), "energies are not finite"),
        (lambda t: t.assign(energy_variance=-1.0), "energy_variance holds negative values"),
        (lambda t: t.assign(numbers=[row + 0.5 for row in t.numbers]), "numbers cannot be read"),
        (lambda t: t.assign(numbers=[row * 0 for row in t.numbers]), "atomic numbers must lie"),
        (lambda t: t.assign(positions=[row * 0 for row in t.positions]), "closer than"),
        (lambda t: t[:0], "holds no frame"),
    ],
)
def test_parquet_that_does_not_fit_is_refused(change, message, tmp_path):
    change(predictions_of().frame()).to_parquet(tmp_path / "p.parquet", index=False)
    refused(tmp_path / "p.parquet", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["energy"]), "has no energy "),
        (lambda t: t.drop(columns=["forces_y"]), "has no column forces_y"),
        (lambda t: t.drop(columns=["element"]), "has no column element"),
        (lambda t: t.assign(element="Xx"), "unknown element 'Xx'"),
        (lambda t: t[t.index != 4], "count from 0, without gaps"),
        (lambda t: t[t.index < len(t) - 1], "rows are missing"),
        (lambda t: t[::-1], "count from 0"),
        (lambda t: t.assign(energy=np.arange(len(t))), "energy differs between the atoms of a frame"),
        (lambda t: t.assign(score=["x", *t.score[1:]]), "column score cannot be read"),
        (lambda t: t.assign(score=[None, *t.score[1:]]), "score holds .* cells that are empty"),
        (lambda t: t.assign(forces_reference_y=[None, *t.forces_reference_y[1:]]), "forces are not finite in 1 frame"),
        (lambda t: t.assign(id=0.5), "column id cannot be read .expected whole numbers"),
        (lambda t: t.assign(pbc_a=2), "expected 0 or 1"),
        (lambda t: t[:0], "holds no frame"),
    ],
)
def test_csv_that_does_not_fit_is_refused(change, message, tmp_path):
    path = tmp_path / "p.csv"
    predictions_of().write(path)
    change(pd.read_csv(path)).to_csv(path, index=False)
    refused(path, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" energy=", " other=", "frame 0 has no energy, others have"),
        (":score:R:1", ":other:R:1", "frame 0 has no score, others have"),
        (":forces:R:3", ":forces:R:2:more:R:1", "values of forces, expected"),
        (" energy_score=", " energy_score=x", "energy_score do not hold numbers"),
        ("\nC ", "\nXx ", "no extended XYZ file, or a damaged one|atomic numbers"),
        (" id=7 ", " id=7.5 ", "id do not hold numbers|whole"),
    ],
)
def test_extended_xyz_that_does_not_fit_is_refused(old, new, message, tmp_path):
    text = predictions_of().encoded(".extxyz").decode()
    assert old in text
    (tmp_path / "p.extxyz").write_text(text.replace(old, new, 1))
    refused(tmp_path / "p.extxyz", message)


def test_frames_of_different_models_are_not_mixed(tmp_path):
    texts = [predictions_of(calibration=one).encoded(".extxyz").decode() for one in (CALIBRATION, None)]
    (tmp_path / "p.extxyz").write_text("".join(texts))
    refused(tmp_path / "p.extxyz", "different calibrations")


def test_standard_deviations_follow_the_calibration():
    own, calibrated = predictions_of(), predictions_of(calibration=CALIBRATION)
    np.testing.assert_array_equal(own.forces_std, np.sqrt(own.force_variance))
    np.testing.assert_array_equal(own.energy_std, np.sqrt(own.energy_variance))
    assert not own.calibrated and own.energy_radii == own.forces_radii == {}
    by_hand = np.sqrt(np.maximum(0.1 * calibrated.score + 0.3, 1e-3))
    np.testing.assert_allclose(calibrated.forces_std, by_hand, rtol=1e-15)
    assert set(calibrated.forces_radii) == {0.5}, "no radius for a level that the validation set is too small for"
    np.testing.assert_allclose(calibrated.forces_radii[0.5], 0.7 * by_hand, rtol=1e-15)
    assert predictions_of(variances=False).forces_std is None
    json.dumps(CALIBRATION.to_dict(), allow_nan=False)


def test_a_calibration_needs_labels():
    with pytest.raises(DataError, match=r"frames: 2 of 5 frame\(s\) have no energy, first frame 7"):
        Calibration.fit(predictions_of("some"), (0.5,))
