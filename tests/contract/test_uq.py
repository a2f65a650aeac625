"""What every uncertainty method in conf/uq must hold, on one small backbone."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import fit, fitted_method, graphs_of, options, short_training, small_config, small_method
from scipy.stats import mannwhitneyu

from uqbench import config
from uqbench.data.sources.quickstart import Quickstart
from uqbench.errors import ConfigError
from uqbench.runs.checkpoints import load_best
from uqbench.testing import check_layer, check_method
from uqbench.training.loop import train
from uqbench.uq.deterministic import Deterministic
from uqbench.uq.io import PLAIN, is_layer, locate_method

pytestmark = pytest.mark.numerics

LAYERS = [uq for uq in options("uq") if is_layer(small_config("painn_small", uq).uq)]
TRAINED = [uq for uq in options("uq") if uq not in LAYERS]
INFORMED = [uq for uq in options("uq") if locate_method(small_config("painn_small", uq).uq).informed]


@pytest.mark.parametrize("uq", TRAINED)
def test_predictions_symmetries_units_losses_and_checkpoints_of_a_method(uq):
    node = small_config("painn_small", uq).uq
    check_method(lambda build_potential: config.build(node, slot="uq", build_potential=build_potential))


@pytest.mark.parametrize("uq", LAYERS)
def test_predictions_symmetries_fits_and_the_model_below_of_a_layer(uq):
    node = small_config("painn_small", uq).uq
    check_layer(lambda potential: config.build(node, slot="uq", potential=potential))


def test_a_class_that_declares_no_family_is_refused(ethanol, monkeypatch):
    for odd in ("club", None):
        monkeypatch.setattr(Deterministic, "family", odd)
        with pytest.raises(ConfigError, match=r"uq: Deterministic.family is .*; a method declares one of baseline, "):
            small_method(ethanol, "schnet", "deterministic")
    monkeypatch.delattr(Deterministic, "family")
    with pytest.raises(ConfigError, match="Deterministic.family is None"):
        small_method(ethanol, "schnet", "deterministic")


@pytest.mark.parametrize("uq", TRAINED)
def test_training_lowers_the_loss_of_a_method(uq, ethanol, tmp_path):
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


def share_above(method, inside, outside):
    """Probability that the method is less sure of a frame of the second set than of one of the first."""
    graphs = [graphs_of(structures) for structures in (outside, inside)]
    scores = [method.predict(graph.batch(range(len(graph)))).energy_score.numpy() for graph in graphs]
    return mannwhitneyu(*scores).statistic / (len(inside) * len(outside))


@pytest.mark.parametrize("uq", sorted(set(options("uq")) - set(INFORMED)))
def test_a_constant_score_tells_nothing_of_stretched_bonds(uq, ethanol):
    method = fitted_method(ethanol[12:], "painn_small", uq)
    assert share_above(method, ethanol[:12], stretched(ethanol[:12], 1.3)) == 0.5


# Heads of MVE and evidential regression learn from errors in the domain alone. What they say of stretched bonds is a
# matter of chance, so that nothing can be asserted: with the recipe below the share is 0.00, 0.00 and 0.01 for three
# seeds of MVE, and 1.00 with more features and epochs; 0.00 and 0.98 for two seeds of evidential regression, and 0.22
# with more.
CHANCE = {"mve", "evidential"}


@pytest.fixture(scope="module")
def quickstart():
    """Training, validation and test frames of whole trajectories."""
    dataset = Quickstart(n_train=700, n_validation=100, n_test=200, block=100, split_seed=0)
    structures = dataset.load()
    train_set, validation, test = (structures[frames] for frames in dataset.split(structures).values())
    return train_set[::6], validation[::2], test[::2]


@pytest.mark.slow
@pytest.mark.parametrize("uq", sorted(set(INFORMED) - CHANCE))
def test_stretched_bonds_score_above_those_of_test_frames(uq, quickstart, tmp_path):
    """After a short training on the embedded data."""
    train_set, validation, test = quickstart
    settings, size = short_training(epochs=8, lr=1e-2), {"backbone.features": 16}
    method = trained = small_method(train_set, "painn_small", uq if uq in TRAINED else PLAIN, **size)
    train(trained, train_set, validation, settings, 0, tmp_path)
    load_best(tmp_path, trained)
    if uq in LAYERS:
        method = small_method(train_set, "painn_small", uq, **size)
        method.potential.load_state_dict(trained.potential.state_dict())
    fit(method.to(torch.float64), train_set, batch_size=64)
    # Of 100 frames each, a score that tells nothing gives 0.5 with a standard error of 0.04; these gave 1.00 for every
    # seed that was tried.
    assert share_above(method, test, stretched(test, 1.3)) >= 0.9
