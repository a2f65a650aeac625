"""The contract of every oracle in conf/oracle: what is added there is tested here without another line."""

import numpy as np
import pytest
from ase import Atoms
from helpers import options
from omegaconf import OmegaConf

from uqbench import config
from uqbench.cli.hydra_session import open_hydra
from uqbench.errors import UqbenchError
from uqbench.oracles.base import Failure, Label, Oracle

# What a person has to give.
GIVEN = {"calculator": "ase.calculators.lj.LennardJones"}


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build an option as a command does, without touching the user's cache."""
    monkeypatch.setenv("UQBENCH_TRUSTED", "ase.calculators")
    monkeypatch.setenv("UQBENCH_CACHE", str(tmp_path / "cache"))

    def make(option):
        with open_hydra("evaluate", None) as hydra:
            composed = hydra.config_loader.load_configuration("evaluate", [f"+oracle={option}"], None)
        node = OmegaConf.create({"data_root": None, "oracle": composed.oracle}).oracle
        for key in node:
            if OmegaConf.is_missing(node, key):
                node[key] = GIVEN[key]
        return config.build(node, slot="oracle")

    return make


@pytest.mark.parametrize("option", options("oracle"))
def test_constructing_starts_and_writes_nothing(option, build, tmp_path, started):
    oracle = build(option)
    assert isinstance(oracle, Oracle)
    assert started() == [] and not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", options("oracle"))
def test_outcomes_in_order_or_one_line_that_says_what_is_missing(option, build, started):
    hydrogen = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    longer, coincident = hydrogen.copy(), hydrogen.copy()
    longer.positions[1, 2] = 0.81
    coincident.positions[1, 2] = 1e-9
    with build(option) as oracle:
        try:
            labels = oracle.label([hydrogen, coincident, longer, hydrogen])
        except UqbenchError as error:
            assert "\n" not in str(error)
            pytest.skip(str(error))
        assert len(labels.outcomes) == 4 and isinstance(labels.outcomes[1], Failure)
        for frame, outcome in zip(labels.frames, labels.outcomes, strict=True):
            if isinstance(outcome, Label):
                assert type(outcome.energy) is float and outcome.forces.dtype == np.float64
                assert outcome.forces.shape == (len(frame), 3)
                np.testing.assert_allclose(outcome.forces.sum(axis=0), 0, atol=1e-3)
            else:
                assert outcome.reason and "\n" not in outcome.reason
        first, _, second, third = labels.outcomes
        if isinstance(first, Label):
            assert first.energy == third.energy != second.energy
            step = labels.outcomes[2].energy - first.energy
            slope = -(first.forces[1, 2] + second.forces[1, 2]) / 2
            assert step == pytest.approx(0.01 * slope, rel=0.01)  # units of forces are those of the energy over Å
        assert oracle.label([]).outcomes == []
    oracle.close()
    assert started() == []
