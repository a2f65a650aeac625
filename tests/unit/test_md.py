"""Langevin dynamics of many replicas: exact distributions, independence, neighbour lists, explosions."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from helpers import options, small_method
from scipy import stats

from uqbench.data import verlet
from uqbench.data.graph import GraphSet, neighbour_lists
from uqbench.data.structures import Structures
from uqbench.data.verlet import VerletList
from uqbench.errors import ConfigError, DataError
from uqbench.md.driver import Dynamics, ForceField, simulate
from uqbench.md.langevin import BAOAB, Noise, thermalise
from uqbench.md.limits import REASONS, Criteria, Limits, all_pairs
from uqbench.md.protocol import Protocol
from uqbench.md.state import State
from uqbench.uq.base import Prediction

pytestmark = pytest.mark.numerics

KT = units.kB * 300.0
LOOSE = {"max_distance": None, "bond_tolerance": 1.25, "bond_stretch": None}
LOOSE |= {"kinetic_alarm": 1e-12, "kinetic_excess": 1.0}


def frames_of(molecules, origin="toy") -> Structures:
    return Structures.from_arrays(
        np.concatenate([atoms.numbers for atoms in molecules]),
        np.concatenate([atoms.positions for atoms in molecules]),
        np.zeros(len(molecules)),
        np.zeros((sum(map(len, molecules)), 3)),
        np.cumsum([0, *map(len, molecules)]),
        origin=origin,
        cells=np.stack([np.asarray(atoms.cell) for atoms in molecules]),
        pbc=np.stack([atoms.pbc for atoms in molecules]),
    )


def state_of(molecules, kT=KT, ids=None) -> State:
    frames = frames_of(molecules)
    ids = np.arange(len(frames)) if ids is None else np.asarray(ids)
    return State.at_rest(frames, np.broadcast_to(kT, len(frames)), ids, "cpu")


def ammonia(distance=1.012, spread=0.0, seed=0) -> Atoms:
    angle = np.radians(112)
    turn = 2 * np.pi / 3 * np.arange(3)
    hydrogens = distance * np.column_stack([np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), [0.375] * 3])
    hydrogens *= distance / np.linalg.norm(hydrogens, axis=1, keepdims=True)
    positions = np.vstack([np.zeros(3), hydrogens])
    return Atoms("NH3", positions + np.random.default_rng(seed).normal(0, spread, (4, 3)))


# ---------------------------------------------------------------------------------------------- the integrator


@pytest.mark.parametrize("stiffness", [0.3, 1.0])  # (ω Δt)²
def test_baoab_samples_the_harmonic_oscillator_exactly(stiffness):
    """The variance of the positions is exact at any time step, that of the final velocities is too small by a known
    factor, and that in the middle of the step is exact."""
    state, n = state_of([Atoms(["Ar"] * 4000, [[9.0 * k, 0, 0] for k in range(4000)])]), 12000
    integrator = BAOAB(timestep=5.0, friction=40.0)
    mass = float(state.masses[0])
    spring = stiffness * mass / integrator.dt**2
    noise = Noise(0, [("test",)], state.n_atoms, "cpu")
    colder = 1 - stiffness / 4
    state.positions = noise() * np.sqrt(KT / spring)
    state.velocities = noise() * np.sqrt(colder * KT / mass)
    state.forces = -spring * state.positions
    found = []
    for step in range(450):
        integrator.drift(state, noise())
        integrator.kick(state, -spring * state.positions)
        if step % 30 == 29:
            positions, velocities = (values.square().mean().item() for values in (state.positions, state.velocities))
            found.append((spring * positions, mass * velocities, 2 / n * state.kinetic.item()))
    # Correlations in the friction time of 25 fs and the period are gone after 150 fs: 20 snapshots of n numbers.
    error = np.sqrt(2 / (n * len(found)))
    np.testing.assert_allclose(np.mean(found, axis=0) / KT, [1, colder, 1], atol=4 * error)
    assert 4 * error < 0.015 < stiffness / 4 / 2  # far below the effect of a wrong splitting


def springs(pairs, lengths, strength, quartic=0.0):
    """Forces of bonds k d²/2 + q d⁴/4, d the elongation."""

    def forces(positions: torch.Tensor) -> torch.Tensor:
        vectors = positions[pairs.second] - positions[pairs.first]
        distances = torch.linalg.vector_norm(vectors, dim=-1)
        stretch = distances - lengths
        pull = ((strength * stretch + quartic * stretch**3) / distances).unsqueeze(-1) * vectors
        return torch.zeros_like(positions).index_add(0, pairs.first, pull).index_add(0, pairs.second, -pull)

    return forces


@pytest.mark.slow
def test_the_mean_temperature_of_anharmonic_molecules_is_right_within_one_percent():
    n = 500
    state = state_of([ammonia(spread=0.03, seed=seed) for seed in range(2 * n)], units.kB * np.repeat([300, 900], n))
    one = state_of([ammonia()])
    forces = springs(all_pairs(state.ptr), all_pairs(one.ptr).distances(one.positions).repeat(2 * n), 20.0, 200.0)
    noise = Noise(1, [("test", k) for k in range(2 * n)], state.n_atoms, "cpu")
    thermalise(state, noise())
    state.forces = forces(state.positions)
    integrator = BAOAB(timestep=0.5, friction=100.0)  # the kinetic energy forgets within 20 steps
    kinetic = []
    for _ in range(500):
        integrator.drift(state, noise())
        integrator.kick(state, forces(state.positions))
        kinetic.append(state.kinetic)
    ratio = (torch.stack(kinetic[100:]).mean(0) / (6 * state.kT)).numpy()
    for own, tolerance in ((ratio[:n], 0.015), (ratio[n:], 0.015), (ratio, 0.01)):
        error = own.std(ddof=1) / np.sqrt(len(own))  # replicas are independent
        assert 3 * error < tolerance
        assert own.mean() == pytest.approx(1, abs=tolerance)


class Wells(Calculator):
    """Independent anharmonic wells, k x²/2 + q x⁴/4 for each coordinate."""

    implemented_properties = ["energy", "forces"]
    k, q = 0.4, 4.0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions
        self.results = {"energy": float(self.energies(x).sum()), "forces": -self.k * x - self.q * x**3}

    def energies(self, x):
        return (0.5 * self.k * x**2 + 0.25 * self.q * x**4).sum(-1)


@pytest.mark.slow
def test_the_energies_are_distributed_as_with_ases_langevin():
    n, steps, every = 500, 600, 60
    wells = Wells()
    atoms = Atoms("C" * n, np.zeros((n, 3)), calculator=wells)
    rng = np.random.default_rng(2)
    atoms.set_velocities(rng.normal(0, np.sqrt(KT / atoms.get_masses()[:, None]), (n, 3)))
    theirs, their_kinetic = [], []
    dynamics = Langevin(atoms, 1.0 * units.fs, temperature_K=300, friction=0.05 / units.fs, fixcm=False, rng=rng)
    for _ in range(steps // every):
        dynamics.run(every)
        theirs.append(wells.energies(atoms.positions))
        their_kinetic.append(0.5 * (atoms.get_masses()[:, None] * atoms.get_velocities() ** 2).sum(-1))
    state = state_of([Atoms("C")] * n)
    noise = Noise(3, [("test", k) for k in range(n)], state.n_atoms, "cpu")
    thermalise(state, noise())
    state.forces = torch.zeros_like(state.positions)  # at the bottom of the wells
    integrator = BAOAB(timestep=1.0, friction=50.0)
    ours, our_kinetic = [], []
    for step in range(1, steps + 1):
        integrator.drift(state, noise())
        x = state.positions
        integrator.kick(state, -wells.k * x - wells.q * x**3)
        if step % every == 0:
            ours.append(wells.energies(state.positions.numpy()))
            our_kinetic.append(state.kinetic.numpy())
    # The first of ten snapshots may still remember the start at the bottom of the wells.
    for one, other in ((ours, theirs), (our_kinetic, their_kinetic)):
        one, other = np.concatenate(one[1:]), np.concatenate(other[1:])
        assert stats.ks_2samp(one, other).pvalue > 0.01
        error = np.hypot(one.std(), other.std()) / np.sqrt(len(one))
        assert one.mean() == pytest.approx(other.mean(), abs=3 * error)
    error = np.sqrt(2 / 3 / (9 * n))
    for kinetic in (our_kinetic, their_kinetic):
        assert np.mean(kinetic[1:]) / (1.5 * KT) == pytest.approx(1, abs=3 * error)


@pytest.mark.parametrize("friction", [0.0, 10.0])
def test_energy_minus_heat_is_conserved(friction):
    state = state_of([ammonia(spread=0.02)])
    pairs = all_pairs(state.ptr)
    lengths = pairs.distances(state_of([ammonia()]).positions)
    forces = springs(pairs, lengths, 20.0)
    noise = Noise(0, [("test",)], state.n_atoms, "cpu")
    thermalise(state, noise())
    state.forces = forces(state.positions)
    integrator = BAOAB(timestep=0.1, friction=friction)
    energies, heat = [], []
    for _ in range(2000):
        integrator.drift(state, noise())
        integrator.kick(state, forces(state.positions))
        potential = (10.0 * (pairs.distances(state.positions) - lengths).square()).sum()
        heat.append(float(state.heat))
        energies.append(float(potential + state.kinetic_energy(state.velocities) - state.heat))
    assert np.ptp(energies) < 2e-3 * 6 * KT  # of order (ω Δt)²
    if friction:
        assert np.ptp(heat) > 0.1 * 6 * KT
    else:
        assert np.ptp(heat) == 0
        assert abs(np.polyfit(np.arange(2000) * 1e-4, energies, 1)[0] / 4) < 1e-5  # eV/atom/ps


def test_velocities_are_maxwellian_at_the_temperature_of_each_replica():
    state = state_of([ammonia()] * 3000, kT=units.kB * np.repeat([100.0, 1000.0, 3000.0], 1000))
    thermalise(state, Noise(0, [("v", k) for k in range(3000)], state.n_atoms, "cpu")())
    scaled = (state.velocities / state.thermal_speed).numpy()
    assert stats.kstest(scaled.ravel(), "norm").pvalue > 0.01
    ratio = (state.kinetic / (6 * state.kT)).reshape(3, 1000).mean(1)
    np.testing.assert_allclose(ratio, 1, atol=4 * np.sqrt(2 / 12 / 1000))


def test_noise_of_a_replica_depends_on_its_stream_alone(monkeypatch):
    counts = torch.tensor([4, 2, 9])
    together = Noise(0, [("a",), ("b",), ("c",)], counts, "cpu")
    drawn = [together() for _ in range(100)]
    monkeypatch.setattr("uqbench.md.langevin.BLOCK", 7)
    alone = Noise(0, [("c",)], counts[2:], "cpu")
    assert all(torch.equal(alone(), one[6:]) for one in drawn)
    leaving = Noise(0, [("a",), ("b",), ("c",)], counts, "cpu")
    for step, one in enumerate(drawn):
        if step == 40:
            leaving.select(torch.tensor([True, False, True]))
        assert torch.equal(leaving(), one if step < 40 else torch.cat([one[:4], one[6:]]))
    values = torch.stack(drawn).numpy().ravel()
    assert stats.kstest(values, "norm").pvalue > 0.01
    independent = 1 / np.sqrt(drawn[0].numel())  # standard deviation of their correlation
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 4 * independent


# ---------------------------------------------------------------------------------------------- pairs


def slab(rng) -> Atoms:
    """A slab of eight atoms, smaller than the cutoff."""
    grid = np.array([[i, j, k] for i in (0, 0.5) for j in (0, 0.5) for k in (0, 0.5)])
    atoms = Atoms("Si8", scaled_positions=grid, cell=[5.0, 5.4, 6.0], pbc=[True, True, False])
    atoms.positions += rng.normal(0, 0.1, (8, 3))
    return atoms


def chain(n: int) -> Atoms:
    return Atoms("C" * n, [[1.4 * k, 0.3 * (k % 2), 0] for k in range(n)])


def described(state, pairs, distances, replica):
    """Sorted distances with their atoms, whatever the order of pairs."""
    own = pairs.system == replica
    start = state.start[replica]
    atoms = torch.stack([pairs.first[own] - start, pairs.second[own] - start]).sort(dim=0).values
    return sorted(zip(*atoms.tolist(), distances[own].round(decimals=9).tolist(), strict=True))


def test_lists_with_a_skin_hold_exactly_the_pairs_within_the_cutoff(monkeypatch):
    molecules = [ammonia(), slab(np.random.default_rng(0)), chain(9), slab(np.random.default_rng(1))]
    state, cutoff = state_of(molecules), 4.0
    searched, search = [], verlet.pairs_within

    def noted(reach, coordinates, systems=None, **rest):
        searched.append(set() if systems is None else set(systems.tolist()))
        return search(reach, coordinates, systems, **rest)

    monkeypatch.setattr(verlet, "pairs_within", noted)
    lists = VerletList(cutoff, state.coordinates, skin=0.8)
    rng = np.random.default_rng(3)
    velocity = torch.as_tensor(rng.normal(0, 0.05, state.positions.shape))
    velocity[state.system == 3] = 0.0
    for step in range(60):
        state.positions = state.positions + velocity
        if step == 30:
            keep = torch.tensor([True, True, False, True])
            lists.select(keep)
            searched_before = len(searched)
            velocity = velocity[keep[state.system]]
            state = state.select(keep)
        pairs, distances = lists.near(state.positions)
        frames = Structures(
            numbers=state.numbers.numpy(), positions=state.positions.numpy(), cells=state.cells.numpy(),
            pbc=state.pbc.numpy(), ptr=state.ptr.numpy(), ids=state.ids.numpy(), origin="fresh",
        )  # fmt: skip
        first, second, shifts, ptr = neighbour_lists(frames, cutoff)
        for replica in range(len(state)):
            rows, start = slice(ptr[replica], ptr[replica + 1]), int(state.start[replica])
            x = state.positions.numpy()[start:]
            lengths = np.linalg.norm(x[second[rows]] + shifts[rows] - x[first[rows]], axis=1).round(9)
            atoms = np.sort([first[rows], second[rows]], axis=0)
            expected = sorted(zip(*atoms.tolist(), lengths.tolist(), strict=True))
            found = described(state, pairs, distances, replica)
            assert [row[:2] for row in found] == [row[:2] for row in expected]
            np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=1e-8)
    assert 1 < len(searched) < 61
    # Neither the small molecule, all pairs of which were listed at once, nor the atoms that did not move.
    assert set.union(*searched[1:searched_before]) == {1, 2}


@pytest.mark.parametrize("backbone", options("backbone"))
def test_forces_are_those_of_fresh_neighbour_lists(backbone, ethanol):
    """Whatever a backbone does beyond its cutoff: it never sees a pair from the skin."""
    far = chain(7)
    far.numbers[:] = [6, 1, 8, 6, 1, 8, 6]
    frames = Structures.concatenate([ethanol[:2], frames_of([far])])
    method = small_method(frames, backbone, "deterministic").eval()
    state = State.at_rest(frames, np.full(3, KT), np.arange(3), "cpu")
    # Untrained forces are strong: no limits here.
    dynamics = running(state, method.predict, 5.0, skin=3.0, min_distance=0.01, bond_stretch=None, kinetic_alarm=1e-300)
    seen = Trace()
    dynamics.run(2, seen)
    assert not seen.ends
    cutoff = method.potential.backbone.cutoff
    last = {**vars(frames), "positions": seen.steps[-1][1].positions.numpy()}
    graphs = GraphSet(Structures(**last), cutoff, dtype=torch.float64)
    expected = method.predict(graphs.batch([0, 1, 2]))
    assert len(graphs.batch([2]).first) < 21  # some pairs lie in the skin
    torch.testing.assert_close(seen.steps[-1][2].forces, expected.forces, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(seen.steps[-1][2].energy, expected.energy, rtol=1e-12, atol=1e-9)


# ---------------------------------------------------------------------------------------------- dynamics


class Trace:
    """Keeps everything that an observer sees."""

    def __init__(self) -> None:
        self.steps, self.ends = [], {}

    def observe(self, step, state, prediction):
        everyone = torch.ones_like(state.ids, dtype=torch.bool)
        self.steps.append((step, state.select(everyone), prediction))

    def exploded(self, step, reason, state, prediction):
        self.ends[int(state.ids[0])] = step, reason, state, prediction

    def positions(self, replica: int) -> list[torch.Tensor]:
        return [
            state.positions[state.system == int(place)]
            for _, state, _ in self.steps
            for place in (state.ids == replica).nonzero().flatten()
        ]


def toy(batch) -> Prediction:
    """Springs between near atoms, which snap at the cutoff, and a repulsion around lithium."""
    vectors = batch.positions[batch.second] - batch.positions[batch.first] + batch.shifts
    distances = torch.linalg.vector_norm(vectors, dim=-1)
    stretch = distances - 1.3
    repelled = (batch.numbers[batch.first] == 3) | (batch.numbers[batch.second] == 3)
    energies = torch.where(repelled, -4.0 * distances, 1.25 * stretch**2)
    pull = torch.where(repelled, -4.0, 2.5 * stretch) / distances
    pull = pull.unsqueeze(-1) * vectors
    forces = torch.zeros_like(batch.positions).index_add(0, batch.first, pull).index_add(0, batch.second, -pull)
    energy = torch.zeros(len(batch), dtype=torch.float64)
    energy.index_add_(0, batch.system[batch.first], energies.double())
    score = distances.new_zeros(len(batch.numbers)).index_add(0, batch.first, distances)
    return Prediction(energy, forces, None, None, score, energy)


def running(state, predict=toy, cutoff=2.0, skin=1.0, seed=0, dtype=torch.float64, **limits) -> Dynamics:
    streams = [("noise", int(number)) for number in state.ids]
    velocities = Noise(seed, [("velocities", int(number)) for number in state.ids], state.n_atoms, "cpu")
    thermalise(state, velocities())
    protocol = protocol_of(skin=skin, limits=Limits(**{**LOOSE, "min_distance": 0.3, "bond_stretch": 1.6, **limits}))
    noise = Noise(seed, streams, state.n_atoms, "cpu")
    return Dynamics(state, ForceField(predict, dtype, "cpu", cutoff), protocol, noise)


def protocol_of(**changes) -> Protocol:
    settings = {"timestep_fs": 0.5, "friction_per_ps": 10.0, "duration_ps": 0.1, "equilibration_ps": 0.0, "skin": 1.0}
    settings |= {"record_every": 1, "batch_size": 1000, "limits": Limits(**LOOSE, min_distance=0.3)}
    return Protocol(**{**settings, **changes})


def lithium() -> Atoms:
    return Atoms("LiHH", [[0, 0, 0], [1.6, 0, 0], [0, 1.6, 0]])


def test_a_trajectory_is_the_same_to_the_last_bit_in_any_company():
    molecules = {0: chain(3), 1: lithium(), 2: chain(6), 3: chain(3), 4: lithium()}
    traces = {}
    for company in ([0, 1, 2, 3, 4], [0], [2, 3], [4, 3, 0], [1, 0]):
        traces[tuple(company)] = trace = Trace()
        running(state_of([molecules[k] for k in company], ids=company)).run(200, trace)
        assert sorted(trace.ends) == sorted(set(company) & {1, 4})
        assert all(end[0] < 200 for end in trace.ends.values())
    everyone = traces.pop((0, 1, 2, 3, 4))
    for company, trace in traces.items():
        for replica in company:
            ours, theirs = trace.positions(replica), everyone.positions(replica)
            assert len(ours) == len(theirs) and len(ours) > 1
            assert all(map(torch.equal, ours, theirs)), (company, replica)
    assert not torch.equal(everyone.positions(0)[-1], everyone.positions(3)[-1])
    other = Trace()
    running(state_of([chain(3)]), seed=1).run(5, other)
    assert not torch.equal(other.positions(0)[5], everyone.positions(0)[5])


def test_the_skin_does_not_change_the_trajectory():
    found = []
    for skin in (0.05, 2.0):
        found.append(Trace())
        running(state_of([chain(9)], ids=[0]), skin=skin).run(120, found[-1])
    one, other = (trace.positions(0)[-1] for trace in found)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_a_network_in_single_precision_follows_closely_in_any_company(ethanol):
    """What holds for a network: the same noise, and forces equal to rounding."""
    method = small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 2}).to(torch.float32).eval()

    def trace_of(company):
        state = State.at_rest(ethanol[company], np.full(len(company), KT), np.array(company), "cpu")
        trace = Trace()
        running(state, method.predict, 5.0, dtype=torch.float32).run(20, trace)
        return trace

    alone, together = trace_of([5]), trace_of([0, 5, 9, 11])
    for one, other in zip(alone.positions(5), together.positions(5), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_positions_far_from_the_origin_lose_no_precision(ethanol):
    method = small_method(ethanol, "painn_small", "deterministic").to(torch.float32).eval()
    forces = []
    for shift in (0.0, 4096.0):
        state = State.at_rest(ethanol[:1], np.array([KT]), np.array([0]), "cpu")
        state.positions = state.positions + shift
        trace = Trace()
        running(state, method.predict, 5.0, dtype=torch.float32).run(1, trace)
        forces.append(trace.steps[0][2].forces)
    torch.testing.assert_close(*forces, rtol=1e-5, atol=1e-6)


def test_exploded_replicas_leave_at_their_step_and_are_seen_once():
    trace = Trace()
    running(state_of([chain(3), lithium()]), kinetic_alarm=1e-50).run(300, trace)
    step, reason, state, prediction = trace.ends[1]
    assert reason == "bond_stretch" and 0 < step < 300
    longest = torch.linalg.vector_norm(state.positions[1:] - state.positions[0], dim=-1).max()
    assert longest >= 1.6 * (1.28 + 0.31)
    before = trace.positions(1)[-1]
    assert torch.linalg.vector_norm(before[1:] - before[0], dim=-1).max() < 1.6 * (1.28 + 0.31)
    assert [len(state) for _, state, _ in trace.steps] == [2] * step + [1] * (301 - step)
    assert prediction is not None and prediction.forces.shape == (3, 3)


def test_nothing_is_left_to_do_when_all_have_exploded():
    trace = Trace()
    running(state_of([lithium(), lithium()])).run(2_000, trace)
    assert set(trace.ends) == {0, 1}
    assert len(trace.steps) == max(end[0] for end in trace.ends.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e12])
def test_forces_beyond_reason_end_one_replica_only(bad):
    def predict(batch):
        found = toy(batch)
        cursed = (batch.numbers == 3)[:, None] & torch.tensor([True, False, False])
        found.forces[cursed] = bad
        return found

    glass = slab(np.random.default_rng(0))
    glass.numbers[0] = 3
    trace, quiet = Trace(), Trace()
    running(state_of([chain(2), glass, lithium()]), predict, 5.0, bond_stretch=None).run(10, trace)
    assert {k: end[:2] for k, end in trace.ends.items()} == {
        k: (1, "kinetic_energy" if np.isfinite(bad) else "not_finite") for k in (1, 2)
    }
    running(state_of([chain(2)]), predict, 5.0, bond_stretch=None).run(10, quiet)
    assert torch.equal(trace.positions(0)[-1], quiet.positions(0)[-1])


# ---------------------------------------------------------------------------------------------- protocols


def test_a_protocol_counts_whole_steps():
    protocol = protocol_of(duration_ps=0.1, timestep_fs=0.3, equilibration_ps=0.02, record_every=10)
    assert protocol.steps == 333 and protocol.duration == pytest.approx(0.0999)
    assert [step for step in range(334) if protocol.records(step)] == list(range(0, 334, 10))
    # The first 67 steps are equilibration, and the start never counts.
    assert [step for step in range(334) if protocol.analyses(step)] == list(range(70, 334, 10))
    assert not protocol_of().analyses(0) and protocol_of().analyses(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record_every": 201}, "duration_ps: 0.1 ps are 200 steps of 0.5 fs, fewer than record_every (201)"),
        (
            {"equilibration_ps": 0.1},
            "equilibration_ps: 0.1 ps of 0.1 ps leave no frame to analyse, one in 1 steps of 0.5 fs",
        ),
    ],
)
def test_protocols_that_make_no_sense_are_refused(change, message):
    assert list(Protocol.contradictions(**dataclasses.asdict(protocol_of(**change)))) == [message]


def test_equilibration_may_last_until_the_last_record():
    assert protocol_of(equilibration_ps=0.0994, record_every=100).analyses(200)
    late = protocol_of(equilibration_ps=0.08, record_every=150)  # 160 steps, and the last record is that of 150
    assert "equilibration_ps" in next(Protocol.contradictions(**dataclasses.asdict(late)))


def test_replicas_are_simulated_in_batches_of_the_protocol():
    """Whatever runs at once: each replica has its own temperature, streams, and a number that it keeps."""
    frames = frames_of([chain(3), lithium(), chain(6), chain(3), lithium()])
    streams, temperatures = [(k, "replica") for k in range(5)], np.array([300.0, 300.0, 900.0, 300.0, 100.0])
    limits = Limits(**{**LOOSE, "bond_stretch": 1.6, "min_distance": 0.3})

    def trace_of(batch_size, rows=slice(None)):
        trace = Trace()
        simulate(
            frames[rows],
            temperatures[rows],
            streams[rows],
            force_field=ForceField(toy, torch.float64, "cpu", 2.0),
            protocol=protocol_of(batch_size=batch_size, limits=limits),
            seed=0,
            observer=trace,
        )
        return trace

    together, parts, alone = trace_of(5), trace_of(2), trace_of(1, slice(2, 3))
    assert sorted(together.ends) == sorted(parts.ends) == [1, 4]
    assert [step for step, _, _ in parts.steps].count(0) == 3
    for replica in range(5):
        assert all(map(torch.equal, together.positions(replica), parts.positions(replica)))
    assert all(map(torch.equal, together.positions(2), alone.positions(0)))


def test_atoms_that_could_come_too_near_unseen_are_refused():
    with pytest.raises(ConfigError, match=r"limits.min_distance: must be below the cutoff .* \(2.0 Å\), got 2.0"):
        simulate(
            frames_of([chain(3)]),
            np.array([300.0]),
            [("only",)],
            force_field=ForceField(toy, torch.float64, "cpu", 2.0),
            protocol=protocol_of(limits=Limits(**LOOSE, min_distance=2.0)),
            seed=0,
            observer=Trace(),
        )


# ---------------------------------------------------------------------------------------------- explosions


def codes_at(limits, start, now, speed=1.0):
    """What the criteria say of one replica that moved from one geometry to another."""
    state = state_of([start])
    criteria, lists = Criteria(limits, state), VerletList(5.0, state.coordinates, skin=1.0)
    state.positions = torch.as_tensor(now.positions)
    state.kinetic = speed * 1.5 * len(start) * state.kT
    codes = criteria.motion(state)
    if not codes.any():
        codes = criteria.geometry(state, *lists.near(state.positions))
    return "" if codes[0] == 0 else REASONS[int(codes[0]) - 1]


def test_every_criterion_fires_at_its_limit_and_not_before():
    study = Limits(**{**LOOSE, "min_distance": 0.75, "max_distance": 2.25})
    start = ammonia()

    def moved(distance):
        atoms = start.copy()
        atoms.positions[1] *= distance / np.linalg.norm(atoms.positions[1])
        return atoms

    assert codes_at(study, start, start) == ""
    assert codes_at(study, start, moved(0.76)) == ""
    assert codes_at(study, start, moved(0.75 - 1e-9)) == "min_distance"
    apart = moved(1.6)
    widest = apart.get_all_distances().max()
    assert widest < 2.25 and codes_at(study, start, apart) == ""
    apart = moved(1.75)
    assert apart.get_all_distances().max() >= 2.25 and apart.get_all_distances()[0].max() < 2.25  # H-H, not N-H
    assert codes_at(study, start, apart) == "max_distance"
    bonds = Limits(**{**LOOSE, "min_distance": 0.5, "bond_stretch": 1.5})
    limit = 1.5 * (0.71 + 0.31)
    assert codes_at(bonds, start, moved(limit - 1e-6)) == ""
    assert codes_at(bonds, start, moved(limit + 1e-6)) == "bond_stretch"
    broken = start.copy()
    broken.positions[2, 0] = np.nan
    assert codes_at(study, start, broken) == "not_finite"


def test_bonds_across_a_periodic_boundary_are_followed():
    start = Atoms("SiO", [[0.2, 2, 2], [3.8, 2, 2]], cell=[5, 5, 5], pbc=True)
    limits = Limits(**{**LOOSE, "min_distance": 0.5, "bond_stretch": 1.5})
    now = start.copy()
    now.positions[1, 0] -= 0.3  # nearer within the cell, farther across the face: 1.7 Å
    assert codes_at(limits, start, now) == ""
    now.positions[1, 0] = 2.4
    assert codes_at(limits, start, now) == "bond_stretch"


@pytest.mark.parametrize(("n_atoms", "temperature"), [(1, 300.0), (4, 300.0), (4, 3000.0), (21, 500.0)])
def test_the_kinetic_alarm_is_false_as_often_as_it_says(n_atoms, temperature):
    n, alarm = 20_000, 1e-3
    limits = Limits(**{**LOOSE, "min_distance": 0.3, "kinetic_alarm": alarm})
    state = State.at_rest(frames_of([chain(n_atoms)] * n), np.full(n, units.kB * temperature), np.arange(n), "cpu")
    thermalise(state, torch.as_tensor(np.random.default_rng(0).standard_normal((n * n_atoms, 3))))
    count = int((Criteria(limits, state).motion(state) > 0).sum())
    low, high = stats.binom(n, alarm).ppf([1e-4, 1 - 1e-4])
    assert low <= count <= high
    assert codes_at(limits, chain(n_atoms), chain(n_atoms), speed=0.99 * bound(n_atoms, alarm)) == ""
    assert codes_at(limits, chain(n_atoms), chain(n_atoms), speed=1.01 * bound(n_atoms, alarm)) == "kinetic_energy"


def test_many_atoms_may_be_hot_for_a_while_and_few_fluctuate_more():
    """Of 200 atoms 1.5 times the temperature is beyond chance, of 4 atoms 6 times is not."""
    for n_atoms, excess in ((200, 4.0), (4, 4.0)):
        limits = Limits(**{**LOOSE, "min_distance": 0.3, "kinetic_excess": excess})
        most = max(excess, bound(n_atoms, 1e-12))
        assert codes_at(limits, chain(n_atoms), chain(n_atoms), speed=0.99 * most) == ""
        assert codes_at(limits, chain(n_atoms), chain(n_atoms), speed=1.01 * most) == "kinetic_energy"
    assert bound(200, 1e-12) < 1.5 and bound(4, 1e-12) > 6


def bound(n_atoms: int, alarm: float) -> float:
    """Highest kinetic temperature in units of the thermostat's."""
    return stats.chi2(3 * n_atoms).isf(alarm) / (3 * n_atoms)


