"""The attack against finite differences, against a plain loop, and against the mistakes of earlier code."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import built, fitted_method, graphs_of, options
from scipy.special import logsumexp
from torch import nn

from uqbench.active.acquisition.displacement import random_displacements
from uqbench.active.acquisition.objective import Boltzmann, Objective, score_and_energy
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError

pytestmark = pytest.mark.numerics

KT = 0.7 * units.kcal / units.mol
METHODS = [uq for uq in options("uq") if uq not in ("constant", "deterministic")]


def attack(**changes):
    return built("acquisition", "adversarial", **{"steps": 6, **changes})


@pytest.fixture(scope="module")
def training(ethanol):
    return ethanol[:20]


@pytest.fixture(scope="module")
def ensemble(training):
    return fitted_method(training, "painn_small", "ensemble", **{"uq.members": 3})


def objective_of(method, training, uncertainty="mean", kT=0.7):
    return Objective.fit(
        method, training, kT=kT, uncertainty=uncertainty, score_scale="declared", batch_size=len(training)
    )


def displaced(training, size=0.1):
    rng = np.random.default_rng(0)
    return dataclasses.replace(
        training, positions=training.positions + size * rng.normal(size=(len(training.numbers), 3))
    )


def check_gradient(method, training, uncertainty):
    objective = objective_of(method, training, uncertainty)
    structures = displaced(training[:2])
    batch = graphs_of(structures).batch([0, 1])
    log_partition = torch.as_tensor(objective.boltzmann.log_partition_of(structures))

    def total(positions):
        return objective.evaluate(method, batch.with_positions(positions), log_partition).objective.sum()

    positions = batch.positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(positions), positions)
    assert gradient.any(), "there is nothing to compare"
    step = 2e-4
    for atom, axis in ((0, 0), (7, 1), (12, 2)):
        shift = torch.zeros_like(positions)
        shift[atom, axis] = step
        with torch.no_grad():  # five points, exact to the fourth order
            near, far = (float(total(batch.positions + k * shift) - total(batch.positions - k * shift)) for k in (1, 2))
        slope = (8 * near - far) / (12 * step)
        assert float(gradient[atom, axis]) == pytest.approx(slope, rel=1e-6, abs=1e-7 * float(gradient.abs().max()))


@pytest.mark.parametrize("uq", METHODS)
@pytest.mark.parametrize("backbone", options("backbone"))
def test_gradient_against_finite_differences(backbone, uq, training):
    check_gradient(fitted_method(training, backbone, uq), training, "mean")


@pytest.mark.parametrize("uq", METHODS)
@pytest.mark.parametrize("uncertainty", ["max", "energy"])
def test_gradient_of_other_reductions(uncertainty, uq, training):
    check_gradient(fitted_method(training, "painn_small", uq), training, uncertainty)


def test_objective_is_score_times_probability(ensemble, training):
    """Log of U p, with p normalised over the training frames: computed from predictions by NumPy alone."""
    found = attack().propose(ensemble, training, 3, held_out=[], seed=0).history
    log_partition = logsumexp(-training.energies / (9 * KT))
    expected = -found.energy / (9 * KT) - log_partition
    np.testing.assert_allclose(found.log_probability, expected, rtol=1e-12)
    # Terms as large as this cancel.
    rounding = 1e-15 * np.abs(found.energy / (9 * KT)).max()
    np.testing.assert_allclose(found.objective, np.log(found.score) + expected, rtol=1e-12, atol=rounding)


def test_scores_of_a_structure_by_numpy(ensemble, training):
    structures = displaced(training[:4])
    graphs = graphs_of(structures)
    prediction = ensemble.predict(graphs.batch(range(4)))
    per_atom = prediction.score.numpy().reshape(4, 9)
    wanted = {"mean": per_atom.mean(1), "max": per_atom.max(1), "energy": prediction.energy_score.numpy()}
    for uncertainty, expected in wanted.items():
        score, energy = score_and_energy(ensemble, structures, uncertainty, 3)
        np.testing.assert_allclose(score, expected, rtol=1e-9)
        np.testing.assert_allclose(energy, prediction.energy.numpy(), rtol=1e-12)


def test_probabilities_of_the_training_frames_add_up_to_one(training):
    mixed = Structures.concatenate([training, labelled(molecule("NH3"), -3.0), labelled(molecule("NH3"), -3.1)])
    boltzmann = Boltzmann.fit(mixed, 0.7)
    energy, n_atoms = torch.as_tensor(mixed.energies), torch.as_tensor(mixed.n_atoms)
    log_p = boltzmann.log_probability(energy, n_atoms, torch.as_tensor(boltzmann.log_partition_of(mixed)))
    assert log_p[:-2].exp().sum() == pytest.approx(1.0) == log_p[-2:].exp().sum()
    with pytest.raises(DataError, match="composition"):
        boltzmann.log_partition_of(labelled(molecule("H2O"), 0.0))


def labelled(atoms, energy=0.0):
    rng = np.random.default_rng(0)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rng.normal(size=(len(atoms), 3)))
    return Structures.from_atoms([atoms], origin="test")


@pytest.mark.parametrize("max_displacement", [1.0, 0.04])
def test_against_a_plain_loop(max_displacement, ensemble, training):
    """One structure, Adam written out, everything computed anew from x0 + delta at every step."""
    settings = attack(steps=12, lr=0.02, max_displacement=max_displacement)
    found = settings.from_frames(ensemble, training, np.array([4]), seed=3)
    objective = objective_of(ensemble, training)
    start = training[4]
    first = attack(steps=1, lr=1e-300).from_frames(ensemble, training, np.array([4]), seed=3)
    delta = first.structures.positions - start.positions  # the initial noise
    assert 0.005 < delta.std() < 0.02
    m, v = np.zeros_like(delta), np.zeros_like(delta)
    for t in range(1, 13):
        batch = graphs_of(dataclasses.replace(start, positions=start.positions + delta)).batch([0])
        positions = batch.positions.clone().requires_grad_(True)
        value = objective.evaluate(ensemble, batch.with_positions(positions), torch.zeros(1)).objective
        gradient = torch.autograd.grad(value.sum(), positions)[0].numpy()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        delta = delta + 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        length = np.linalg.norm(delta, axis=1, keepdims=True)
        delta = np.where(length > max_displacement, delta / length * max_displacement, delta)
    np.testing.assert_allclose(found.structures.positions, start.positions + delta, atol=1e-9)
    assert found.history.displacement.iloc[-1] == pytest.approx(np.sqrt((delta**2).sum(1).mean()))
    assert found.history.drift.iloc[-1] == pytest.approx(np.linalg.norm(delta.mean(0)))
    assert (np.linalg.norm(delta, axis=1).max() > 0.039) and found.history.step.tolist() == list(range(13))


@pytest.mark.parametrize("uq", METHODS)
def test_it_climbs(uq, training):
    """Small steps raise the objective of every structure, whatever the method."""
    method = fitted_method(training, "painn_small", uq)
    history = attack(steps=10, lr=2e-3).propose(method, training, 4, held_out=[], seed=0).history
    gain = history.groupby("proposal").objective.agg(["first", "last"])
    assert (gain["last"] > gain["first"]).all()


def test_kt_and_lr_matter(ensemble, training):
    def run(**changes):
        return attack(steps=15, **changes).propose(ensemble, training, 4, held_out=[], seed=0)

    base, cold, hot, slow = run(), run(kT=0.1), run(kT=20.0), run(lr=3e-3)
    for other in (cold, hot, slow):
        assert np.abs(other.structures.positions - base.structures.positions).max() > 1e-2
    # The colder, the more an energy counts, and the less the uncertainty.
    assert cold.energy.mean() < hot.energy.mean()
    assert cold.score.mean() < hot.score.mean()
    assert slow.history.displacement.iloc[-1] < base.history.displacement.iloc[-1]


def test_batches_change_nothing(ensemble, training):
    frames = np.arange(5)
    whole, cut = (attack(batch_size=size).from_frames(ensemble, training, frames, seed=0) for size in (5, 2))
    np.testing.assert_allclose(whole.structures.positions, cut.structures.positions, rtol=0, atol=1e-10)
    # The same rows, batch after batch.
    a, b = (p.history.sort_values(["proposal", "step"]) for p in (whole, cut))
    np.testing.assert_allclose(a.to_numpy(float), b.to_numpy(float), rtol=1e-8, atol=1e-10)


def test_structures_of_different_sizes_do_not_mix():
    """The broadcasting of (n_mol, 1) with (n_atoms,) that coupled structures went unseen with equal sizes."""
    parts = [labelled(molecule(name), e) for name, e in (("NH3", -1.0), ("CH3OH", -5.0), ("H2O", -2.0), ("NH3", -0.9))]
    mixed = Structures.concatenate(parts)
    method = fitted_method(mixed, "schnet", "mve")
    together = attack().from_frames(method, mixed, np.array([0, 1, 2]), seed=0)
    for k in range(3):
        alone = attack().from_frames(method, mixed, np.array([k]), seed=0)
        np.testing.assert_allclose(together.structures[k].positions, alone.structures.positions, rtol=0, atol=1e-10)


def test_periodic_cells_are_wrapped_and_neighbours_found_anew():
    """Atoms that cross a face and pairs that enter the cutoff: the score on the way is that of a fresh prediction."""
    atoms = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    atoms.rattle(0.02, seed=0)
    crystal = labelled(atoms)
    method = fitted_method(crystal, "painn_small", "mve", **{"backbone.cutoff": 3.1})
    found = attack(steps=20, lr=0.03, kT=100.0).from_frames(method, crystal, np.array([0]), seed=0)
    pairs = [graphs_of(s, 3.1).batch([0]).first.numel() for s in (crystal, found.structures)]
    assert pairs[0] != pairs[1], "the neighbours did not change: this test sees nothing"
    score, energy = score_and_energy(method, found.structures, "mean", 1)
    last = found.history.iloc[-1]
    np.testing.assert_allclose([last.score, last.energy], [score[0], energy[0]], rtol=1e-9)
    fractions = found.structures.positions / 4.3
    assert fractions.min() >= 0 and fractions.max() < 1
    moved = found.structures.positions - crystal.positions
    assert np.abs(moved).max() > 2, "no atom crossed a face"
    moved -= 4.3 * np.rint(moved / 4.3)
    assert found.history.displacement.iloc[-1] == pytest.approx(np.sqrt((moved**2).sum(1).mean()))


class Fragile(nn.Module):
    """A method whose scores of one structure are not finite once it has moved far enough."""

    score_scale, informed = "ratio", True

    def __init__(self, method, start, limit):
        super().__init__()
        self.method, self.potential, self.start, self.limit = method, method.potential, torch.as_tensor(start), limit

    def predict(self, batch, *, create_graph=False):
        found = self.method.predict(batch, create_graph=create_graph)
        if not create_graph or len(batch) < 3:
            return found
        moved = (batch.positions[9:18] - self.start).detach().norm(dim=1).max()
        bad = (batch.system == 1) & (moved > self.limit)
        return dataclasses.replace(found, score=found.score + torch.where(bad, torch.nan, 0.0))


def test_a_structure_stops_where_its_score_is_not_finite(ensemble, training):
    frames = np.array([0, 1, 2])
    fragile = Fragile(ensemble, training[1].positions, limit=0.06)
    hit, free = (attack(steps=12).from_frames(m, training, frames, seed=0) for m in (fragile, ensemble))
    assert hit.stopped.tolist() == ["", "not finite", ""] and (free.stopped == "").all()
    path = hit.history[hit.history.proposal == 1]
    assert 1 <= path.step.max() < 12
    # It keeps its last good geometry, with the values that belong to it ...
    moved = np.linalg.norm(hit.structures[1].positions - training[1].positions, axis=1)
    # which Adam's step of about 0.01 Å for each coordinate led out of the limit.
    assert 0.03 < moved.max() <= 0.06
    score, energy = score_and_energy(ensemble, hit.structures[1], "mean", 1)
    assert (hit.score[1], hit.energy[1]) == pytest.approx((score[0], energy[0]), rel=1e-9)
    # ... and the others do not notice.
    for k in (0, 2):
        np.testing.assert_allclose(hit.structures[k].positions, free.structures[k].positions, rtol=0, atol=1e-10)


def test_a_structure_that_was_never_good_stays_where_it_was(ensemble, training):
    found = attack().from_frames(Fragile(ensemble, training[1].positions, 0.0), training, np.arange(3), seed=0)
    assert found.stopped[1] == "not finite" and np.isnan(found.score[1]) and np.isnan(found.energy[1])
    np.testing.assert_allclose(found.structures[1].positions, training[1].positions, atol=1e-12)


def test_a_structure_stops_before_its_atoms_overlap(training):
    """A method that is ever less sure the closer two atoms come is climbed up to the least distance, no further."""
    method = fitted_method(training, "painn_small", "mve")

    class Squeezing(Fragile):
        def predict(self, batch, *, create_graph=False):
            found = self.method.predict(batch, create_graph=create_graph)
            near = (batch.positions[1::9] - batch.positions[::9]).norm(dim=1)  # the bond C-C
            # Adam makes steps of the same length of the weakest forces: without any, nothing else moves.
            return dataclasses.replace(found, score=torch.exp(-50 * near)[batch.system], energy=found.energy.detach())

    lr = 0.02
    found = attack(steps=80, lr=lr, kT=1e3, min_distance=0.8).from_frames(
        Squeezing(method, 0.0, 0.0), training, np.arange(2), seed=0
    )
    assert found.stopped.tolist() == ["overlap"] * 2
    for k in range(2):
        x = found.structures[k].positions
        # The next step, of lr for each coordinate of both atoms, would have gone farther.
        assert 0.8 * 1.52 <= np.linalg.norm(x[1] - x[0]) < 0.8 * 1.52 + 2 * np.sqrt(3) * lr


class Rescaled(Fragile):
    """Scores in another unit, or with another zero."""

    def __init__(self, method, factor, zero, score_scale):
        super().__init__(method, 0.0, 0.0)
        self.factor, self.zero, self.score_scale = factor, zero, score_scale

    def predict(self, batch, *, create_graph=False):
        found = self.method.predict(batch, create_graph=create_graph)
        return dataclasses.replace(found, score=self.factor * found.score + self.zero)


@pytest.mark.parametrize("uq, factor, zero, scale", [("mve", 1e4, 0.0, "ratio"), ("gmm", 1.0, -500.0, "log")])
def test_arbitrary_units_and_zeros_do_not_matter(uq, factor, zero, scale, training):
    method = fitted_method(training, "painn_small", uq)
    assert method.score_scale == scale
    a, b = (
        attack().from_frames(m, training, np.arange(2), seed=0).structures.positions
        for m in (method, Rescaled(method, factor, zero, scale))
    )
    np.testing.assert_allclose(a, b, atol=1e-8)


def test_negative_scores_have_no_logarithm(training):
    method = Rescaled(fitted_method(training, "painn_small", "gmm"), 1.0, -500.0, "log")
    with pytest.raises(ConfigError, match="acquisition.score_scale: .* choose log"):
        attack(score_scale="ratio").from_frames(method, training, np.arange(2), seed=0)
    found = attack(score_scale="log").from_frames(method, training, np.arange(2), seed=0)
    assert (found.score < 0).all() and (found.stopped == "").all()


def test_nothing_to_attack(training):
    method = fitted_method(training, "painn_small", "deterministic")
    with pytest.raises(ConfigError, match="equally sure of every structure"):
        attack().from_frames(method, training, np.arange(2), seed=0)


def test_random_displacements_have_the_length_asked_for_and_no_direction(training):
    frames = np.arange(400) % 20
    rms = np.linspace(0.1, 0.3, 400)
    structures, delta = random_displacements(training, frames, rms, seed=0)
    np.testing.assert_allclose(structures.positions, training[frames].positions + delta)
    per_structure = delta.reshape(400, 9, 3)
    np.testing.assert_allclose(np.sqrt((per_structure**2).sum(2).mean(1)), rms)
    unit = (per_structure / rms[:, None, None]).reshape(400, 27)
    # Components of a random direction, in units in which each has variance 1/3: means and correlations vanish.
    assert np.abs(unit.mean(0)).max() < 5 * np.sqrt(1 / 3 / 400)
    np.testing.assert_allclose(np.cov(unit.T), np.eye(27) / 3, atol=5 / 3 / np.sqrt(400))


def test_random_proposals_match_an_attack(ensemble, training):
    """The baseline starts where the attack starts, and can be as long."""
    attacked = attack().propose(ensemble, training, 4, held_out=[], seed=0)
    baseline = built("acquisition", "random").propose(ensemble, training, 4, held_out=[], seed=0)
    np.testing.assert_array_equal(attacked.frames, baseline.frames)
    lengths = attacked.history.groupby("proposal").displacement.last()
    structures, delta = random_displacements(training, attacked.frames, lengths, seed=0)
    moved = attacked.structures.positions - training[attacked.frames].positions
    for a, b in zip(np.split(delta, 4), np.split(moved, 4), strict=True):
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b))
