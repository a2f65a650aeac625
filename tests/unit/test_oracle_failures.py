"""Workers that die, hang, eat memory or answer nonsense: tried again as configured, then recorded with the reason."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from helpers import CONF
from omegaconf import OmegaConf
from toy_calculators import (
    ABORT,
    EXCEPTION,
    FEWER,
    HANG,
    HUNGRY,
    KILLED,
    NOT_FINITE,
    ONCE,
    UNITS,
    calculations,
)

from uqbench import config
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, OracleError
from uqbench.oracles.base import Failure, Label, Labels
from uqbench.oracles.electrons import xtb_electrons
from uqbench.oracles.plausibility import KnownLabels

NEW = ("memory_gb", "retries", "max_failed")


@pytest.fixture
def springs(tmp_path, monkeypatch):
    """Build oracles of toy springs as configs do; all are closed at the end."""
    monkeypatch.setenv("UQBENCH_TRUSTED", "toy_calculators")
    made = []

    def make(**changes):
        node = OmegaConf.load(CONF / "oracle" / "ase.yaml")
        node.merge_with({"workers": 2, "cache": str(tmp_path / "cache"), "timeout_s": 2.0})
        node.merge_with({"calculator": "toy_calculators.Springs"}, {"arguments": {"k": 2.0, "log": tmp_path / "log"}})
        node.arguments.log = str(tmp_path / "log")
        node.merge_with(changes)
        made.append(config.build(OmegaConf.create({"oracle": node}).oracle))
        return made[-1]

    yield make
    for one in made:
        one.close()


def dimers(*numbers):
    """Different geometries of two atoms each; the toy calculator does what the first number says."""
    return [Atoms([number, 1], [[0, 0, 0], [0.1 * i, 0, 1.0]]) for i, number in enumerate(numbers)]


def known_of(frames, **changes):
    """What labels of these compositions are like, by springs."""
    structures = Structures.from_atoms(frames, origin="known", labels="none")
    values = {"energies": (structures.positions**2).reshape(len(frames), -1).sum(axis=1)}
    values |= {"forces": -2.0 * structures.positions} | changes
    arrays = (structures.numbers, structures.positions, values["energies"], values["forces"], structures.ptr)
    return Structures.from_arrays(*arrays, origin="known")


@pytest.mark.parametrize(
    ("retries", "misdeeds"),
    [
        (1, [KILLED, HANG, HUNGRY, ABORT, NOT_FINITE, FEWER, UNITS, EXCEPTION]),
        (3, [NOT_FINITE, FEWER, UNITS, EXCEPTION]),
        (0, [NOT_FINITE, FEWER, UNITS, EXCEPTION]),
    ],
)
def test_misdeeds_are_tried_again_as_configured_then_recorded(springs, tmp_path, retries, misdeeds):
    frames = dimers(7, *misdeeds, 7)
    known = KnownLabels(known_of(dimers(*[UNITS] * 3, *[7] * 3)), energies=True)
    labels = springs(retries=retries, memory_gb=0.4).label(frames, known)
    assert labels.labelled == [0, len(frames) - 1] and labels.computed == 2
    expected = {
        KILLED: "crash: the worker process ended by signal SIGKILL, with oracle.memory_gb=0.4",
        HANG: "timeout: not done after 2 s",
        HUNGRY: "ran out of memory (limit 0.4 GB)",
        ABORT: "ran out of memory (limit 0.4 GB)",
        NOT_FINITE: "the engine returned an energy or forces that are not finite",
        FEWER: "the engine returned forces of shape (1, 3) for 2 atoms",
        UNITS: "implausible: a force of ",
        EXCEPTION: "RuntimeError: the SCF did not converge",
    }
    for index, number in enumerate(misdeeds, start=1):
        attempts = 1 if number == EXCEPTION else retries + 1  # an engine that refuses would refuse again
        assert calculations(tmp_path / "log", number) == labels.outcomes[index].attempts == attempts
        assert labels.failures[index].startswith(expected[number])
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2
    assert not list((tmp_path / "cache").rglob("*.lock"))


def test_where_nothing_works_the_rest_is_not_gone_through(springs, tmp_path):
    frames = dimers(*[EXCEPTION] * 60)
    line = "20 of the first 20 of 60 geometries have failed, like this one: .*max_failed=1"
    with pytest.raises(OracleError, match=line):
        springs().label(frames)
    assert calculations(tmp_path / "log") < 25
    assert len(springs(max_failed=1.0).label(frames).failures) == 60, "unless it is asked for"
    some = springs().label([*dimers(*[1] * 20), *frames])
    assert len(some.failures) == 60 and some.labelled == list(range(20)), "it has worked"


def test_a_worker_that_fails_once_gives_a_label(springs, tmp_path):
    frames = dimers(ONCE, 7)
    labels = springs(retries=1).label(frames)
    assert labels.labelled == [0, 1] and labels.computed == 2 and calculations(tmp_path / "log", ONCE) == 2


def test_memory_of_no_limit_is_the_machine_s(springs):
    assert springs(memory_gb=None, retries=0).label(dimers(HUNGRY)).labelled == [0]


def test_an_engine_that_needs_more_memory_to_start_says_which_key(springs, started):
    with pytest.raises(ConfigError, match="^oracle.memory_gb: the engine does not even start within 0.01 GB: raise it"):
        springs(memory_gb=0.01).label(dimers(7))
    assert started() == []


def test_a_label_in_the_cache_is_judged_like_an_answer(springs, tmp_path):
    (frame,) = dimers(UNITS)
    known = KnownLabels(known_of(dimers(UNITS, UNITS)), energies=True)
    one = springs(retries=0)
    assert one.label([frame]).labelled == [0]
    assert "implausible" in one.label([frame], known).failures[0]
    assert one.label([frame]).computed == 0


def test_answers_a_thousand_times_off_are_implausible_and_all_others_are_not(ethanol):
    known = KnownLabels(ethanol[:30], energies=True)
    other_theory = KnownLabels(ethanol[:30], energies=False)
    for s in range(30, len(ethanol)):
        atoms = slice(ethanol.ptr[s], ethanol.ptr[s + 1])
        numbers, energy, forces = ethanol.numbers[atoms], ethanol.energies[s], ethanol.forces[atoms]
        for scale in (0.01, 1, 100):  # frames at rest, and hotter ones
            assert known.objection(numbers, Label(energy, scale * forces)) is None
        assert "force of" in known.objection(numbers, Label(energy, 1e3 * forces))
        assert "force of" in known.objection(numbers, Label(1e3 * energy, 1e3 * forces))
        for factor in (1e3, 1e-3):
            assert "energy of" in known.objection(numbers, Label(factor * energy, forces))
            assert "energy of" in known.objection(numbers[::-1], Label(factor * energy, 1e-3 * forces))
            assert other_theory.objection(numbers, Label(factor * energy, forces)) is None
        # Other zeros of the energy, such as of all electrons: no unit of 10^3.
        assert known.objection(numbers, Label(40 * energy, forces)) is None
        assert known.objection([*numbers, 1], Label(1e3 * energy, np.ones((10, 3)))) is None, "nothing is known of it"


def test_rare_geometries_are_plausible_though_their_energies_are_a_thousand_times_the_usual():
    """Two atoms of a Lennard-Jones gas, near the minimum and pushed into each other."""

    def answer(distance):
        atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, distance]], calculator=LennardJones(epsilon=0.01, sigma=1.0, rc=20.0))
        return atoms, Label(atoms.get_potential_energy(), atoms.get_forces())

    frames, labels = zip(*[answer(distance) for distance in (1.1, 1.15, 1.2)], strict=True)
    energies, forces = [one.energy for one in labels], np.concatenate([one.forces for one in labels])
    known = KnownLabels(known_of(frames, energies=energies, forces=forces), energies=True)
    atoms, rare = answer(0.57)
    assert rare.energy > 1000 * max(map(abs, energies)) and rare.energy > 10 * 2 and np.abs(rare.forces).max() > 300
    assert known.objection(atoms.numbers, rare) is None
    assert "energy of" in known.objection(atoms.numbers, Label(rare.energy, labels[0].forces))


def outcomes(failed, total, reason="timeout: not done after 3 s"):
    label = Label(0.0, np.zeros((1, 3)))
    return [*[Failure(reason, 2)] * failed, *[label] * (total - failed)]


def test_more_failures_than_allowed_are_one_line(capsys):
    def labels(failed, max_failed, *others):
        answers = [*outcomes(failed, 10 - len(others)), *others]
        return Labels([Atoms("H")] * 10, answers, 0, max_failed)

    names = [f"proposal {i}" for i in range(20, 30)]
    for failed, max_failed in ((2, 0.2), (0, 0.0), (10, 1.0)):
        labels(failed, max_failed).require_enough(names, "there")
    with pytest.raises(OracleError) as caught:
        labels(3, 0.2, Failure("crash: SIGKILL")).require_enough(names, "failures_1.csv")
    assert str(caught.value) == (
        "oracle: 4 of 10 frames have no label (40%; oracle.max_failed allows 20%), 3 of them like proposal 20: "
        "timeout: not done after 3 s; all reasons: failures_1.csv; labels are kept: repeat the command with a larger "
        "oracle.timeout_s or a larger oracle.max_failed"
    )


@pytest.mark.parametrize("option", ["xtb", "dft"])
@pytest.mark.parametrize(
    ("name", "charge", "multiplicity", "line"),
    [
        (
            "NH3",
            0,
            2,
            "oracle.multiplicity: 2 is impossible for frame 1 (H3N), which has {} with oracle.charge=0; poss",
        ),
        (
            "NH3",
            1,
            1,
            "oracle.multiplicity: 1 is impossible for frame 1 (H3N), which has {} with oracle.charge=1; poss",
        ),
        (
            "CH3",
            0,
            1,
            "oracle.multiplicity: 1 is impossible for frame 1 (CH3), which has {} with oracle.charge=0; poss",
        ),
        ("NH3", 0, 13, "oracle.multiplicity: 13 is impossible for frame 1 (H3N), which has {} with oracle.charge=0; p"),
        ("NH3", 30, 1, "oracle.charge: 30 is impossible for frame 1 (H3N), which has {}; possible are at most"),
    ],
)
def test_impossible_electrons_are_refused_before_anything_starts(
    tmp_path, started, option, name, charge, multiplicity, line
):
    node = OmegaConf.load(CONF / "oracle" / f"{option}.yaml")
    node.merge_with({"charge": charge, "multiplicity": multiplicity, "cache": str(tmp_path)})
    atoms = molecule(name)
    count = (xtb_electrons(atoms.numbers) if option == "xtb" else atoms.numbers).sum()
    words = f"{count - charge if 'multiplicity:' in line else count} {'valence ' * (option == 'xtb')}electrons"
    with config.build(OmegaConf.create({"oracle": node}).oracle) as oracle, pytest.raises(ConfigError) as caught:
        # Frames that the engine is not asked for are no reason.
        oracle.label([Atoms(), atoms])
    assert str(caught.value).startswith(line.format(words)) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert started() == [] and not list(tmp_path.rglob("*.json"))


def test_possible_electrons_are_named(tmp_path):
    node = OmegaConf.load(CONF / "oracle" / "dft.yaml")
    node.merge_with({"charge": 1, "cache": str(tmp_path)})
    oracle = config.build(OmegaConf.create({"oracle": node}).oracle)
    with pytest.raises(ConfigError, match="possible are 2, 4, 6, 8, 10$"):
        oracle.check([molecule("NH3")])
    with pytest.raises(ConfigError, match="possible are 2, 4, 6, 8, 10, ...$"):
        oracle.check([molecule("C6H6")])
    oracle.check([molecule("CH3"), molecule("NO")][:0])
    for name, charge, multiplicity in (("O2", 0, 3), ("CH3", 0, 2), ("NH3", 1, 2), ("NH3", 9, 2), ("H2", -1, 2)):
        node.merge_with({"charge": charge, "multiplicity": multiplicity})
        config.build(OmegaConf.create({"oracle": node}).oracle).check([molecule(name)])


ELECTRONS = """
import json, sys
import numpy as np
from tblite.interface import Calculator
counts = []
for number in json.loads(sys.argv[1]):
    calculator = Calculator("GFN2-xTB", np.array([number]), np.zeros((1, 3)), uhf=int(sys.argv[2]))
    calculator.set("verbosity", 0)
    try:
        counts.append(float(np.sum(calculator.singlepoint().get("orbital-occupations"))))
    except RuntimeError:
        counts.append(None)
