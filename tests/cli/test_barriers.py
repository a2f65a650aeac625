"""`uqbench evaluate evaluation=neb` from the command line to the barrier, and its oracle as a group of its own."""

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.utils.forcecurve import fit_images
from omegaconf import OmegaConf

from uqbench import config
from uqbench.cli import main

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The oracle's cache, away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UQBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, without_figures):
    """A small model of ammonia around its inversion path, labelled by GFN2-xTB, and the folder of all runs."""
    pytest.importorskip("tblite", reason="tblite is not installed")
    rng = np.random.default_rng(0)
    angles = np.radians([0, 120, 240])
    frames = []
    for height in rng.uniform(-0.5, 0.5, 80):  # of N above the hydrogens, at bonds of about 1.01 Å
        radius = np.sqrt(1.01**2 - height**2)
        hydrogens = np.column_stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(3)])
        frames.append(Atoms("NH3", [[0, 0, height], *hydrogens] + rng.normal(0, 0.04, (4, 3))))
    node = OmegaConf.load(config.conf_dir() / "oracle" / "xtb.yaml")
    with config.build(OmegaConf.create({"oracle": node}).oracle) as oracle:
        labelled = oracle.label(frames).structures("ammonia")
    folder = tmp_path_factory.mktemp("ammonia")
    ase.io.write(folder / "ammonia.extxyz", labelled.to_atoms())
    command = ["train", "dataset=file", f"dataset.path={folder / 'ammonia.extxyz'}", f"outputs={folder}"]
    command += [
        "uq=deterministic",
        "backbone.features=8",
        "training.epochs=10",
        "training.lr=5e-3",
        "evaluation.bootstrap=0",
    ]
    assert main(command) == 0
    (run,) = folder.glob("train/**/seed0-*")
    return run, folder


def evaluate(trained, *overrides):
    run, outputs = trained
    return main(["evaluate", f"run={run}", f"outputs={outputs}", "evaluation=neb", *overrides])


def test_barrier_of_a_trained_model(trained, capsys, caplog):
    _, outputs = trained
    quick = ["evaluation.images=7", "evaluation.fmax=0.02"]
    assert evaluate(trained, *quick) == 0
    (folder,) = outputs.glob("evaluate/**/seed0-*")
    rows = pd.read_csv(folder / "metrics.csv")
    assert set(rows.target) == {"neb"} and set(rows.population) == {"ammonia_inversion"}
    value = rows.set_index("metric").value
    assert value.converged_reference == 1 and value.fmax_reference < 0.02, caplog.text
    assert value.converged in (0, 1) and not (value.converged and value.fmax >= 0.02), caplog.text
    images = {whose: ase.io.read(folder / f"neb_{whose}.extxyz", index=":") for whose in ("model", "oracle")}
    energies = {whose: np.array([a.get_potential_energy() for a in path]) for whose, path in images.items()}
    for name, whose in (("barrier", "model"), ("barrier_reference", "oracle")):
        assert value[name] == pytest.approx(energies[whose].max() - energies[whose][0], abs=1e-6)
    assert 0.15 < value.barrier_reference < 0.35  # GFN2-xTB: 0.265 eV
    assert value.barrier_error == pytest.approx(value.barrier - value.barrier_reference)
    table = pd.read_csv(folder / "neb.csv")
    own = table[table.path == "model"]
    np.testing.assert_allclose(own.energy, energies["model"], atol=1e-6)
    error = (own.energy - own.energy.iloc[0]) - (own.energy_oracle - own.energy_oracle.iloc[0])
    assert value.single_point_rmse == pytest.approx(np.sqrt((error**2).mean()))
    # How good the model's path is, is a matter of its weights; how far from the oracle's is to be found in the files.
    grid, fits = np.linspace(0, 1, 1001), {whose: fit_images(path) for whose, path in images.items()}
    ours, theirs = (
        np.interp(grid, fits[whose].fit_path / fits[whose].fit_path[-1], fits[whose].fit_energies) for whose in images
    )
    assert value.path_rmse == pytest.approx(np.sqrt(((ours - theirs) ** 2).mean()), rel=1e-2)
    saddle = own.loc[own.energy.idxmax()]
    assert value.saddle_energy_std == saddle.energy_std > 0 and value.saddle_forces_std == saddle.forces_std_max > 0
    assert (folder / "neb.png").read_bytes().startswith(b"\x89PNG")
    # The model's own energies, of frames as written: nothing of the band's state enters.
    import uqbench

    estimate = uqbench.load(trained[0]).predict(images["model"])
    np.testing.assert_allclose(estimate.energy, energies["model"], atol=1e-4)
    before = (folder / "neb.csv").stat().st_mtime_ns
    capsys.readouterr()
    assert evaluate(trained, *quick) == 0
    assert "barrier_error" in capsys.readouterr().out and (folder / "neb.csv").stat().st_mtime_ns == before


