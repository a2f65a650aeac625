"""The evaluation `structure`: a model against an oracle that is known to be the same, another, or worse."""

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import simulating
from scipy import stats
from test_md_stability import opened, trained

from uqbench import config
from uqbench.data.distributions import Description, RadialDistribution, describe
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError
from uqbench.evaluations import structure, structure_differences
from uqbench.oracles.base import Labels, Oracle
from uqbench.oracles.cache import Label
from uqbench.uq.base import Prediction

pytestmark = pytest.mark.numerics

FEW = {"temperatures": [20], "replicas": 2, "duration_ps": 0.2, "equilibration_ps": 0.05, "reach": 5.0, "bins": 50}
ARGON = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.0)


class LennardJonesOracle(Oracle):
    """ASE's Lennard-Jones potential, with the force scaled."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.asked = factor, 0

    def label(self, frames):
        self.asked += len(frames)
        outcomes = []
        for atoms in frames:
            ARGON.calculate(atoms)
            forces = self.factor * ARGON.results["forces"]
            outcomes.append(Label(ARGON.results["energy"], forces))
        return Labels(list(frames), outcomes, len(frames))


class Method(torch.nn.Module):
    """A model that is an oracle."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        backbone = type("Backbone", (), {"cutoff": 5.0})
        self.potential = type("P", (), {"scale": torch.tensor(1.0, dtype=torch.float64), "backbone": backbone})
        self._predict = structure.labels_of(oracle)

    def predict(self, batch) -> Prediction:
        return self._predict(batch)


def argon(n=2):
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n):
        atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (2, 2, 2)
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
        frames.append(atoms)
    return Structures.from_atoms(frames, origin="argon")


def evaluation(oracle, **changes):
    return config.build(simulating("evaluation", "structure", **{**FEW, **changes}), slot="evaluation", oracle=oracle)


def evaluated(folder, model, oracle, **changes):
    with opened(folder) as run:
        rows = evaluation(oracle, **changes).evaluate(run, trained(model), argon(), split="test", title="argon")
        run.finish()
    values = {row["metric"]: row["value"] for row in rows if row["target"] == "structure"}
    return values, run.path


def test_the_oracle_itself_has_the_structure_of_the_oracle(tmp_path):
    """Starts, velocities and noise are the same, so that nothing is left between them, not even noise."""
    oracle = LennardJonesOracle()
    values, folder = evaluated(tmp_path, Method(LennardJonesOracle()), oracle)
    assert values["rdf_difference_Ar–Ar"] == pytest.approx(0, abs=1e-9)
    assert values["rdf_peak_shift_Ar–Ar"] == values["closest_shift_Ar–Ar"] == 0
    assert values["survival"] == values["survival_reference"] == 1
    assert values["Ar_with_12_Ar"] == values["Ar_with_12_Ar_reference"] > 0.99
    assert values["density"] == pytest.approx(4 * 39.95 / 6.02214 / 5.4**3 * 10, rel=1e-3)
    assert oracle.asked == 2 * 101, "the start and every step of each replica"
    assert (folder / "structure.png").stat().st_size > 10_000
    assert set(pd.read_csv(folder / "rdf.csv").of) == {"reference, 20 K", "model, 20 K"}


def test_a_model_with_other_forces_has_another_structure(tmp_path):
    values, _ = evaluated(tmp_path, Method(LennardJonesOracle(0.1)), LennardJonesOracle(), temperatures=[60])
    assert values["rdf_difference_Ar–Ar"] > 0.3


def test_a_model_that_explodes_leaves_no_structure(tmp_path):
    values, _ = evaluated(tmp_path, Method(LennardJonesOracle(-1e4)), LennardJonesOracle())
    assert values["survival"] == 0 and np.isnan(values["rdf_difference_Ar–Ar"])
    assert values["Ar_with_12_Ar_reference"] > 0.99


def test_the_split_can_be_the_reference(tmp_path):
    values, _ = evaluated(tmp_path, Method(LennardJonesOracle()), LennardJonesOracle(), reference="split")
    assert 0 < values["rdf_difference_Ar–Ar"] < 5 and "survival_reference" not in values
    assert values["Ar_with_12_Ar_reference"] == 1


def test_rows_of_a_displaced_peak():
    """Triangles of unit area, one bin apart, differ by what the first has without the second, and the reverse."""
    r = np.arange(0.05, 5, 0.1)
    one, other = (RadialDistribution(r, np.maximum(1 - np.abs(r - at), 0)) for at in (2.05, 2.15))
    assert other.peak - one.peak == pytest.approx(0.1)
    exact = np.trapezoid(np.abs(one.g - other.g), r)
    assert structure_differences.distance(one, other) == pytest.approx(exact) == pytest.approx(0.19, abs=0.02)


def _described(g):
    """A description with only a radial distribution, in shells of 0.1 Å."""
    radial = RadialDistribution(np.arange(0.05, 5, 0.1), np.asarray(g))
    return Description(np.ones(1), {(18, 18): radial}, (18, 18), 3.0, {})


def _rows(ours, references):
    means = [
        _described(np.mean([one.distributions[18, 18].g for one in side if one], axis=0)) for side in (ours, references)
    ]
    return {row["metric"]: row for row in structure_differences.rows_of("all", *means, ours, references)}


def test_the_interval_of_a_difference_without_change_of_sign_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0, 1, (6, 50))
    ours = theirs + rng.uniform(0.1, 1, (6, 1)) * rng.uniform(0.5, 1, 50)
    row = _rows([_described(g) for g in ours], [_described(g) for g in theirs])["rdf_difference_Ar–Ar"]
    single = (ours - theirs).sum(axis=1) * 0.1
    low, high = stats.t.interval(0.95, 5, single.mean(), stats.sem(single))
    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((single.mean(), low, high))


def test_one_sound_replica_gives_no_interval_and_its_partner_stays_in_the_reference():
    one, other = _described(np.ones(50)), _described(np.zeros(50))
    rows = _rows([one, None], [one, other])
    assert (
        rows["rdf_difference_Ar–Ar"]["value"] == pytest.approx(2.5) and rows["rdf_difference_Ar–Ar"]["ci_low"] is None
    )
    assert rows["survival"]["value"] == 0.5 and rows["survival_reference"]["value"] == 1


def test_atoms_that_come_nearer_than_in_the_reference_are_seen():
    r = np.arange(0.05, 5, 0.1)
    rows = _rows([_described(r > 1.4)], [_described(r > 2.2)])
    assert rows["closest_shift_Ar–Ar"]["value"] == pytest.approx(-0.8)


def test_shares_are_of_the_commonest_number_of_the_reference():
    crystal, gas = argon(1), Structures.from_atoms([_dimer()], origin="dimer")
    reference = describe(crystal, reach=5.0, bins=50)
    ours = describe(gas, reach=5.0, bins=50, bond=reference.bond, cutoff=reference.cutoff)
    rows = structure_differences.rows_of("all", ours, reference, [ours, None])
    values = {row["metric"]: row["value"] for row in rows}
    assert values["survival"] == 0.5 and values["Ar_with_12_Ar"] == 0 and values["Ar_with_12_Ar_reference"] == 1


def _dimer():
    atoms = Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]], cell=[20] * 3, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
    return atoms


@pytest.mark.parametrize(
    "changes",
    [{"temperatures": []}, {"replicas": 0}, {"reach": 0.0}, {"equilibration_ps": 0.2}, {"friction_per_ps": -1.0}],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        evaluation(LennardJonesOracle(), **changes)
