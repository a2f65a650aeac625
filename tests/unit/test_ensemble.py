"""The ensemble's variance, members and bootstrap."""

import numpy as np
import pytest
import torch
from helpers import graphs_of, small_method

from uqbench.training.loop import POINT_LOSSES
from uqbench.uq.base import force_trace_variance

pytestmark = pytest.mark.numerics


def ensemble(structures, **changes):
    return small_method(structures, "painn_small", "ensemble", **{"uq.members": 3, **changes})


@pytest.mark.parametrize("ddof", [0, 1])
def test_variances_are_those_of_the_members(ethanol, ddof):
    method = ensemble(ethanol, **{"uq.ddof": ddof})
    batch = graphs_of(ethanol[:3]).batch([0, 1, 2])
    output, prediction = method.potential(batch), method.predict(batch)
    forces, energy = output.forces.numpy(), output.energy.numpy()
    expected = np.mean([[np.var(forces[:, i, c], ddof=ddof) for c in range(3)] for i in range(forces.shape[1])], axis=1)
    np.testing.assert_allclose(prediction.force_variance.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(prediction.energy_variance.numpy(), np.var(energy, axis=0, ddof=ddof), rtol=1e-7)
    np.testing.assert_allclose(prediction.forces.numpy(), forces.mean(0), rtol=1e-12)


def test_the_norm_of_the_variances_would_not_be_rotation_invariant():
    """Why the trace: under rotation the norm of the three variances changes, their sum does not."""
    forces = torch.tensor([[[1.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0]]], dtype=torch.float64)
    turned = (
        forces @ torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 2**0.5]], dtype=torch.float64) / 2**0.5
    )
    assert force_trace_variance(turned, 1) == pytest.approx(force_trace_variance(forces, 1))
    assert float(torch.var(turned, 0).norm()) != pytest.approx(float(torch.var(forces, 0).norm()), rel=0.1)


def test_identical_members_agree_completely(ethanol):
    method = ensemble(ethanol)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    prediction = method.predict(graphs_of(ethanol[:3]).batch([0, 1, 2]))
    scale = prediction.forces.square().mean()
    assert float(prediction.force_variance.max()) < 1e-20 * float(scale)
    assert float(prediction.energy_variance.max()) < 1e-15


def test_members_differ_by_their_random_stream_alone(ethanol):
    parameters = [p for p in ensemble(ethanol).parameters() if p.dim() > 2]
    assert all(not torch.equal(p[0], p[1]) for p in parameters)
    again = [p for p in ensemble(ethanol).parameters() if p.dim() > 2]
    assert all(torch.equal(p, q) for p, q in zip(parameters, again, strict=True))
    larger = [p for p in ensemble(ethanol, **{"uq.members": 4}).parameters() if p.dim() > 2]
    assert all(torch.equal(p, q[:3]) for p, q in zip(parameters, larger, strict=True))


def test_bootstrap_gives_each_member_its_own_frames(ethanol):
    method = ensemble(ethanol, **{"uq.bootstrap": True})
    method.begin(len(ethanol), seed=0)
    counts = method.weights.numpy()
    assert (counts.sum(1) == len(ethanol)).all() and (counts == counts.round()).all()
    assert (counts[0] != counts[1]).any() and (counts == 0).any()
    batch = graphs_of(ethanol).batch([5, 17])
    method.train()
    weighted = method.losses(batch, POINT_LOSSES["mae"])
    method.eval()
    plain = method.losses(batch, POINT_LOSSES["mae"])
    torch.testing.assert_close(weighted.energy, plain.energy * method.weights[:, [5, 17]])
    torch.testing.assert_close(weighted.forces, plain.forces * method.weights[:, [5, 17]].repeat_interleave(9, 1))