def test_what_has_not_converged_says_so(trained, tmp_path, caplog):
    run, _ = trained
    overrides = ["evaluation.steps=1", "evaluation.fmax=1e-4", "evaluation.images=3"]
    assert evaluate((run, tmp_path), *overrides) == 0
    (folder,) = tmp_path.glob("evaluate/**/seed0-*")
    value = pd.read_csv(folder / "metrics.csv").set_index("metric").value
    assert value.converged == value.converged_reference == 0
    assert "path of the model: not converged after 1 steps" in caplog.text
    assert "path of the oracle: not converged after 1 steps" in caplog.text


def test_ends_that_the_model_does_not_know_or_that_are_no_reaction(trained, tmp_path, capsys):
    run, _ = trained
    from ase.build import molecule

    water = molecule("H2O")
    bent = water.copy()
    bent.positions[0, 2] -= 0.5
    ase.io.write(tmp_path / "water.extxyz", [water, bent])
    ase.io.write(tmp_path / "still.extxyz", [water, water])
    outputs = tmp_path / "outputs"
    for path, message in (("water", "has not been trained on O; it knows H, N"), ("still", "same geometry")):
        assert evaluate((run, outputs), f"evaluation.path={tmp_path / path}.extxyz") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not outputs.exists()


def test_the_oracle_is_a_group_of_its_own(capsys):
    """Also groups of groups: the data set that a replay looks its labels up in."""
    assert main(["evaluate", "evaluation=neb", "--help"]) == 0
    assert "oracle@evaluation.oracle  " in capsys.readouterr().out
    command = ["evaluate", "evaluation=neb", "--cfg", "job", "--package", "evaluation.oracle"]
    assert main([*command, "oracle@evaluation.oracle=dft", "evaluation.oracle.grid_level=5"]) == 0
    shown = capsys.readouterr().out
    assert "oracles.dft.DFT" in shown and "grid_level: 5" in shown
    nested = ["oracle@evaluation.oracle=replay", "dataset@evaluation.oracle.dataset=nff"]
    assert main([*command, *nested]) == 0
    assert "sources.nff" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["oracle@evaluation.oracle=xbt"], "oracle@evaluation.oracle: no option 'xbt'; did you mean 'xtb'?"),
        (["evaluation.oracle=dft"], "evaluation.oracle: is chosen as a whole by oracle@evaluation.oracle=dft"),
        (["oracle=dft"], "oracle: is chosen as a whole by oracle@evaluation.oracle=dft"),
        (["evaluation.oracle.acuracy=1"], "did you mean 'evaluation.oracle.accuracy'?"),
        (["evaluation.images=2"], "evaluation.images: expected an integer >= 3, got 2"),
        (["evaluation.optimizer=bfgs"], "evaluation.optimizer: expected 'BFGS' or 'FIRE'"),
        (["oracle@evaluation.oracle=ase", "evaluation.oracle.calculator=os.system"], "'os.system' is not trusted"),
    ],
)
def test_wrong_settings_are_errors_of_one_line(trained, tmp_path, capsys, overrides, message):
    assert evaluate((trained[0], tmp_path), *overrides) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
