"""What every acquisition and every selection must hold."""

import numpy as np
import pytest
from helpers import built, fitted_method, options

from uqbench.active.latents import structure_latents
from uqbench.errors import DataError

pytestmark = pytest.mark.numerics

# Cheaper versions of the settings that only make an acquisition longer.
SHORT = {"adversarial": {"steps": 4}, "md": {"protocol": {"timestep_fs": 0.02, "duration_ps": 4e-4, "record_every": 4}}}


@pytest.fixture(scope="module")
def method(ethanol):
    return fitted_method(ethanol[:30], "painn_small", "mve")


@pytest.fixture(params=options("acquisition"))
def acquisition(request):
    return built("acquisition", request.param, **SHORT.get(request.param, {}))


def test_proposals(acquisition, method, ethanol):
    training = ethanol[:30]
    proposals = acquisition.propose(method, training, 4, held_out=[ethanol[30:]], seed=0)
    structures = proposals.structures
    assert len(proposals) == len(structures) == 4
    assert len(set(proposals.frames)) == 4 and set(proposals.frames) <= set(range(30))
    start = training[proposals.frames]
    for name in ("numbers", "ptr", "cells", "pbc", "ids"):
        np.testing.assert_array_equal(getattr(structures, name), getattr(start, name))
    assert np.isfinite(structures.positions).all() and (structures.positions != start.positions).any()
    assert structures.energies is None and structures.forces is None, "nobody has labelled them"
    assert proposals.score.shape == proposals.energy.shape == proposals.stopped.shape == (4,)
    assert np.isfinite(proposals.score).all() and np.isfinite(proposals.energy).all()
    assert {"proposal", "step"} <= set(proposals.history) and set(proposals.history.proposal) == {0, 1, 2, 3}


def test_the_seed_decides(acquisition, method, ethanol):
    first, again, other = (
        acquisition.propose(method, ethanol[:30], 2, held_out=[], seed=seed).structures.positions for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_other_structures_change_nothing(acquisition, method, ethanol):
    frames = np.array([3, 17, 5, 29, 11])
    together = acquisition.from_frames(method, ethanol[:30], frames, seed=0)
    for k, frame in enumerate(frames):
        alone = acquisition.from_frames(method, ethanol[:30], np.array([frame]), seed=0)
        part = together.structures[k]
        np.testing.assert_allclose(part.positions, alone.structures.positions, rtol=0, atol=1e-10)
        assert together.score[k] == pytest.approx(alone.score[0], rel=1e-10)


def test_a_frame_that_comes_twice_is_not_proposed_twice(acquisition, method, ethanol):
    twice = acquisition.propose(method, ethanol[:1], 2, held_out=[], seed=0).structures
    assert np.abs(twice[0].positions - twice[1].positions).max() > 1e-3


def test_held_out_frames_cannot_be_seeds(acquisition, method, ethanol):
    with pytest.raises(DataError, match="frame .* held out"):
        acquisition.propose(method, ethanol[:30], 2, held_out=[ethanol[40:], ethanol[29:31]], seed=0)


def test_the_method_is_left_as_it_was(acquisition, method, ethanol):
    before = {name: value.clone() for name, value in method.state_dict().items()}
    acquisition.propose(method.train(), ethanol[:30], 2, held_out=[], seed=0)
    for name, value in method.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in method.parameters())


@pytest.mark.parametrize("name", options("selection"))
def test_selection(name, acquisition, method, ethanol):
    training = ethanol[:30]
    proposals = acquisition.propose(method, training, 6, held_out=[], seed=0)
    chosen = built("selection", name).select(proposals, training, 3, lambda s: structure_latents(method, s, 16))
    assert sum(chosen.counts.values()) == 6 == len(chosen.table)
    assert chosen.counts["chosen"] == len(set(chosen.indices)) <= 3
    assert (chosen.table.status[chosen.indices] == "chosen").all()
