"""The ASE calculator against the evaluation path, finite differences and ASE's own machinery."""

import copy
import pickle

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from helpers import fit, options, short_training, small_method

from uqbench.data.sources.quickstart import Quickstart
from uqbench.data.structures import Structures
from uqbench.errors import DataError, UqbenchError
from uqbench.inference.calculator import UQCalculator
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import predict
from uqbench.inference.trained_model import TrainedModel
from uqbench.runs.checkpoints import load_best
from uqbench.training.loop import train

pytestmark = pytest.mark.numerics

UQ = options("uq")


def fitted(structures, uq, backbone="painn_small"):
    return fit(small_method(structures, backbone, uq), structures)


@pytest.fixture(scope="module")
def models(ethanol):
    """Fitted but untrained models in float64 with their calibrations, by name, made once."""
    made: dict[str, TrainedModel] = {}

    def make(uq: str) -> TrainedModel:
        if uq not in made:
            method = fitted(ethanol, uq)
            validation = predict(method, ethanol[:30], batch_size=30, device="cpu")
            made[uq] = TrainedModel(method, Calibration.fit(validation, (0.5, 0.9)), "cpu")
        return made[uq]

    return make


@pytest.fixture(scope="module")
def oxide():
    """A perturbed MgO crystal whose primitive cell is smaller than the cutoff, and models that know it."""
    atoms = bulk("MgO", "rocksalt", a=4.3)
    atoms.positions += np.random.default_rng(0).normal(0, 0.1, atoms.positions.shape)
    frames = [atoms, atoms.repeat((2, 1, 1))]
    for k, frame in enumerate(frames):
        frame.info["energy"], frame.arrays["forces"] = float(k), np.ones_like(frame.positions)
    structures = Structures.from_atoms(frames, origin="test", energy_key="energy", force_key="forces")
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True), structures