def test_starts_outside_of_the_limits_are_named():
    frames = frames_of([ammonia(), ammonia(1.3)], origin="file.xyz")
    fine = {"bond_tolerance": 1.25, "bond_stretch": None, "kinetic_alarm": 1e-12, "kinetic_excess": 1.0}
    Limits(min_distance=0.75, max_distance=2.25, **fine).check_start(frames, "test")
    with pytest.raises(DataError, match=r"max_distance: 2.0 Å .* frame 1 of split 'test' atoms 1 and 2 are 2\.\d+ Å"):
        Limits(min_distance=0.75, max_distance=2.0, **fine).check_start(frames, "test")
    with pytest.raises(DataError, match=r"min_distance: 1.1 Å .* frame 0 .* atoms 0 and 1 are 1.012 Å"):
        Limits(min_distance=1.1, max_distance=None, **fine).check_start(frames, "test")
    periodic = frames_of([slab(np.random.default_rng(0))])
    with pytest.raises(DataError, match="frame 0 of toy is periodic"):
        Limits(min_distance=0.75, max_distance=2.25, **fine).check_start(periodic, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_distance": 0.5}, "max_distance: expected a number > min_distance (0.75 Å) or null, got 0.5"),
        ({"bond_stretch": 1.2}, "bond_stretch: expected a number > bond_tolerance (1.25)"),
    ],
)
def test_limits_that_make_no_sense_are_refused(change, message):
    sound = {"min_distance": 0.75, "max_distance": 2.25, "bond_tolerance": 1.25, "bond_stretch": 1.5}
    assert list(Limits.contradictions(**sound)) == []
    [line] = Limits.contradictions(**sound | change)
    assert line.startswith(message)
