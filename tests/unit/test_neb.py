"""Minimum energy paths: exact barriers of known surfaces, symmetry, and failures that are told."""

import dataclasses
import functools
import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import write
from ase.mep import NEB
from ase.optimize import FIRE
from helpers import CONF
from omegaconf import OmegaConf
from PIL import Image
from scipy.optimize import minimize, minimize_scalar

from uqbench import config
from uqbench.errors import ConfigError, DataError, UqbenchError
from uqbench.evaluations.band import BandSettings, find_path
from uqbench.evaluations.reactions import ammonia_inversion, frames_of
from uqbench.figures.canvas import render
from uqbench.figures.paths import Profile, drawing
from uqbench.oracles.base import Failure, Label, Labels, Oracle
from uqbench.oracles.calculator import attach

pytestmark = pytest.mark.numerics

SETTINGS = BandSettings(
    images=9, interpolation="linear", spring=1.0, climb_below=0.5, optimizer="BFGS", fmax=0.005, steps=300
)


class Surface(Calculator):
    """A particle on a surface V(x, y) in eV with a spring along z; gradients by the chain rule of each term."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x, y, z = atoms.positions[0]
        value, dx, dy = self.surface(x, y)
        self.results = {"energy": value + 5 * z**2, "forces": -np.array([[dx, dy, 10 * z]])}


class DoubleWell(Surface):
    """Tilted double well along a parabola: barriers that are known in closed form."""

    tilt = 0.1

    def surface(self, x, y):
        off = y - 0.5 * x**2
        value = (x**2 - 1) ** 2 + self.tilt * x + 4 * off**2
        return value, 4 * x * (x**2 - 1) + self.tilt - 8 * off * x, 8 * off

    @classmethod
    def extrema(cls):
        return np.sort(np.roots([4, 0, -4, cls.tilt]).real)  # on the parabola: a minimum, the saddle, a minimum


class MullerBrown(Surface):
    """K. Müller and L. D. Brown, Theor. Chim. Acta 53, 75 (1979), in units of 100 to suit eV."""

    A, a, b, c = [-2.0, -1.0, -1.7, 0.15], [-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]
    x0, y0 = [1, 0, -0.5, -1], [0, 0.5, 1.5, 1]

    def surface(self, x, y):
        terms = zip(self.A, self.a, self.b, self.c, self.x0, self.y0, strict=True)
        total = np.zeros(3)
        for A, a, b, c, x0, y0 in terms:
            value = A * np.exp(a * (x - x0) ** 2 + b * (x - x0) * (y - y0) + c * (y - y0) ** 2)
            slopes = 2 * a * (x - x0) + b * (y - y0), b * (x - x0) + 2 * c * (y - y0)
            total += value * np.array([1, *slopes])
        return total


def particles(*points):
    """Frames of one particle in a large cell, which is not to be shifted onto the others."""
    return [Atoms("H", [[x, y, 0]], cell=[50, 50, 50], pbc=True) for x, y in points]


def on(calculator):
    def give(images):
        for image in images:
            image.calc = calculator()

    return give


@pytest.mark.parametrize("changes", [{}, {"optimizer": "FIRE"}, {"images": 8}, {"spring": 5.0}], ids=str)
def test_barriers_of_a_double_well(changes):
    path = find_path(particles((-1.1, 0.4), (0.9, 0.6)), on(DoubleWell), dataclasses.replace(SETTINGS, **changes))
    first, saddle, last = ((x**2 - 1) ** 2 + DoubleWell.tilt * x for x in DoubleWell.extrema())
    assert path.problems == [] and path.climbed and path.fmax < 0.005
    assert path.barriers() == pytest.approx((saddle - first, saddle - last), abs=1e-5)
    assert path.images[path.saddle].positions[0, 0] == pytest.approx(DoubleWell.extrema()[1], abs=1e-3)
    coordinate, energy = path.profile(2001)
    assert energy.max() == pytest.approx(saddle - first, abs=5e-3)
    assert coordinate[0] == 0 and coordinate[-1] == 1 and energy[0] == 0


def test_barrier_without_climbing_is_that_of_the_fit():
    even = dataclasses.replace(SETTINGS, images=8, climb_below=None)
    path = find_path(particles((-1.1, 0.4), (0.9, 0.6)), on(DoubleWell), even)
    first, saddle, _ = ((x**2 - 1) ** 2 + DoubleWell.tilt * x for x in DoubleWell.extrema())
    assert path.problems == [] and not path.climbed
    assert path.energies.max() - path.energies[0] < saddle - first - 0.02  # no image is on top
    assert path.barriers()[0] == pytest.approx(saddle - first, abs=0.02)


def test_barrier_of_mueller_and_brown():
    """Over the middle minimum, whose two saddles are known: -40.6648 is the higher, -146.700 the reactant."""
    frames = particles((-0.55, 1.44), (-0.05, 0.47), (0.62, 0.03))
    path = find_path(frames, on(MullerBrown), dataclasses.replace(SETTINGS, images=11, steps=1000))
    assert path.problems == []
    assert path.barriers() == pytest.approx((1.46700 - 0.406648, 1.08167 - 0.406648), abs=1e-4)
    np.testing.assert_allclose(path.images[path.saddle].positions[0, :2], [-0.822, 0.624], atol=2e-3)


@pytest.fixture
def xtb(tmp_path):
    pytest.importorskip("tblite", reason="tblite is not installed")
    node = OmegaConf.load(CONF / "oracle" / "xtb.yaml")
    node.cache, node.workers = str(tmp_path / "cache"), 1
    with config.build(OmegaConf.create({"oracle": node}).oracle) as oracle:
        yield oracle


def ammonia(bond, height):
    """C3v ammonia: N-H in Å, N above the plane of the hydrogens in Å."""
    angles = np.radians([0, 120, 240])
    radius = np.sqrt(bond**2 - height**2)
    hydrogens = np.column_stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(3)])
    return Atoms("NH3", [[0, 0, height], *hydrogens])


def test_inversion_of_ammonia_against_optimisation_in_its_symmetries(xtb):
    def energy(bond, height):
        (label,) = xtb.label([ammonia(bond, height)]).outcomes
        return label.energy

    planar = minimize_scalar(lambda r: energy(r, 0.0), bounds=(0.95, 1.05), method="bounded", options={"xatol": 1e-4})
    options = {"xatol": 1e-4, "fatol": 1e-7}
    pyramid = minimize(lambda x: energy(*x), [1.01, 0.35], method="Nelder-Mead", options=options)
    asked = []
    label, xtb.label = xtb.label, lambda frames: (asked.append(len(frames)), label(frames))[1]
    path = find_path(ammonia_inversion(), functools.partial(attach, xtb), SETTINGS)
    assert path.problems == []
    barrier = planar.fun - pyramid.fun
    assert path.barriers() == pytest.approx((barrier, barrier), abs=1e-4) and 0.1 < barrier < 0.5
    saddle = path.images[path.saddle].positions
    assert path.saddle == 4 and abs(np.linalg.det(saddle[1:] - saddle[0])) < 1e-3  # planar
    # All images of a band are labelled together: ends apart, no call asks for fewer than those that move.
    assert {7, 9} & set(asked) and asked.count(1) < 30 and not set(asked) - {1, 2, 7, 8, 9}


class Toy(Oracle):
    """Labels in this process; fails above a height or a number of calls."""

    def __init__(self, fails=lambda atoms: False):
        self.fails, self.calls = fails, 0

    def label(self, frames):
        self.calls += 1
        outcomes = []
        for atoms in frames:
            calculator = DoubleWell()
            calculator.calculate(atoms)
            results = calculator.results
            fails = self.fails(atoms)
            outcomes.append(Failure("no luck") if fails else Label(results["energy"], results["forces"]))
        return Labels(list(frames), outcomes, len(outcomes))


def test_an_oracle_as_calculators_is_the_surface_itself():
    frames = particles((-1.1, 0.4), (0.9, 0.6))
    oracle = Toy()
    through = find_path(frames, functools.partial(attach, oracle), SETTINGS)
    directly = find_path(frames, on(DoubleWell), SETTINGS)
    np.testing.assert_array_equal(through.energies, directly.energies)
    assert through.fmax == directly.fmax
    images = through.images
    attach(oracle, images)
    before = oracle.calls
    forces = [image.get_forces() for image in images]
    assert oracle.calls == before + 1
    images[3].positions += 0.1
    images[5].positions += 0.1
    assert not np.allclose(images[5].get_forces(), forces[5]) and oracle.calls == before + 2
    assert not np.allclose(images[3].get_forces(), forces[3]) and oracle.calls == before + 2
    np.testing.assert_array_equal(images[4].get_forces(), forces[4])


def test_failures_are_problems_of_the_path():
    frames = particles((-1.1, 0.4), (0.9, 0.6))
    broken = find_path(frames, functools.partial(attach, Toy(lambda a: abs(a.positions[0, 0]) < 0.5)), SETTINGS)
    assert broken.problems == ["the oracle has no label for an image: no luck"]
    assert not broken.known and np.isnan(broken.barriers()).all() and np.isnan(broken.energies).all()
    short = find_path(frames, on(DoubleWell), dataclasses.replace(SETTINGS, steps=1))
    assert len(short.problems) == 4 and "a force of" in short.problems[2] and short.known
    same = find_path(particles((0.9, 0.4), (1.1, 0.6)), on(DoubleWell), SETTINGS)
    assert "same geometry" in same.problems[0] and not same.known

    class Exploding(DoubleWell):
        def surface(self, x, y):
            if y < 0.1:
                raise UqbenchError("the model predicts non-finite values")
            return super().surface(x, y)

    assert find_path(frames, on(Exploding), SETTINGS).problems == ["the model predicts non-finite values"]

    def untrusted(images):
        raise ConfigError("oracle: cannot be started")

    with pytest.raises(ConfigError):
        find_path(frames, untrusted, SETTINGS)


def test_straight_paths_through_coinciding_atoms_are_refused():
    start = Atoms("H2", [[-1, 0, 0], [1, 0, 0]], cell=[50, 50, 50], pbc=True)
    end = start.copy()
    end.positions *= -1

    class Nothing(Calculator):
        implemented_properties = ["energy", "forces"]

        def calculate(self, *arguments):
            super().calculate(*arguments)
            self.results = {"energy": 0.0, "forces": np.zeros((2, 3))}

    path = find_path([start, end], on(Nothing), SETTINGS)
    assert "come as close as 0.00 Å" in path.problems[0] and not path.known
    around = start.copy()
    around.positions = [[0, 1, 0], [0, -1, 0]]
    assert find_path([start, around, end], on(Nothing), SETTINGS).known


def test_ammonia_keeps_every_atom_and_turns_inside_out():
    start, end = ammonia_inversion()
    np.testing.assert_array_equal(start.numbers, end.numbers)
    signs = [np.sign(np.linalg.det(atoms.positions[1:] - atoms.positions[0])) for atoms in (start, end)]
    assert signs[0] == -signs[1] != 0
    name, frames = frames_of(None, "ammonia_inversion")
    assert name == "ammonia_inversion"
    # Laid on each other the hydrogens stay in place and the nitrogen goes through: the shortest way.
    moves = np.linalg.norm(frames[1].positions - frames[0].positions, axis=1)
    assert moves[0] > 0.5 and moves[1:].max() < 0.3


def test_frames_of_a_file(tmp_path):
    start, end = ammonia_inversion()
    end.rotate(70, (1, 2, 3))
    end.positions += [3, 2, 1]
    write(tmp_path / "umbrella.extxyz", [start, end])
    name, frames = frames_of(str(tmp_path / "umbrella.extxyz"), "unused")
    assert name == "umbrella"
    expected = frames_of(None, "ammonia_inversion")[1]
    np.testing.assert_allclose(frames[1].positions, expected[1].positions, atol=1e-6)


def moved(atoms, shift):
    other = atoms.copy()
    other.positions[0] += shift
    return other


def hop(*, held: bool):
    """A copper atom goes from one hollow to the next; the bottom layer is strained, so that it would move if it could.

    As on any file with constraints, ASE's reader gives them to the frames.
    """
    ends = []
    for site in ("fcc", "hcp"):
        slab = fcc111("Cu", (2, 2, 2), vacuum=8.0)
        add_adsorbate(slab, "Cu", 2.0, site)
        bottom = np.flatnonzero(slab.get_tags() == 2)
        slab.positions[bottom[0], 2] -= 0.4
        slab.info = {}
        if held:
            slab.set_constraint(FixAtoms(bottom))
        ends.append(slab)
    return ends


def by_hand(ends):
    """Barrier in eV of a band of three images, as in ASE's manual."""
    ends = [atoms.copy() for atoms in ends]
    for atoms in ends:
        atoms.calc = EMT()
        FIRE(atoms, logfile=None).run(fmax=0.02, steps=300)
    images = [ends[0], ends[0].copy(), ends[1]]
    images[1].calc = EMT()
    band = NEB(images, climb=True, k=1.0, method="improvedtangent")
    band.interpolate(mic=True, apply_constraint=False)
    FIRE(band, logfile=None).run(fmax=0.02, steps=300)
    return max(image.get_potential_energy() for image in images) - images[0].get_potential_energy()