@pytest.fixture
def calls(models):
    """How often the network of the ensemble has run."""
    found = []
    hook = models("ensemble").method.potential.register_forward_pre_hook(lambda *_: found.append(1))
    yield found
    hook.remove()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learnt enough of ethanol for simulations; computes in float64."""
    folder = tmp_path_factory.mktemp("trained")
    structures = Quickstart(n_train=1, n_validation=1, n_test=1, block=1, split_seed=0).load()
    changes = {"backbone.features": 16, "backbone.layers": 2}
    method = small_method(structures, "painn_small", "mve", **changes)
    train(method, structures[::5], structures[2::50], short_training(epochs=15, lr=5e-3), 0, folder)
    load_best(folder, method)
    return TrainedModel(method.to(torch.float64).eval(), None, "cpu")


def frame(ethanol, s=0):
    (atoms,) = ethanol[[s]].to_atoms()
    return Atoms(atoms.numbers, atoms.positions)


def extrapolated(differences, step):
    """Central differences without their error of second order, whose size would depend on the weights."""
    return (4 * differences(step) - differences(2 * step)) / 3


@pytest.mark.parametrize("uq", UQ)
def test_numbers_are_those_of_the_evaluation(uq, models, ethanol):
    model = models(uq)
    test = ethanol[40:44]
    expected = predict(model.method, test, batch_size=4, device="cpu")
    calculator = model.calculator()  # one for all, so that it goes from frame to frame
    assert calculator.calibrated
    forces, energy = model.calibration.forces.linear, model.calibration.energy.linear
    for s in range(len(test)):
        atoms, own = frame(test, s), slice(test.ptr[s], test.ptr[s + 1])
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected.energy[s], rel=1e-12)
        assert calculator.results["free_energy"] == calculator.results["energy"]
        np.testing.assert_allclose(atoms.get_forces(), expected.forces[own], rtol=1e-9, atol=1e-11)
        score = calculator.get_property("score", atoms)
        np.testing.assert_allclose(score, expected.score[own], rtol=1e-9)
        by_hand = np.sqrt(np.maximum(forces.a * expected.score[own] + forces.b, forces.floor))
        np.testing.assert_allclose(calculator.get_property("forces_std", atoms), by_hand, rtol=1e-7)
        by_hand = np.sqrt(max(energy.a * expected.energy_score[s] + energy.b, energy.floor))
        assert calculator.get_property("energy_std", atoms) == pytest.approx(by_hand, rel=1e-7)
        assert calculator.results["forces"].dtype == calculator.results["score"].dtype == np.float64


@pytest.mark.parametrize("uq", UQ)
def test_without_a_calibration_the_standard_deviations_are_the_methods_own(uq, models, ethanol):
    method = models(uq).method
    expected = predict(method, ethanol[:1], batch_size=1, device="cpu")
    atoms = frame(ethanol)
    atoms.calc = TrainedModel(method, None, "cpu").calculator()
    assert not atoms.calc.calibrated
    for name, variance in (("forces_std", expected.force_variance), ("energy_std", expected.energy_variance)):
        if variance is None:
            with pytest.raises(PropertyNotImplementedError):
                atoms.calc.get_property(name, atoms)
        else:
            np.testing.assert_allclose(atoms.calc.get_property(name, atoms), np.sqrt(variance).squeeze(), rtol=1e-7)


def test_forces_are_minus_the_slope_of_the_energy(models, ethanol):
    atoms = frame(ethanol)
    atoms.calc = models("ensemble").calculator()
    forces = atoms.get_forces()
    numerical = extrapolated(lambda eps: calculate_numerical_forces(atoms, eps=eps, iatoms=[0, 4, 8]), 5e-4)
    np.testing.assert_allclose(forces[[0, 4, 8]], numerical, rtol=1e-6, atol=1e-6 * np.abs(forces).max())


@pytest.mark.parametrize(
    ("backbone", "uq"), [(b, "ensemble") for b in options("backbone")] + [("schnet", q) for q in UQ]
)
def test_the_stress_is_ases_numerical_stress(backbone, uq, oxide):
    primitive, structures = oxide
    model = TrainedModel(fitted(structures, uq, backbone), None, "cpu")
    slab = primitive.repeat((2, 1, 1))
    slab.pbc = (True, True, False)
    for atoms in (primitive.copy(), slab):
        atoms.calc = model.calculator()
        stress = atoms.get_stress()
        numerical = extrapolated(lambda eps, atoms=atoms: calculate_numerical_stress(atoms, eps=eps), 1e-5)
        assert np.abs(stress).max() > 1e-4, "there is something to compare"
        np.testing.assert_allclose(stress, numerical, rtol=1e-6, atol=1e-6 * np.abs(stress).max())


@pytest.mark.parametrize(
    "box", [{}, {"cell": [9, 9, 9], "pbc": False}, {"cell": [[9, 0, 0], [0, 0, 0], [0, 0, 0]], "pbc": [1, 0, 0]}]
)
def test_no_stress_without_a_periodic_volume(box, models, ethanol, calls):
    atoms = Atoms(ethanol.numbers[:9], ethanol.positions[:9], calculator=models("ensemble").calculator(), **box)
    energy = atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()
    assert atoms.get_potential_energy() == energy and len(calls) == 1 and "stress" not in atoms.calc.results


def test_everything_is_computed_at_once_and_again_only_when_the_atoms_change(models, ethanol, calls):
    atoms = frame(ethanol)
    atoms.calc = models("ensemble").calculator()
    before = {name: atoms.calc.get_property(name, atoms) for name in ("score", "energy", "forces", "forces_std")}
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.get_forces()
    assert len(calls) == 1
    atoms.positions[0, 0] += 1e-3
    assert atoms.calc.get_property("score", atoms, allow_calculation=False) is None, "stale results are not given out"
    after = {name: atoms.calc.get_property(name, atoms) for name in before}
    assert len(calls) == 2 and all(np.all(after[name] != before[name]) for name in before)
    atoms.positions[0, 0] -= 1e-3
    for name, value in before.items():
        np.testing.assert_allclose(atoms.calc.get_property(name, atoms), value, rtol=1e-10)


def test_a_change_of_the_cell_or_the_periodicity_alone_is_noticed(oxide):
    atoms, structures = oxide
    atoms = atoms.copy()
    model = TrainedModel(fitted(structures, "deterministic"), None, "cpu")
    atoms.calc = model.calculator()
    seen = [atoms.get_potential_energy()]
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=False)
    seen.append(atoms.get_potential_energy())
    atoms.pbc = (True, True, False)
    seen.append(atoms.get_potential_energy())
    assert len(set(seen)) == 3 and seen[-1] == pytest.approx(model.predict(atoms).energy[0], rel=1e-12)


def test_constraints_leave_the_calculator_alone(models, ethanol):
    free, held = frame(ethanol), frame(ethanol)
    held.set_constraint(FixAtoms([0, 1]))
    for atoms in (free, held):
        atoms.calc = models("ensemble").calculator()
    assert not held.get_forces()[:2].any() and free.get_forces()[:2].any()
    np.testing.assert_array_equal(held.get_forces(apply_constraint=False), free.get_forces())
    np.testing.assert_array_equal(held.calc.results["forces"], free.get_forces())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda calculator: pickle.loads(pickle.dumps(calculator))])
@pytest.mark.parametrize("uq", UQ)
def test_copies_give_the_same_numbers(again, uq, models, ethanol):
    atoms, other = frame(ethanol), frame(ethanol, 1)
    atoms.calc = models(uq).calculator()
    atoms.get_forces()
    duplicate = again(atoms.calc)
    np.testing.assert_array_equal(duplicate.results["forces"], atoms.get_forces())
    for calculator in (atoms.calc, duplicate):
        other.calc = calculator
        other.get_potential_energy()
    for name, value in atoms.calc.results.items():
        np.testing.assert_array_equal(duplicate.results[name], value, err_msg=name)


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_frames_are_written_with_their_energies_and_forces(suffix, models, oxide, tmp_path):
    atoms, structures = oxide
    atoms = atoms.copy()
    atoms.calc = TrainedModel(fitted(structures, "ensemble"), None, "cpu").calculator()
    forces, stress = atoms.get_forces(), atoms.get_stress()
    ase.io.write(tmp_path / f"frame.{suffix}", atoms)
    back = ase.io.read(tmp_path / f"frame.{suffix}")
    np.testing.assert_allclose(back.get_forces(), forces, atol=1e-7)
    np.testing.assert_allclose(back.get_stress(), stress, atol=1e-7)
    assert back.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.numbers.__setitem__(0, 9), "was not trained on F; it knows H, C, O"),
        (lambda atoms: atoms.positions.__setitem__(0, np.nan), "atom 0 is not finite"),
        (lambda atoms: atoms.positions.__setitem__(0, atoms.positions[1]), "atoms 0 and 1 coincide"),
        (lambda atoms: atoms.__delitem__(slice(None)), "no atoms"),
    ],
)
def test_impossible_atoms_are_refused_and_leave_nothing_behind(change, message, models, ethanol):
    atoms, good = frame(ethanol), frame(ethanol)
    atoms.calc = good.calc = models("deterministic").calculator()
    expected = good.get_forces()
    change(atoms)
    for _ in range(2):
        with pytest.raises(DataError, match=message) as caught:
            atoms.get_potential_energy()
        assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(good.get_forces(), expected)


def test_predictions_that_are_not_finite_are_refused(ethanol):
    method = fitted(ethanol, "deterministic")
    with torch.no_grad():
        next(method.parameters()).fill_(torch.inf)
    atoms = frame(ethanol)
    atoms.calc = UQCalculator(TrainedModel(method, None, "cpu"))
    with pytest.raises(UqbenchError, match="non-finite"):
        atoms.get_forces()


def largest(forces):
    return np.linalg.norm(forces, axis=1).max()


def test_cells_are_optimised_with_one_call_per_step(oxide):
    atoms, structures = oxide
    atoms = atoms.copy()
    model = TrainedModel(fitted(structures, "deterministic"), None, "cpu")
    calls = []
    model.method.potential.register_forward_pre_hook(lambda *_: calls.append(1))
    atoms.calc = model.calculator()
    energy, volume = atoms.get_potential_energy(), atoms.get_volume()
    # Steps so short that they go downhill, however rough an untrained potential is.
    optimiser = FIRE(FrechetCellFilter(atoms), logfile=None, dt=0.02, maxstep=0.02)
    optimiser.run(fmax=0, steps=5)
    assert atoms.get_potential_energy() < energy and abs(atoms.get_volume() / volume - 1) > 1e-9
    assert optimiser.nsteps == 5 and len(calls) == 6


@pytest.mark.parametrize("shared", [True, False])
def test_bands_are_relaxed(shared, models, ethanol):
    model = models("ensemble")
    ends = frame(ethanol), frame(ethanol)
    ends[1].positions[8] += 0.6
    images = [ends[0], *(ends[0].copy() for _ in range(3)), ends[1]]
    band = NEB(images, allow_shared_calculator=shared, method="improvedtangent")
    band.interpolate()
    one = model.calculator()
    for image in images:
        image.calc = one if shared else model.calculator()
    before = sum(image.get_potential_energy() for image in images[1:-1])
    # Steps so short that they follow the forces downhill, however rough an untrained potential is.
    FIRE(band, logfile=None, dt=0.01, maxstep=0.01).run(fmax=0.0, steps=15)
    assert sum(image.get_potential_energy() for image in images[1:-1]) < before
    expected = model.predict([Atoms(image.numbers, image.positions) for image in images])
    found = [image.get_potential_energy() for image in images]
    np.testing.assert_allclose(found, expected.energy, rtol=1e-12)


def test_molecules_of_other_sizes_take_turns(models):
    calculator, model = models("gmm").calculator(), models("gmm")
    systems = [molecule(name) for name in ("H2O", "CH3CH2OH", "CH4", "H2O")]
    expected = model.predict(systems)
    for s, atoms in enumerate(systems):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected.energy[s], rel=1e-12)
        score = expected.score[expected.ptr[s] : expected.ptr[s + 1]]
        np.testing.assert_allclose(calculator.get_property("score", atoms), score, rtol=1e-9)


@pytest.mark.slow
def test_optimisers_find_the_minimum(trained, ethanol):
    atoms = frame(ethanol)
    atoms.calc = trained.calculator()
    energy = atoms.get_potential_energy()
    # BFGS needs about two steps for each of the 27 coordinates, whatever the weights; ten times as many are a failure.
    assert BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)
    assert largest(atoms.get_forces()) <= 0.01 and atoms.get_potential_energy() < energy
    # A bond of 28 eV/Å² that is 0.1 Å wrong stands for a force that is wrong by 2.8 eV/Å, 25 times the model's error.
    assert atoms.get_distance(0, 1) == pytest.approx(1.52, abs=0.1), "C-C of ethanol"


def energies(calculator, start, momenta, step, duration=50.0):
    """Total and kinetic energy (eV) at every femtosecond of velocity Verlet; step and duration in fs."""
    atoms = start.copy()
    atoms.set_momenta(momenta)
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
    steps = enumerate(dynamics.irun(round(duration / step)))
    found = [(atoms.get_total_energy(), atoms.get_kinetic_energy()) for k, _ in steps if k % round(1 / step) == 0]
    return np.array(found).T


@pytest.mark.slow
def test_the_total_energy_does_not_drift(trained, ethanol):
    """Forces that are the gradient of the energy leave velocity Verlet an error that falls as the square of its step.

    How large it is depends on how stiff the trained potential is, its order does not. At 300 K.
    """
    start = frame(ethanol)
    start.calc = trained.calculator()
    BFGS(start, logfile=None).run(fmax=0.05, steps=100)
    # From the minimum, half of the kinetic energy becomes potential energy.
    spread = np.sqrt(600 * units.kB * start.get_masses()[:, None])
    momenta = spread * np.random.default_rng(0).normal(size=(len(start), 3))
    coarse, _ = energies(trained.calculator(), start, momenta, 0.125)
    total, kinetic = energies(trained.calculator(), start, momenta, 0.125 / 4)
    # A quarter of the step: 16 times less, and no less than before where the forces themselves do work on a closed
    # path. In between, because the network's norms bend sharply where a vector feature vanishes, and a step across
    # such a place is of lower order.
    assert np.std(total) < np.std(coarse) / 4
    # The error of Verlet's energy is (ω dt)²/4 of the kinetic one: 1e-4 for the stretching of O-H, 0.7 rad/fs.
    assert np.std(total) < 1e-2 * np.std(kinetic), "energy goes back and forth, its sum stays"


@pytest.mark.slow
def test_langevin_dynamics_reach_the_temperature(trained, ethanol):
    atoms = frame(ethanol)
    atoms.calc = trained.calculator()
    rng, friction = np.random.default_rng(0), 0.2  # 1/fs
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=friction / units.fs, fixcm=False, rng=rng)
    temperatures = [atoms.get_temperature() for _ in dynamics.irun(1800)][300:]
    # The kinetic energy of 27 degrees of freedom, of which friction leaves no memory after 1/friction.
    independent = 0.5 * len(temperatures) * friction / 2
    error = 300 * np.sqrt(2 / 27 / independent)
    assert 4 * error < 50
    assert np.mean(temperatures) == pytest.approx(300, abs=4 * error)
    assert np.isfinite(atoms.calc.get_property("forces_std", atoms)).all()
