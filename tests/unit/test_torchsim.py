"""A trained model in torch-sim against predictions of the same frames, finite differences and a known temperature."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.stress import full_3x3_to_voigt_6_stress
from helpers import fit, options, small_method

from uqbench.data.graph import Batch
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.inference.trained_model import TrainedModel
from uqbench.uq.base import Prediction

torch_sim = pytest.importorskip("torch_sim", reason="torch-sim is not installed: pip install 'uqbench[torchsim]'")
pytestmark = pytest.mark.numerics

README = Path(__file__).parents[2] / "README.md"
OLD = Path(__file__).parents[1] / "data/runs_of_0.1/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305"


def labelled(*frames: Atoms) -> Structures:
    for k, atoms in enumerate(frames):
        atoms.info["energy"] = float(k)
        atoms.arrays["forces"] = np.random.default_rng(k).normal(0, 1, atoms.positions.shape)
    return Structures.from_atoms(frames, origin="test", energy_key="energy", force_key="forces")


def model_of(frames: Structures, backbone: str, uq: str = "mve", dtype: torch.dtype = torch.float64) -> TrainedModel:
    return TrainedModel(fit(small_method(frames, backbone, uq), frames).to(dtype).eval(), None, "cpu")


def state_of(frames: list[Atoms], dtype: torch.dtype = torch.float64) -> torch_sim.SimState:
    return torch_sim.initialize_state(frames, torch.device("cpu"), dtype)


@pytest.fixture(scope="module")
def molecules() -> list[Atoms]:
    """Two molecules of different size and composition, away from the origin, at positions that float32 can hold."""
    frames = [molecule("CH3CH2OH"), molecule("H2O")]
    for atoms in frames:
        moved = atoms.positions + np.random.default_rng(len(atoms)).normal(10, 0.05, atoms.positions.shape)
        atoms.positions = moved.astype(np.float32)
    return frames


@pytest.fixture(scope="module")
def crystals() -> list[Atoms]:
    """Two crystals, one smaller than the cutoff, the other skewed."""
    skewed = bulk("MgO", "rocksalt", a=4.3) * (2, 1, 1)
    skewed.set_cell(skewed.cell @ [[1, 0.05, 0], [0, 1, -0.03], [0, 0, 1]], scale_atoms=True)
    frames = [bulk("MgO", "rocksalt", a=4.2, cubic=True), skewed]
    for atoms in frames:
        atoms.positions += np.random.default_rng(len(atoms)).normal(0, 0.1, atoms.positions.shape)
    return frames


def check(model: TrainedModel, frames: list[Atoms], tolerance: float, **stress: bool) -> None:
    ours, dtype = model.predict(frames), model.dtype
    results = model.torchsim(**stress)(state_of(frames, dtype))
    assert all(values.dtype == dtype and not values.requires_grad for values in results.values())
    scale = np.abs(ours.forces).max()
    np.testing.assert_allclose(results["energy"], ours.energy, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(results["forces"], ours.forces, rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_allclose(results["score"], ours.score, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("backbone", options("backbone"))
# Of the largest force; some hundred roundings of 6e-8 or 1e-16.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-5)])
def test_two_systems_are_predicted_as_by_us(backbone, dtype, tolerance, molecules, crystals):
    for frames in (molecules, crystals):
        check(model_of(labelled(*frames), backbone, dtype=dtype), frames, tolerance)


@pytest.mark.parametrize("uq", options("uq"))
def test_every_method_is_predicted_as_by_us(uq, molecules):
    check(model_of(labelled(*molecules), "painn_small", uq), molecules, 1e-9)


def test_the_order_of_systems_is_the_order_of_results(molecules):
    model = model_of(labelled(*molecules), "painn_small").torchsim()
    a, b, c = (atoms for atoms in (*molecules, molecule("CH3OH")))
    one, other = model(state_of([a, b, c])), model(state_of([c, a, b]))
    torch.testing.assert_close(other["energy"], one["energy"][[2, 0, 1]], rtol=1e-12, atol=1e-10)
    parts = one["forces"].split([len(a), len(b), len(c)])
    torch.testing.assert_close(other["forces"], torch.cat([parts[2], parts[0], parts[1]]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backbone", options("backbone"))
def test_stress_is_the_derivative_by_strain(backbone, crystals):
    """Central differences of the energy over the volume, by each component of a strain of torch-sim's own state."""
    trained = model_of(labelled(*crystals), backbone)
    model, state = trained.torchsim(stress=True), state_of(crystals)
    stress, volumes, step = model(state)["stress"], torch.det(state.cell).abs(), 1e-5
    assert stress.shape == (2, 3, 3)
    model.compute_stress = False
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                deformation = torch.eye(3, dtype=torch.float64)
                deformation[a, b] += sign * step
                strained = state.clone()
                strained.positions = strained.positions @ deformation.T
                strained.cell = deformation @ strained.cell
                results = model(strained)
                assert "stress" not in results
                energies.append(results["energy"])
            numerical = (energies[0] - energies[1]) / (2 * step) / volumes
            # Truncation is of order step², and rounding eV 1e-16 / step / V: both far below.
            torch.testing.assert_close(stress[:, a, b], numerical, rtol=1e-5, atol=1e-6 * float(stress.abs().max()))
    for atoms, ours in zip(crystals, stress, strict=True):
        atoms.calc = trained.calculator()
        np.testing.assert_allclose(full_3x3_to_voigt_6_stress(ours.numpy()), atoms.get_stress(), rtol=1e-9, atol=1e-12)


