"""Uncertain frames from molecular dynamics: which frame is proposed, and how a trajectory ends."""

import numpy as np
import pytest
from helpers import built, fitted_method, simulating

from uqbench import config
from uqbench.active.acquisition.objective import score_and_energy
from uqbench.errors import ConfigError

pytestmark = pytest.mark.numerics

# The forces of an untrained network heat a molecule within a femtosecond.
SHORT = {"timestep_fs": 0.02, "duration_ps": 8e-4, "record_every": 4, "kinetic_alarm": 1e-200}


def acquisition_of(**changes):
    return config.build(simulating("acquisition", "md", **changes), slot="acquisition")


@pytest.fixture(scope="module")
def method(ethanol):
    return fitted_method(ethanol[:30], "painn_small", "mve")


@pytest.mark.parametrize("uncertainty", ["mean", "max", "energy"])
def test_the_least_certain_record_is_proposed(method, ethanol, uncertainty):
    training = ethanol[:30]
    acquisition = acquisition_of(**SHORT, uncertainty=uncertainty)
    proposals = acquisition.propose(method, training, 5, held_out=[], seed=0)
    history = proposals.history
    assert len(history) == 5 * 10 and (history.groupby("proposal").step.min() == 4).all(), "never the start itself"
    np.testing.assert_array_equal(proposals.score, history.groupby("proposal").score.max())
    score, energy = score_and_energy(method, proposals.structures, uncertainty, 16)
    np.testing.assert_allclose(proposals.score, score, rtol=1e-9)
    np.testing.assert_allclose(proposals.energy, energy, rtol=0, atol=1e-9)
    best = history.loc[history.groupby("proposal").score.idxmax()]
    moves = proposals.structures.positions - training[proposals.frames].positions
    rms = np.sqrt((moves.reshape(5, -1, 3) ** 2).sum(axis=-1).mean(axis=-1))
    np.testing.assert_allclose(best.displacement, rms, rtol=1e-6)


def test_hotter_simulations_go_farther(method, ethanol):
    """As the root of the temperature, in a time t so short that forces, whose part goes as t², do not matter."""
    moves, shortest = [], SHORT | {"timestep_fs": 2e-5, "duration_ps": 8e-7}
    for temperature in (10.0, 1000.0):
        acquisition = acquisition_of(**shortest, temperature=temperature)
        moves.append(acquisition.propose(method, ethanol[:30], 5, held_out=[], seed=0).history.displacement.mean())
    assert moves[1] / moves[0] == pytest.approx(10, rel=0.2)


def test_a_trajectory_that_explodes_at_once_has_no_score(method, ethanol):
    acquisition = acquisition_of(**SHORT, min_distance=2.0)
    proposals = acquisition.propose(method, ethanol[:30], 2, held_out=[], seed=0)
    assert np.isnan(proposals.score).all() and proposals.stopped.tolist() == ["min_distance at step 1"] * 2
    chosen = built("selection", "top").select(proposals, ethanol[:30], 2, latents=None)
    assert chosen.table.status.tolist() == ["failed"] * 2
    assert chosen.table.detail.tolist() == proposals.stopped.tolist()


def test_what_was_recorded_before_an_explosion_counts(method, ethanol):
    # At 10 K, forces as large as those of the data do it: in 0.8 fs, 2 eV/Å give six hydrogens 74 meV, where 12 are the
    # mean of the molecule.
    lost = acquisition_of(**SHORT | {"kinetic_alarm": 1e-6, "temperature": 10.0})
    proposals = lost.propose(method, ethanol[:30], 30, held_out=[], seed=1)
    ended = proposals.stopped != ""
    assert ended.any()
    for k in np.flatnonzero(ended):
        last = int(proposals.stopped[k].rpartition(" ")[2])
        assert (proposals.history[proposals.history.proposal == k].step < last).all()
        assert np.isfinite(proposals.score[k]) == (last > 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"duration_ps": 1e-3}, "protocol.duration_ps: .* are 2 steps"),
        ({"uncertainty": "median"}, "uncertainty: expected 'mean'"),
        ({"bond_stretch": 1.0}, "protocol.limits.bond_stretch: expected a number > bond_tol"),
        ({"kinetic_alarm": 0.5}, "protocol.limits.kinetic_alarm: "),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        acquisition_of(**changes)