print(json.dumps(counts))
"""


def test_electrons_of_xtb_are_those_of_tblite():
    pytest.importorskip("tblite", reason="tblite is not installed")
    numbers = [1, 2, 3, 8, 10, 11, 18, 19, 29, 30, 36, 37, 47, 48, 54, 55, 57, 58, 64, 71, 72, 79, 80, 86]
    for parity in (0, 1):
        wanted = [number for number in numbers if xtb_electrons([number])[0] % 2 == parity]
        line = [sys.executable, "-c", ELECTRONS, json.dumps(wanted), str(parity)]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
        theirs = json.loads(done.stdout.splitlines()[-1])
        assert theirs == pytest.approx(xtb_electrons(wanted).tolist(), abs=1e-6)


@pytest.mark.parametrize("option", ["ase", "dft", "lammps", "xtb", "replay"])
def test_configs_from_before_there_were_these_keys_build_and_name_the_same_run(option, tmp_path, monkeypatch):
    monkeypatch.setenv("UQBENCH_TRUSTED", "ase.calculators")
    node = OmegaConf.load(CONF / "oracle" / f"{option}.yaml")
    node.pop("defaults", None)
    if option == "ase":
        node.calculator = "ase.calculators.lj.LennardJones"
    if option == "replay":
        node.dataset = OmegaConf.load(CONF / "dataset" / "quickstart.yaml")
    else:
        node.cache = str(tmp_path)
    old = OmegaConf.create({key: value for key, value in node.items() if key not in NEW})
    for wrap in (lambda one: {"oracle": one}, lambda one: {"evaluation": {"name": "any", "oracle": one}}):
        before, now = OmegaConf.create(wrap(old)), OmegaConf.create(wrap(node))
        assert config.digest(before) == config.digest(now)
        oracle = config.build(before.oracle if "oracle" in before else before.evaluation.oracle)
        assert oracle.max_failed == 1.0, "as many as it was"
        assert option == "replay" or oracle.retries == 0
    changed = OmegaConf.create({"oracle": {**node, **{key: 0.5 for key in NEW if key in node}}})
    assert config.digest(changed) == config.digest(OmegaConf.create({"oracle": node}))
    inner = OmegaConf.create({"oracle": {**node, "arguments": {"retries": 3}}})
    assert config.digest(inner) != config.digest(OmegaConf.create({"oracle": node})), "of a calculator it may count"