def test_the_model_is_one_by_torch_sims_own_check():
    frames = [bulk("Si", "diamond", a=5.43, cubic=True), bulk("Fe", "fcc", a=5.26, cubic=True).repeat([3, 1, 1])]
    model = model_of(labelled(*frames), "painn_small").torchsim()
    torch_sim.models.interface.validate_model_outputs(model, torch.device("cpu"), torch.float64)


def test_lists_follow_atoms_cells_and_other_systems(crystals, molecules):
    """One model for everything that comes, against a new one each time."""
    trained = model_of(labelled(*crystals), "painn_small")
    model, state, rng = trained.torchsim(stress=True, skin=0.5), state_of(crystals), torch.Generator().manual_seed(0)
    for step in range(12):
        state.positions += 0.05 * torch.randn(state.positions.shape, generator=rng, dtype=torch.float64)  # in place
        if step == 4:
            state.cell *= 1.01
        if step == 8:
            state = state[[1]]
        results, expected = model(state), trained.torchsim(stress=True, skin=0.0)(state)
        for name, values in results.items():
            assert torch.equal(values, expected[name]), name


class Springs(torch.nn.Module):
    """Springs between atoms nearer than 2 Å, of 2.5 eV/Å² and 1.3 Å, as a method."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = types.SimpleNamespace(
            scale=torch.tensor(1.0, dtype=torch.float64), backbone=types.SimpleNamespace(cutoff=2.0)
        )

    def predict(self, batch: Batch, *, stress: bool = False) -> Prediction:
        vectors = batch.positions[batch.second] - batch.positions[batch.first] + batch.shifts
        distances = torch.linalg.vector_norm(vectors, dim=-1)
        pull = (2.5 * (distances - 1.3) / distances).unsqueeze(-1) * vectors
        forces = torch.zeros_like(batch.positions).index_add(0, batch.first, pull).index_add(0, batch.second, -pull)
        energy = torch.zeros(len(batch), dtype=torch.float64)
        energy = energy.index_add(0, batch.system[batch.first], 1.25 * (distances - 1.3).square())
        return Prediction(energy, forces, None, None, forces.square().sum(-1), energy)


def test_langevin_dynamics_of_torch_sim_keep_two_systems_at_their_temperatures():
    """Two gases of carbon dimers at 300 and 600 K.

    The kinetic energy over kT/2 has a chi-squared distribution of 3N degrees of freedom: σ(T)/T = √(2 / 3NM) for M
    independent snapshots. Momenta forget within 1/γ = 20 fs, so that those 100 fs apart are independent (e⁻⁵). At the
    end of a step momenta are too cold by (ω Δt)²/4 = 5e-4, which does not count.
    """
    sites = 10.0 * np.array([[i, j, k] for i in range(5) for j in range(5) for k in range(4)])
    gases = [
        Atoms("C2" * n, np.repeat(sites[:n], 2, axis=0) + np.tile([[0, 0, 0], [0, 0, 1.3]], (n, 1))) for n in (100, 60)
    ]
    model = TrainedModel(Springs(), None, "cpu").torchsim(skin=1.0)
    temperatures = torch.tensor([300.0, 600.0], dtype=torch.float64)
    kT, dt, every, snapshots = units.kB * temperatures, 0.5 * units.fs, 200, 10
    kinetic = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gamma = torch.tensor(1 / (20 * units.fs), dtype=torch.float64)
        begin, step = torch_sim.nvt_langevin(
            model, dt=torch.tensor(dt, dtype=torch.float64), kT=kT, gamma=gamma, seed=0
        )
        state = begin(state_of(gases))
        for number in range(1, every * (snapshots + 1) + 1):
            state = step(state)
            if number % every == 0 and number > every:  # the start forgotten
                kinetic.append(
                    torch_sim.calc_kT(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
                )
    ratio = (torch.stack(kinetic).mean(0) / kT).numpy()
    sigma = np.sqrt(2 / (3 * np.array([200, 120]) * snapshots))
    assert np.all(4 * sigma < 0.1), "tells the two temperatures apart, and a thermostat that is off by a tenth"
    assert np.all(np.abs(ratio - 1) < 4 * sigma)


@pytest.mark.parametrize(
    ("frames", "stress", "message"),
    [
        ([Atoms("Ar2", [[0, 0, 0], [0, 0, 2]])], False, "Ar"),
        ([molecule("H2O"), Atoms("H2", [[1, 0, 0], [1, 0, 0]])], False, "atoms 0 and 1 coincide"),
        ([Atoms("H2", [[0, 0, 0], [0, 0, np.nan]])], False, "position of atom 1 is not finite"),
        ([Atoms("H2", [[0, 0, 0], [0, 0, 1]])], True, "stress: the systems are not periodic"),
        ([Atoms("H", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True)], False, "no volume"),
    ],
)
def test_impossible_states_are_refused_in_one_line(frames, stress, message, molecules):
    model = model_of(labelled(*molecules), "painn_small").torchsim(stress=stress)
    with pytest.raises(DataError, match=message) as error:
        model(state_of(frames))
    assert len(str(error.value).splitlines()) == 1


def test_a_state_may_be_a_mapping_and_its_systems_come_in_order(molecules):
    model, state = model_of(labelled(*molecules), "painn_small").torchsim(), state_of(molecules)
    plain = {name: getattr(state, name) for name in ("positions", "cell", "pbc", "atomic_numbers", "system_idx")}
    assert torch.equal(model(plain)["forces"], model(state)["forces"])
    with pytest.raises(DataError, match="system_idx"):
        model({**plain, "positions": plain["positions"][:2], "atomic_numbers": plain["atomic_numbers"][:2],
               "system_idx": torch.tensor([1, 0])})  # fmt: skip


def test_the_example_in_the_documents_runs(monkeypatch):
    """With another run and fewer steps."""
    [block] = [
        text for text in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "torch_sim" in text
    ]
    block = re.sub(r'load\("[^"]*"', f'load("{OLD}"', block).replace("n_steps=1000", "n_steps=3")
    names = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(block, "README.md", "exec"), names)
    assert [len(atoms) for atoms in names["final"].to_atoms()] == [9, 6]
    assert names["final"].dtype == torch.float64 and torch.isfinite(names["final"].energy).all()


def test_without_torch_sim_one_line_says_what_to_install(molecules, monkeypatch):
    model = model_of(labelled(*molecules), "painn_small")
    monkeypatch.delitem(sys.modules, "uqbench.inference.torchsim", raising=False)
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(ConfigError, match=r"torch-sim cannot be imported .*pip install 'uqbench\[torchsim\]'") as error:
        model.torchsim()
    assert len(str(error.value).splitlines()) == 1
