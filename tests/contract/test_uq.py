"""What every uncertainty method must hold, with every backbone."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import fit, fitted_method, graphs_of, options, short_training, small_config, small_method
from scipy.spatial.transform import Rotation
from scipy.stats import mannwhitneyu, spearmanr

from uqbench.data.sources.quickstart import Quickstart
from uqbench.errors import ConfigError
from uqbench.families import FAMILIES
from uqbench.metrics.ranking import roc_auc, spearman
from uqbench.runs.checkpoints import load_best
from uqbench.runs.run_dir import save_checkpoint
from uqbench.training.loop import train
from uqbench.uq.base import UQMethod
from uqbench.uq.deterministic import Deterministic
from uqbench.uq.io import PLAIN, is_layer, require_family

pytestmark = pytest.mark.numerics

NEW = 12  # frames that the methods are not fitted on: a distance to the training data is zero there, and noise
PER_ATOM = ("forces", "force_variance", "score")
PER_STRUCTURE = ("energy", "energy_variance", "energy_score")

pairs = [(backbone, uq) for backbone in options("backbone") for uq in options("uq")]


@pytest.fixture(scope="module")
def fitted(ethanol):
    """Untrained but fitted methods by name, made once."""
    made: dict[tuple[str, str], UQMethod] = {}

    def make(backbone: str, uq: str) -> UQMethod:
        if (backbone, uq) not in made:
            made[backbone, uq] = fitted_method(ethanol[NEW:], backbone, uq)
        return made[backbone, uq]

    return make


@pytest.fixture(params=pairs, ids="-".join)
def names(request) -> tuple[str, str]:
    return request.param


@pytest.fixture
def both(names, fitted):
    return fitted(*names)


def predict(method, structures):
    graphs = graphs_of(structures)
    return method.predict(graphs.batch(range(len(graphs))))


def values(prediction, name):
    found = getattr(prediction, name)
    return None if found is None else found.numpy()


def assert_same(a, b, permutation=None, rtol=1e-7):
    for name in ("score", "force_variance", *PER_STRUCTURE):
        first, second = values(a, name), values(b, name)
        assert (first is None) == (second is None)
        if first is not None:
            if permutation is not None and name in PER_ATOM:
                first = first[permutation]
            np.testing.assert_allclose(second, first, rtol=rtol, atol=1e-10 * np.abs(first).max(), err_msg=name)


def test_the_family_is_declared_and_fits_the_number_of_networks(both):
    assert "family" in vars(type(both)), "a class says it itself"
    assert require_family(type(both)) in FAMILIES
    assert both.n_models == 1 or both.family == "ensemble"
    assert both.informed or both.family == "baseline"


def test_a_class_that_declares_no_family_is_refused(ethanol, monkeypatch):
    for odd in ("club", None):
        monkeypatch.setattr(Deterministic, "family", odd)
        with pytest.raises(ConfigError, match=r"uq: Deterministic.family is .*; a method declares one of baseline, "):
            small_method(ethanol, "schnet", "deterministic")
    monkeypatch.delattr(Deterministic, "family")
    with pytest.raises(ConfigError, match="Deterministic.family is None"):
        small_method(ethanol, "schnet", "deterministic")


def test_shapes_types_and_signs(both, ethanol):
    frames = ethanol[:NEW]
    prediction = predict(both, frames)
    n_atoms, n_frames = len(frames.numbers), len(frames)
    assert prediction.forces.shape == (n_atoms, 3) and prediction.energy.shape == (n_frames,)
    assert prediction.energy.dtype == torch.float64
    for name, size in (("score", n_atoms), ("energy_score", n_frames)):
        assert values(prediction, name).shape == (size,) and np.isfinite(values(prediction, name)).all()
    for name, size in (("force_variance", n_atoms), ("energy_variance", n_frames)):
        if values(prediction, name) is not None:
            assert values(prediction, name).shape == (size,) and (values(prediction, name) > 0).all()


def test_invariance_under_rotation_reflection_and_translation(both, ethanol):
    frames = ethanol[:4]
    matrix = -Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    moved = dataclasses.replace(frames, positions=frames.positions @ matrix.T + np.array([5.0, -3.0, 1.0]))
    a, b = predict(both, frames), predict(both, moved)
    assert_same(a, b)
    np.testing.assert_allclose(b.forces.numpy(), a.forces.numpy() @ matrix.T, atol=1e-8)


def test_permutation_of_atoms_permutes_the_prediction(both, ethanol):
    frame = ethanol[:1]
    order = np.random.default_rng(0).permutation(len(frame.numbers))
    fields = {name: getattr(frame, name)[order] for name in ("numbers", "positions", "forces")}
    assert_same(predict(both, frame), predict(both, dataclasses.replace(frame, **fields)), permutation=order)


def test_other_structures_in_the_batch_change_nothing(both, ethanol):
    together, alone = predict(both, ethanol[:5]), predict(both, ethanol[3:4])
    atoms = slice(ethanol.ptr[3], ethanol.ptr[4])
    for name in PER_ATOM + PER_STRUCTURE:
        if values(alone, name) is not None:
            part = values(together, name)[atoms if name in PER_ATOM else slice(3, 4)]
            np.testing.assert_allclose(part, values(alone, name), rtol=1e-8, atol=1e-12, err_msg=name)


def test_the_score_is_differentiable(both, names, ethanol):
    """Attacks climb the score: its gradient agrees with finite differences."""
    graphs = graphs_of(ethanol[:2])
    batch = graphs.batch([0, 1])

    def total(positions):
        return both.predict(batch.with_positions(positions), create_graph=True).score.sum()

    positions = batch.positions.clone().requires_grad_(True)
    score = total(positions)
    assert score.requires_grad == both.informed
    if not both.informed:
        return
    (gradient,) = torch.autograd.grad(score, positions)
    assert gradient.abs().max() > 0
    step = 1e-4
    for atom, axis in ((0, 0), (7, 1), (12, 2)):
        shift = torch.zeros_like(positions)
        shift[atom, axis] = step
        with torch.no_grad():  # five points, exact to the fourth order: the second would depend on the weights
            near, far = (float(total(positions + k * shift) - total(positions - k * shift)) for k in (1, 2))
        slope = (8 * near - far) / (12 * step)
        assert float(gradient[atom, axis]) == pytest.approx(slope, rel=1e-4, abs=1e-6 * float(gradient.abs().max()))


def test_saving_and_loading_gives_the_same_bits(both, names, ethanol, tmp_path):
    save_checkpoint(tmp_path / "best.pt", {"epoch": 1, "method": both.state_dict()})
    fresh = small_method(ethanol[NEW:], *names, seed=7).eval()
    load_best(tmp_path, fresh)
    a, b = predict(both, ethanol[:3]), predict(fresh, ethanol[:3])
    for name in PER_ATOM + PER_STRUCTURE:
        if values(a, name) is not None:
            np.testing.assert_array_equal(values(a, name), values(b, name), err_msg=name)


def scaled(structures, factor):
    return dataclasses.replace(structures, energies=structures.energies * factor, forces=structures.forces * factor)


def test_labels_times_c_give_std_times_c(both, names, ethanol):
    """A wrong constant in a variance would pass every ranking metric; it does not pass this."""
    factor = 7.0
    method = fitted_method(scaled(ethanol[NEW:], factor), *names)
    a, b = predict(both, ethanol[:NEW]), predict(method, ethanol[:NEW])
    for name in ("force_variance", "energy_variance"):
        if values(a, name) is not None:
            np.testing.assert_allclose(values(b, name), factor**2 * values(a, name), rtol=1e-5, err_msg=name)
    if both.informed:
        assert spearmanr(values(a, "score"), values(b, "score")).statistic == pytest.approx(1.0, abs=1e-6)
        errors = [
            ((values(prediction, "forces") - forces) ** 2).sum(1)
            for prediction, forces in ((a, ethanol[:NEW].forces), (b, factor * ethanol[:NEW].forces))
        ]
        for metric, options_ in ((spearman, ()), (roc_auc, (0.8,))):
            before, after = (metric(values(p, "score"), e, *options_) for p, e in zip((a, b), errors, strict=True))
            assert after == pytest.approx(before, abs=1e-6)


TRAINED = [uq for uq in options("uq") if not is_layer(small_config("painn_small", uq).uq)]


@pytest.mark.parametrize("uq", TRAINED)
def test_it_trains(uq, ethanol, tmp_path):
    """A few steps of the real loop lower the loss that the method itself defines."""
    settings = short_training(epochs=6, lr=3e-3, precision="float64", ema_decay=None)
    train(small_method(ethanol, "painn_small", uq), ethanol[:30], ethanol[30:40], settings, 0, tmp_path)
    history = (tmp_path / "history.csv").read_text().splitlines()
    columns = history[0].split(",")
    losses = [float(line.split(",")[columns.index("train_loss")]) for line in history[1:]]
    # Without learning the same frames keep their loss, to rounding; it fell by 8 % or more with each of eight seeds.
    assert losses[-1] < 0.99 * losses[0]


def stretched(structures, factor):
    """All bonds longer by this factor, about the centre of each frame."""
    centres = np.add.reduceat(structures.positions, structures.ptr[:-1]) / structures.n_atoms[:, None]
    centres = np.repeat(centres, structures.n_atoms, axis=0)
    return dataclasses.replace(structures, positions=centres + factor * (structures.positions - centres))


# Methods that do not reliably notice bonds stretched by 30 %, with the probability that they score such a frame above
# one of the test split (0.5: no difference, 1: always above). The heads of MVE and evidential regression learn from
# in-domain errors only, and what they say elsewhere is a matter of chance: seeds and recipes give all of these numbers.
UNRELIABLE_OUT_OF_DOMAIN = {
    "deterministic": "0.5: its score is constant",
    "constant": "0.5: its score is constant",
    "mve": "0.00, 0.00, 0.01 for three seeds of a recipe as below, 1.00 with more features and epochs",
    "evidential": "0.00 and 0.98 for two seeds of a recipe as below, 0.22 with more features and epochs",
}


@pytest.mark.slow
@pytest.mark.parametrize("uq", options("uq"))
def test_out_of_domain_scores_above_in_domain(uq, tmp_path, record_property):
    """After a short training on the embedded data, frames with stretched bonds are told from test frames."""
    quickstart = Quickstart(n_train=700, n_validation=100, n_test=200, block=100, split_seed=0)
    structures = quickstart.load()
    train_set, validation, test = (structures[frames] for frames in quickstart.split(structures).values())
    settings, size = short_training(epochs=8, lr=1e-2), {"backbone.features": 16}
    trained = small_method(train_set, "painn_small", uq if uq in TRAINED else PLAIN, **size)
    train(trained, train_set[::6], validation[::2], settings, 0, tmp_path)
    load_best(tmp_path, trained)
    method = trained
    if uq not in TRAINED:
        method = small_method(train_set, "painn_small", uq, **size)
        method.potential.load_state_dict(trained.potential.state_dict())
    fit(method.to(torch.float64), train_set[::6], batch_size=64)
    inside, outside = predict(method, test[::2]), predict(method, stretched(test[::2], 1.3))
    found = {}
    for name in ("energy_score", "score"):
        a, b = values(inside, name), values(outside, name)
        found[name] = mannwhitneyu(b, a).statistic / (len(a) * len(b))
        record_property(f"out_of_domain_{name}", float(found[name]))
    summary = f"stretched above test: frames {found['energy_score']:.3f}, atoms {found['score']:.3f}"
    print(uq, summary)
    if uq in UNRELIABLE_OUT_OF_DOMAIN:
        pytest.xfail(f"{summary}; known: {UNRELIABLE_OUT_OF_DOMAIN[uq]}")
    # Of 100 frames each, a score that tells nothing gives 0.5 with a standard error of 0.04; these gave 1.00 for every
    # seed that was tried.
    assert found["energy_score"] >= 0.9, summary
