"""Runs loaded from disk as a user would, and what is said of folders that are no such thing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from helpers import fit, options, small_config
from omegaconf import OmegaConf

import uqbench
from uqbench.cli import main
from uqbench.errors import CheckpointError, ConfigError, DataError, UqbenchError
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import predict
from uqbench.models.normalisation import Normalisation
from uqbench.runs.files import file_sha256
from uqbench.runs.run_dir import RunDir, save_checkpoint
from uqbench.uq.io import build_method

pytestmark = pytest.mark.numerics

LEVELS = (0.5, 0.9)
# Relative to the largest value: some hundred roundings in single precision, one after the other, of terms that cancel.
ROUNDING = 1e3 * np.finfo(np.float32).eps


def write_run(root, ethanol, uq, *, calibrated=True, finish=True, seed=0):
    """A run as `uqbench train` leaves it, with an untrained network in float32; returns folder, method, calibration."""
    cfg = small_config("painn_small", uq, seed)
    method = build_method(cfg, Normalisation.fit(ethanol)).eval()
    fit(method, ethanol)
    calibration = Calibration.fit(predict(method, ethanol[:30], batch_size=30, device="cpu"), LEVELS)
    names = {"command": "train", "dataset": "d", "backbone": "b", "uq": uq}
    with RunDir.open(root=root, seed=seed, config=cfg, **names) as run:
        run.save_checkpoint("best.pt", {"epoch": 1, "method": method.state_dict()})
        if calibrated:
            calibration.save(run)
        if finish:
            run.finish()
    return run.path, method, calibration


@pytest.fixture(scope="module")
def run(ethanol, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs"), ethanol, "ensemble")


@pytest.fixture
def own(ethanol, tmp_path):
    """A run that a test may damage."""
    return write_run(tmp_path, ethanol, "deterministic")[0]


FOREIGN = {
    "a helper of the program": ("uqbench.models.compiled.build._run", "no public name"),
    "a function": ("uqbench.runs.files.save_checkpoint", "is no class"),
    "a class of another slot": ("uqbench.oracles.xtb.XTB", "cannot stand here"),
    "a class of no slot": ("uqbench.runs.run_dir.RunDir", "cannot stand here"),
    "another package": ("subprocess.Popen", "is not trusted"),
}


KEYS = ("backbone", "uq", "training", "dataset", "backbone.features")
# Every target in one slot, and one target in every slot.
SENT = [(key, what) for key in KEYS for what in FOREIGN if key == "uq" or what == "a class of another slot"]


@pytest.mark.parametrize(("key", "what"), SENT)
def test_a_run_that_somebody_sent_builds_only_what_its_slots_accept(own, key, what, tmp_path, capsys):
    target, message = FOREIGN[what]
    config = OmegaConf.load(own / "config.yaml")
    evil = tmp_path / "evil"
    OmegaConf.update(config, key, {"_target_": target, "command": ["touch", str(evil)]}, merge=False, force_add=True)
    (own / "config.yaml").write_text(OmegaConf.to_yaml(config))
    info = json.loads((own / "run.json").read_text())
    # Whoever changes the one can change the other.
    info["files"]["config.yaml"] = (own / "config.yaml").stat().st_size
    info["sha256"]["config.yaml"] = file_sha256(own / "config.yaml")
    info["labels"] = {"dataset": "d", "subset": "", "backbone": "b", "uq": "deterministic", "seed": 0}
    (own / "run.json").write_text(json.dumps(info))
    message = "cannot stand here" if "." in key else message
    with pytest.raises(ConfigError, match=message) as caught:
        uqbench.load(own)
    assert f"{key}._target_" in str(caught.value)
    data = [] if key == "dataset" else ["dataset=quickstart"]
    assert main(["evaluate", f"run={own}", f"outputs={tmp_path / 'outputs'}", *data]) == 2
    err = capsys.readouterr().err
    assert f"{key}._target_" in err and "Traceback" not in err
    assert not evil.exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("uq", options("uq"))
def test_a_loaded_run_predicts_what_the_evaluation_predicts(uq, ethanol, tmp_path):
    path, method, calibration = write_run(tmp_path, ethanol, uq)
    expected = predict(method, ethanol, batch_size=60, device="cpu")
    model = uqbench.load(path)
    found = model.predict(ethanol)
    assert len(found) == 60 and found.calibrated and found.ptr.tolist() == ethanol.ptr.tolist()
    for name in ("energy", "forces", "energy_score", "score"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.energy_std, np.sqrt(calibration.energy.variance(expected.energy_score)))
    np.testing.assert_array_equal(found.forces_std, np.sqrt(calibration.forces.variance(expected.score)))
    assert found.forces_radii.keys() == set(LEVELS)
    for level in LEVELS:
        np.testing.assert_allclose(
            found.forces_radii[level], calibration.forces.conformal.quantiles[level] * found.forces_std
        )
        np.testing.assert_allclose(
            found.energy_radii[level], calibration.energy.conformal.quantiles[level] * found.energy_std
        )
    assert model.elements == ["H", "C", "O"] and model.cutoff == 5.0 and model.dtype == torch.float32


def test_without_a_calibration_the_standard_deviations_are_the_methods_own(ethanol, tmp_path):
    for uq in ("ensemble", "gmm"):
        path, method, _ = write_run(tmp_path, ethanol, uq, calibrated=False)
        expected, found = (
            predict(method, ethanol[:3], batch_size=3, device="cpu"),
            uqbench.load(path).predict(ethanol[:3]),
        )
        assert not found.calibrated and found.forces_radii == found.energy_radii == {}
        if uq == "gmm":
            assert found.forces_std is None and found.energy_std is None
        else:
            np.testing.assert_array_equal(found.forces_std, np.sqrt(expected.force_variance))
            np.testing.assert_array_equal(found.energy_std, np.sqrt(expected.energy_variance))


def test_frames_may_come_as_atoms_lists_or_structures(run, ethanol):
    model = uqbench.load(run[0])
    frames = [Atoms(atoms.numbers, atoms.positions) for atoms in ethanol[:5].to_atoms()]
    frames[1].set_constraint(FixAtoms([0]))
    whole = model.predict(ethanol[:5])
    for other in (model.predict(frames), model.predict(iter(frames)), model.predict(frames, batch_size=2)):
        for name in ("energy", "forces", "forces_std", "score"):
            # The rounding depends on what shares the batch.
            expected = getattr(whole, name)
            np.testing.assert_allclose(
                getattr(other, name), expected, rtol=0, atol=ROUNDING * np.abs(expected).max(), err_msg=name
            )
    one = model.predict(frames[3])
    assert len(one) == 1 and one.forces.shape == (9, 3)
    np.testing.assert_allclose(one.energy, whole.energy[3:4], rtol=1e-6)


def test_the_calculator_of_a_run_agrees_and_shares_the_weights(run, ethanol):
    model = uqbench.load(run[0])
    estimate = model.predict(ethanol[:1])
    calculators = [model.calculator(), uqbench.load(run[0]).calculator()]
    assert calculators[0].model is model and model.calculator().model is model
    for calculator in calculators:
        atoms = Atoms(ethanol.numbers[:9], ethanol.positions[:9], calculator=calculator)
        largest = np.abs(estimate.forces).max()
        np.testing.assert_allclose(atoms.get_forces(), estimate.forces, rtol=0, atol=ROUNDING * largest)
        np.testing.assert_allclose(
            calculator.get_property("forces_std", atoms), estimate.forces_std, rtol=0, atol=ROUNDING * largest
        )
        assert calculator.calibrated


@pytest.mark.parametrize("dtype", ["float64", torch.float64])
def test_double_precision_on_request(run, ethanol, dtype):
    double, single = uqbench.load(run[0], dtype=dtype), uqbench.load(run[0])
    assert double.dtype == torch.float64
    a, b = (model.predict(ethanol[:2]).forces for model in (double, single))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING * np.abs(a).max())
    assert not np.array_equal(a, a.astype(np.float32)), "these are no rounded numbers"


@pytest.mark.parametrize(
    "options_", [{"dtype": "float16"}, {"dtype": int}, {"device": "cuda:99"}, {"device": "abacus"}]
)
def test_impossible_options_are_refused(run, options_):
    with pytest.raises(ConfigError, match=next(iter(options_))) as caught:
        uqbench.load(run[0], **options_)
    assert "\n" not in str(caught.value)


def refused(path, kind, message):
    with pytest.raises(kind, match=message) as caught:
        uqbench.load(path)
    assert "\n" not in str(caught.value) and isinstance(caught.value, UqbenchError)


def test_folders_that_are_no_finished_run_are_refused(ethanol, own, tmp_path):
    refused(tmp_path / "nowhere", DataError, "no such run")
    refused(tmp_path, DataError, f"not a run directory; runs below it: .*{own.name}")
    unfinished, _, _ = write_run(tmp_path, ethanol, "mve", finish=False)
    refused(unfinished, DataError, "has not finished")


def test_lost_and_foreign_files_are_refused(own, ethanol, tmp_path):
    kept = (own / "best.pt").read_bytes()
    (own / "best.pt").unlink()
    refused(own, DataError, "best.pt: missing")

    def record(content):
        """Pretend that the run itself has written best.pt."""
        content()
        info = json.loads((own / "run.json").read_text())
        info["files"]["best.pt"] = (own / "best.pt").stat().st_size
        info["sha256"]["best.pt"] = file_sha256(own / "best.pt")
        (own / "run.json").write_text(json.dumps(info))

    record(lambda: (own / "best.pt").write_bytes(b"not a checkpoint"))
    refused(own, CheckpointError, "not a uqbench checkpoint")
    for content in ({"epoch": 1}, {"method": {"weight": torch.ones(1)}}, [1, 2], {"method": torch.ones(2)}):
        record(lambda content=content: save_checkpoint(own / "best.pt", content))
        refused(own, CheckpointError, "is no checkpoint of a potential")
    other, _, _ = write_run(tmp_path / "other", ethanol, "ensemble")
    record(lambda: (own / "best.pt").write_bytes((other / "best.pt").read_bytes()))
    refused(own, CheckpointError, "does not belong to this model")
    record(lambda: (own / "best.pt").write_bytes(kept))
    (own / "calibration.json").write_text(" " * (own / "calibration.json").stat().st_size)
    refused(own, DataError, "calibration.json: changed since the run finished")


def test_an_evaluation_is_not_a_model(own):
    (own / "best.pt").unlink()
    info = json.loads((own / "run.json").read_text())
    del info["files"]["best.pt"]
    (own / "run.json").write_text(json.dumps(info | {"source": "outputs/train/d/b/deterministic/seed0-12345678"}))
    refused(own, DataError, "holds no model; load .*deterministic/seed0-12345678")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "expected an ASE Atoms object"),
        ("ethanol.xyz", "expected an ASE Atoms object"),
        (Atoms("HF", [[0, 0, 0], [0, 0, 1]]), "was not trained on F"),
        ([Atoms("H2", [[0, 0, 0], [0, 0, 1]]), Atoms("H", [[np.nan, 0, 0]])], "not finite in 1 frame.*frame 1"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.1]]), "atoms 0 and 1 closer"),
        (Atoms(), "no frame|no atom"),
    ],
)
def test_impossible_frames_are_refused(run, frames, message):
    with pytest.raises(DataError, match=message):
        uqbench.load(run[0]).predict(frames)


def test_importing_uqbench_imports_nothing_slow():
    code = "import sys, uqbench; uqbench.load; print(sorted({'torch', 'numpy', 'ase', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