@pytest.mark.parametrize(("held", "interpolation"), [(True, "linear"), (True, "idpp"), (False, "linear")])
def test_constraints_of_the_ends_hold_all_along_the_path(held, interpolation, tmp_path):
    ends = hop(held=held)
    write(tmp_path / "ends.traj", ends)
    frames = frames_of(str(tmp_path / "ends.traj"), "unused")[1]
    settings = {"images": 3, "interpolation": interpolation, "climb_below": 0.5, "optimizer": "FIRE", "fmax": 0.02}
    path = find_path(frames, on(EMT), dataclasses.replace(SETTINGS, **settings))
    assert path.problems == [] and path.fmax < 0.02
    assert path.barriers()[0] == pytest.approx(by_hand(ends), abs=1e-3)
    bottom = np.flatnonzero(ends[0].get_tags() == 2)
    moves = [np.abs(image.positions - ends[0].positions)[bottom].max() for image in path.images]
    assert max(moves) < 1e-12 if held else min(moves) > 0.01
    assert all(len(image.constraints) == held for image in path.images)


def test_a_molecule_with_fixed_atoms_is_not_turned(tmp_path):
    start, end = ammonia_inversion()
    for atoms in (start, end):
        atoms.rotate(30, "x", center=(0, 0, 0))
        atoms.set_constraint(FixAtoms([1]))
    start.positions += end.positions[1] - start.positions[1]
    write(tmp_path / "ends.traj", [start, end])
    frames = frames_of(str(tmp_path / "ends.traj"), "unused")[1]
    for given, read in zip((start, end), frames, strict=True):
        np.testing.assert_array_equal(read.positions, given.positions)
        assert read.constraints[0].index.tolist() == [1]


