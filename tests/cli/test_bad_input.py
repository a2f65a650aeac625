"""Bad data and foreign files: one line that says what is wrong, exit code 2, nothing half-written."""

import pickle
import zipfile

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from uqbench.cli import main


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def npz(path, forces=None):
    rng = np.random.default_rng(0)
    positions = molecule("H2O").positions + rng.normal(0, 0.02, (30, 3, 3))
    forces = rng.normal(0, 1, positions.shape) if forces is None else forces(positions)
    arrays = {"positions": positions, "energies": rng.normal(0, 1, 30), "forces": forces, "symbols": ["O", "H", "H"]}
    np.savez(path, **arrays)
    return path


def truncated(folder):
    path = npz(folder / "half.npz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ["dataset=npz", f"dataset.path={path}"]


def nan_label(folder):
    def forces(positions):
        forces = np.zeros_like(positions)
        forces[7, 1, 2] = np.nan
        return forces

    return ["dataset=npz", f"dataset.path={npz(folder / 'nan.npz', forces)}"]


def no_forces(folder):
    frames = [molecule("H2O") for _ in range(5)]
    for atoms in frames:
        atoms.info["energy"] = 1.0
    write(folder / "bare.extxyz", frames, format="extxyz")
    return ["dataset=file", f"dataset.path={folder / 'bare.extxyz'}"]


def no_root(folder):
    return ["dataset=rmd17", f"data_root={folder / 'nowhere'}"]


def no_file(folder):
    return ["dataset=npz", "dataset.path=absent.npz", f"data_root={folder}"]


def malicious_data(folder):
    path = folder / "evil.pth.tar"
    path.write_bytes(pickle.dumps(Malicious(folder / "pwned")))
    return ["dataset=nff", f"dataset.path={path}"]


def split_past_the_end(folder):
    return ["dataset=rmd17", "dataset.split=6", f"data_root={folder}"]


def rows_past_the_end(folder):
    root = folder / "rmd17"
    (root / "npz_data").mkdir(parents=True)
    (root / "splits").mkdir()
    rng = np.random.default_rng(0)
    coords = molecule("CH3CH2OH").positions + rng.normal(0, 0.02, (50, 9, 3))
    arrays = {"nuclear_charges": molecule("CH3CH2OH").numbers, "coords": coords, "energies": rng.normal(size=50)}
    np.savez(root / "npz_data" / "rmd17_ethanol.npz", **arrays, forces=rng.normal(size=coords.shape))
    for part, rows in (("train", range(30)), ("test", range(30, 51))):
        (root / "splits" / f"index_{part}_01.csv").write_text("".join(f"{row}\n" for row in rows))
    return ["dataset=rmd17", f"data_root={folder}"]


CASES = [truncated, nan_label, no_forces, no_root, no_file, malicious_data, split_past_the_end, rows_past_the_end]


@pytest.mark.parametrize("command", ["train", "data"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_data_is_one_line(command, case, tmp_path, capsys):
    overrides = case(tmp_path)
    arguments = [command, *overrides, f"outputs={tmp_path / 'outputs'}"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "uqbench: error:" in line]
    assert len(errors) == 1 and "Traceback" not in captured.err
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "overrides", [["trainning.lr=1"], ["uq=ensembel"], ["uq._target_=os.system"], ["training.lr=fast"]]
)
def test_bad_settings_are_one_line(overrides, tmp_path, capsys):
    assert main(["train", *overrides, f"outputs={tmp_path / 'outputs'}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("uqbench: error:") == 1 and "Traceback" not in captured.err
    assert not (tmp_path / "outputs").exists()


def test_a_malicious_checkpoint_is_refused(tmp_path, capsys):
    overrides = [
        "train", f"outputs={tmp_path}", "uq=deterministic", "dataset.n_train=10", "dataset.n_validation=5",
        "dataset.n_test=5", "backbone.features=8", "training.epochs=1", "evaluation.bootstrap=0",
    ]  # fmt: skip
    assert main(overrides) == 0
    (run,) = tmp_path.glob("train/*/*/*/*")
    evil = pickle.dumps(Malicious(tmp_path / "pwned"))
    size = (run / "best.pt").stat().st_size
    with zipfile.ZipFile(run / "best.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(run / "best.pt", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, evil if name.endswith("data.pkl") else content)
    # As an attacker would, so that the size alone does not give it away.
    with open(run / "best.pt", "ab") as file:
        file.write(b"\0" * max(0, size - (run / "best.pt").stat().st_size))
    info = (run / "run.json").read_text().replace(str(size), str((run / "best.pt").stat().st_size))
    (run / "run.json").write_text(info)
    capsys.readouterr()
    assert main(["evaluate", f"run={run}", f"outputs={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("uqbench: error:") == 1 and "best.pt" in captured.err
    assert not (tmp_path / "pwned").exists()


def test_a_report_of_no_runs_says_so_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for place, message in (("nowhere", "no such folder"), ("runs", "no finished run below")):
        assert main(["report", f"runs={tmp_path / place}", f"output={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["report", f"runs={tmp_path}", "units=Hartree"]) == 2
    assert "units" in capsys.readouterr().err