def test_ends_with_other_constraints_are_refused(tmp_path):
    def problem(change):
        ends = hop(held=True)
        change(ends[1])
        write(tmp_path / "ends.traj", ends)
        with pytest.raises(DataError) as caught:
            frames_of(str(tmp_path / "ends.traj"), "unused")
        return str(caught.value)

    assert "frame 1 has other constraints (none) than frame 0 (FixAtoms)" in problem(lambda end: end.set_constraint())
    assert "frame 1 has other constraints (FixAtoms)" in problem(lambda end: end.set_constraint(FixAtoms([0])))
    assert "frame 1 fixes atom 1 0.3 Å from where frame 0 does" in problem(
        lambda end: end.positions.__setitem__((1, 2), end.positions[1, 2] + 0.3)
    )


PERIODIC = Atoms("H", cell=[5, 5, 5], pbc=True)
BAD = {
    "one frame": ([molecule("NH3")], "two frames or more"),
    "count": ([molecule("NH3"), molecule("NH2")], "frame 1 has 3 atoms"),
    "elements": ([molecule("NH3"), molecule("PH3")], "other elements"),
    "order": ([molecule("NH3"), molecule("NH3")[[1, 0, 2, 3]]], "another order"),
    "identical": ([molecule("NH3"), molecule("NH3")], "same geometry"),
    "shifted": ([molecule("NH3"), Atoms("NH3", molecule("NH3").positions + 1.0)], "same geometry"),
    "cell": ([PERIODIC, Atoms("H", cell=[5, 5, 6], pbc=True)], "another cell"),
    "wrapped": ([PERIODIC, moved(PERIODIC, [5, 0, 0])], "same geometry"),
}


@pytest.mark.parametrize("case", BAD)
def test_ends_that_are_no_reaction(case, tmp_path):
    frames, message = BAD[case]
    path = tmp_path / "ends.extxyz"
    write(path, frames)
    with pytest.raises(DataError, match=message) as caught:
        frames_of(str(path), "unused")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_and_names_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="evaluation.path"):
        frames_of(str(tmp_path / "missing.extxyz"), "unused")
    with pytest.raises(ConfigError, match="ammonia_inversion"):
        frames_of(None, "ammonia")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("known", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_the_figure_can_be_drawn_whatever_is_missing(known):
    x = np.linspace(0, 1, 9)
    profile = Profile(x, x * (1 - x), (x, x * (1 - x)), 0.1 + x, 0.25, True)
    model, oracle = (profile if there else None for there in known)
    values = np.full(9, np.nan) if not all(known) else x
    (content,) = render({"neb.png": drawing("a reaction", "a run", model, oracle, values)}).values()
    image = Image.open(io.BytesIO(content))
    assert np.asarray(image).std() > 5
