"""Oracles: labels are those of the engine, nothing is computed twice, and no misbehaviour stops the rest."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from helpers import CONF
from omegaconf import OmegaConf
from toy_calculators import CRASH, EXCEPTION, EXIT, HANG, NOT_FINITE, QUIT, children

from uqbench import config
from uqbench.errors import ConfigError, DataError, OracleError
from uqbench.oracles import cluster, pool
from uqbench.oracles.base import Failure, Label

REPOSITORY = CONF.parent


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("UQBENCH_TRUSTED", "toy_calculators ase.calculators")


@pytest.fixture
def oracle(tmp_path):
    """Build oracles as configs do, with a cache of their own; all are closed at the end."""
    made = []

    def make(option, **changes):
        node = OmegaConf.load(CONF / "oracle" / f"{option}.yaml")
        cfg = OmegaConf.create({"oracle": {key: node._get_node(key) for key in node if key != "defaults"}})
        given = {"workers": 1, "retries": 0, "cache": str(tmp_path / "cache")} if "cache" in node else {}
        for key, value in (given | changes).items():
            cfg.oracle[key] = value
        made.append(config.build(cfg.oracle))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def springs(oracle, tmp_path):
    """Oracles of toy springs, and how often those have computed."""

    def make(k=2.0, seconds=0.0, **changes):
        arguments = {"k": k, "log": str(tmp_path / "log"), "seconds": seconds}
        return oracle("ase", calculator="toy_calculators.Springs", arguments=arguments, **changes)

    make.count = lambda: len((tmp_path / "log").read_text().splitlines()) if (tmp_path / "log").exists() else 0
    return make


def dimers(*numbers):
    """Different geometries of two atoms each; the toy calculator does what the first number says."""
    return [Atoms([number, 1], [[0, 0, 0], [0.1 * i, 0, 1.0]]) for i, number in enumerate(numbers)]


def rattled(n):
    frames = [molecule("NH3") for _ in range(n)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return frames


def test_labels_come_in_order_from_several_workers_without_torch(springs, tmp_path):
    frames = dimers(*[7] * 9)
    labels = springs(workers=2, seconds=0.05).label(frames)
    for atoms, label in zip(frames, labels.outcomes, strict=True):
        assert label.energy == pytest.approx((atoms.positions**2).sum(), rel=1e-12)
        np.testing.assert_allclose(label.forces, -2.0 * atoms.positions)
        assert label.forces.dtype == np.float64
    processes = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len({pid for pid, *_ in processes}) == 2 and str(os.getpid()) not in {pid for pid, *_ in processes}
    assert {torch for _, torch, _ in processes} == {"False"}
    structures = labels.structures("toys")
    np.testing.assert_array_equal(structures.energies, [label.energy for label in labels.outcomes])
    np.testing.assert_array_equal(structures.positions[2:4], frames[1].positions)


def test_a_geometry_is_computed_once_whatever_else_its_atoms_carry(springs):
    first, second = dimers(7, 7)
    twin = first.copy()
    twin.positions += 1e-10  # below what the cache tells apart
    twin.set_constraint(FixAtoms([0, 1]))
    twin.info["name"], twin.cell = "twin", [5, 5, 5]
    labels = springs().label([first, second, twin, first])
    assert springs.count() == labels.computed == 2
    assert labels.outcomes[0].energy == labels.outcomes[2].energy == labels.outcomes[3].energy
    assert np.abs(labels.outcomes[2].forces).max() > 1  # constraints must not zero the forces
    again = springs().label([second, first])
    assert again.computed == 0 and springs.count() == 2
    assert again.outcomes[0].energy == labels.outcomes[1].energy
    np.testing.assert_array_equal(again.outcomes[1].forces, labels.outcomes[0].forces)


def test_other_settings_or_geometries_are_other_labels(springs):
    (frame,) = dimers(7)
    moved, periodic = frame.copy(), frame.copy()
    moved.positions[1, 2] += 1e-7
    periodic.pbc, periodic.cell = True, [9, 9, 9]
    energy = springs().label([frame]).outcomes[0].energy
    assert springs(k=4.0).label([frame]).outcomes[0].energy == pytest.approx(2 * energy)
    assert springs().label([moved, periodic]).computed == 2
    assert springs(revision="new files").label([frame]).computed == 1
    assert springs(k=2).label([frame]).computed == 0  # 2 is 2.0
    assert springs.count() == 5


def test_misdeeds_are_recorded_and_the_others_labelled(springs):
    frames = dimers(7, CRASH, 7, EXCEPTION, EXIT, 7, NOT_FINITE, QUIT, 7, HANG, 7)
    coincident, lost = Atoms("N2", [[0, 0, 0], [0, 0, 0.1]]), Atoms("N2", [[0, 0, 0], [0, 0, np.nan]])
    across = Atoms("N2", [[0, 0, 0.05], [0, 0, 4.9]], cell=[5, 5, 5], pbc=True)
    labels = springs(workers=2, timeout_s=3.0).label([*frames, coincident, lost, across, Atoms()])
    reasons = labels.failures
    assert labels.labelled == [0, 2, 5, 8, 10]
    for i in labels.labelled:
        assert labels.outcomes[i].energy == pytest.approx((frames[i].positions ** 2).sum())
    assert "crash" in reasons[1] and "SIGSEGV" in reasons[1]
    assert reasons[3] == "RuntimeError: the SCF did not converge"
    assert "exit code 3" in reasons[4] and "out of luck" in reasons[4]
    assert "not finite" in reasons[6] and "not finite" in reasons[12]
    assert "exit code 0" in reasons[7]
    assert reasons[9] == "timeout: not done after 3 s"
    assert "atoms 0 and 1 are closer" in reasons[11] and "atoms 0 and 1 are closer" in reasons[13]
    assert "no atoms" in reasons[14]
    assert all(isinstance(outcome, Label | Failure) for outcome in labels.outcomes)
    count = springs.count()
    again = springs().label(frames[:1] + frames[3:4])  # labels are kept, failures are not
    assert again.labelled == [0] and again.computed == 0 and springs.count() == count + 1


def test_a_worker_killed_while_idle_harms_nobody(springs, started):
    one = springs()
    first, second = dimers(7, 7)
    one.label([first])
    (worker,) = started()
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.2)
    assert one.label([second]).labelled == [0]


def test_a_worker_killed_at_work_costs_its_geometry_only(springs, tmp_path):
    def kill_one():
        while len(at_work := working(tmp_path / "log")) < 2:
            time.sleep(0.01)
        os.kill(at_work[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    labels = springs(workers=2, seconds=0.5).label(dimers(*[7] * 5))
    killer.join()
    ((lost, reason),) = labels.failures.items()
    assert "SIGKILL" in reason
    assert labels.labelled == [k for k in range(5) if k != lost]


def working(log):
    """The processes that have begun to calculate, in this order."""
    return list(dict.fromkeys(int(line.split()[0]) for line in log.read_text().splitlines())) if log.exists() else []


def test_a_worker_killed_while_it_starts_costs_its_geometry_only_if_another_has_started(springs, tmp_path, started):
    """Where none has, nothing says that one ever will."""

    def kill_new(known):
        while not (new := set(started()) - known):
            time.sleep(0.001)
        os.kill(new.pop(), signal.SIGKILL)

    one = springs(workers=2, seconds=0.5)
    frames = dimers(*[7] * 4)
    killer = threading.Thread(target=kill_new, args=(set(),))
    killer.start()
    with pytest.raises(OracleError, match="SIGKILL before it had started"):
        one.label(frames[:1])
    killer.join()
    one.label(frames[:1])
    killer = threading.Thread(target=kill_new, args=(set(started()),))
    killer.start()
    labels = one.label(frames)
    killer.join()
    ((lost, reason),) = labels.failures.items()
    assert lost in (1, 2) and "SIGKILL before it had started" in reason
    assert labels.labelled == [k for k in range(4) if k != lost]


def test_hanging_workers_end_at_once_and_with_the_programs_that_they_started(springs, started):
    one = springs(workers=2, timeout_s=4.0)
    one.label(dimers(7, 7, 7))
    hanging = []

    def collect():
        while len(hanging) < 4:
            hanging[:] = started()
            time.sleep(0.05)

    threading.Thread(target=collect, daemon=True).start()
    start = time.monotonic()
    labels = one.label(dimers(HANG, HANG))
    assert time.monotonic() - start < 7.0, "one after the other"
    assert set(labels.failures.values()) == {"timeout: not done after 4 s"}
    assert len(hanging) == 4
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in hanging):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("threads", [1, 3])
def test_workers_have_the_threads_that_they_are_given_and_this_process_keeps_its_own(oracle, threads):
    before = dict(os.environ)
    (label,) = oracle("ase", calculator="toy_calculators.Threads", threads=threads).label(dimers(7)).outcomes
    np.testing.assert_array_equal(label.forces, np.full((2, 3), threads))
    assert dict(os.environ) == before


def test_closing_ends_all_processes(springs, started):
    one = springs(workers=2, timeout_s=2.0)
    one.label(dimers(7, HANG, 7, 7))
    assert started()
    one.close()
    assert started() == []
    assert one.label(dimers(7, 7, 7, 7)[1:2]).computed == 1  # and it opens again


SCRIPT = """
import sys
from toy_calculators import HANG
from ase import Atoms
from uqbench.oracles.ase import ASE
arguments = {"k": 2.0, "log": sys.argv[2], "seconds": float(sys.argv[3])}
oracle = ASE(calculator="toy_calculators.Springs", arguments=arguments, revision=None, executor="local", workers=2,
             threads=1, timeout_s=100.0, memory_gb=None, retries=0, max_failed=1.0, cache=sys.argv[1])
first = int(sys.argv[4])
frames = [Atoms([first, 1], [[0, 0, 0], [0.1 * i, 0, 1.0]]) for i in range(12)]
labels = oracle.label(frames)
print(labels.computed, sum(label.energy for label in labels.outcomes))
"""


def launch(tmp_path, seconds, number, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    line = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache"), str(tmp_path / "log"), str(seconds), str(number)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True, **options)


def test_a_script_is_not_run_again_in_its_workers(springs, tmp_path):
    """Though it has no `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    line = [sys.executable, script, tmp_path / "cache", tmp_path / "log", "0.0", "7"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1 and done.stdout.split()[0] == "12" and springs.count() == 12


def test_two_processes_share_the_work(springs, tmp_path):
    both = [launch(tmp_path, 0.1, 7) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].split() for process in both]
    assert springs.count() == 12  # nothing twice
    assert sum(int(computed) for computed, _ in answers) == 12
    expected = sum(1 + 0.01 * i**2 for i in range(12))
    assert [float(total) for _, total in answers] == pytest.approx([expected] * 2)
    assert not list((tmp_path / "cache").rglob("*.lock")) and not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for orphans in /proc")
def test_no_orphans_however_the_parent_ends(springs, tmp_path, how):
    process = launch(tmp_path, 0.0, HANG, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(found := children(process.pid)) < 4 and time.monotonic() < deadline:  # two workers and what they started
        time.sleep(0.1)
    assert len(found) == 4
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode != 0
    while (left := [pid for pid in found if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_damaged_files_are_labelled_again(springs, tmp_path, caplog):
    (frame, other) = dimers(7, 7)
    one = springs()
    before = one.label([frame]).outcomes[0]
    (path,) = (tmp_path / "cache").rglob("*.json")
    one.label([other])
    (foreign,) = set((tmp_path / "cache").rglob("*.json")) - {path}
    text = path.read_text()
    record = json.loads(text)
    damages = [text[: len(text) // 2], "", "[]", "{}", json.dumps(record | {"energy": 5.0}), foreign.read_text()]
    damages += [text.replace("-2.0", "-3.0"), json.dumps(record | {"forces": "none"})]
    for damage in [*(damage.encode() for damage in damages), b"\xff\xfe\x00"]:
        assert damage != text.encode()
        path.write_bytes(damage)
        caplog.clear()
        count = springs.count()
        after = one.label([frame])
        assert after.computed == 1 and springs.count() == count + 1, damage
        assert after.outcomes[0].energy == before.energy and "damaged" in caplog.text
        assert path.read_text() == text


def test_an_oracle_that_cannot_work_says_so_in_one_line(springs, oracle, tmp_path, monkeypatch):
    frames = dimers(7)
    with pytest.raises(ConfigError, match="has no 'Sprigns'"):
        oracle("ase", calculator="toy_calculators.Sprigns").label(frames)
    with pytest.raises(ConfigError, match="oracle.arguments"):
        oracle("ase", calculator="toy_calculators.Springs", arguments={"spring": 1}).label(frames)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        springs(cache=str(tmp_path / "file")).label(frames)
    with pytest.raises(DataError, match="no frame could be labelled: RuntimeError"):
        springs().label(dimers(EXCEPTION)).structures("attack")
    monkeypatch.setenv("UQBENCH_TRUSTED", "")
    with pytest.raises(ConfigError, match="not trusted"):
        oracle("ase", calculator="ase.calculators.lj.LennardJones")


def test_any_calculator_of_ase(oracle):
    frames = rattled(2)
    labels = oracle("ase", calculator="ase.calculators.lj.LennardJones", arguments={"sigma": 0.8}).label(frames)
    for atoms, label in zip(frames, labels.outcomes, strict=True):
        atoms.positions = np.round(atoms.positions, 8)
        atoms.calc = LennardJones(sigma=0.8)
        assert label.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
        np.testing.assert_allclose(label.forces, atoms.get_forces(), rtol=1e-9)


DIRECT = """
import json, sys
from ase import Atoms
from tblite.ase import TBLite
atoms = Atoms("NH3", json.loads(sys.argv[1]))
atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.01, electronic_temperature=300.0, verbosity=0)
print(json.dumps([atoms.get_potential_energy(), atoms.get_forces().tolist()]))
"""


def central_differences(oracle, atoms, step):
    """Forces from the energies of displaced geometries."""
    displaced = []
    for i in range(3 * len(atoms)):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.flat[i] += sign * step
            displaced.append(moved)
    energies = np.array([label.energy for label in oracle.label(displaced).outcomes]).reshape(-1, 2)
    return -np.diff(energies[:, ::-1]).reshape(-1, 3) / (2 * step)


def test_xtb_is_tblite_with_forces_that_are_derivatives(oracle):
    pytest.importorskip("tblite", reason="tblite is not installed")
    (atoms,) = rattled(1)
    one = oracle("xtb")
    (label,) = one.label([atoms]).outcomes
    argument = json.dumps(np.round(atoms.positions, 8).tolist())
    done = subprocess.run([sys.executable, "-c", DIRECT, argument], capture_output=True, text=True, check=True)
    energy, forces = json.loads(done.stdout.splitlines()[-1])
    assert label.energy == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(label.forces, forces, atol=1e-8)
    np.testing.assert_allclose(label.forces, central_differences(one, atoms, 1e-3), atol=2e-5)
    assert np.abs(label.forces).max() > 0.5
    assert oracle("xtb", charge=1, multiplicity=2).label([atoms]).outcomes[0].energy > energy + 5
    assert "CalculationFailed" in oracle("xtb", max_iterations=1).label([atoms]).failures[0]


@pytest.mark.slow
def test_dft_is_pyscf_with_forces_that_are_derivatives(oracle):
    dft = pytest.importorskip("pyscf.dft", reason="pyscf is not installed")
    pytest.importorskip("pyscf.dispersion", reason="pyscf-dispersion is not installed")
    from pyscf import gto

    atoms = molecule("NH3")
    atoms.rattle(0.05, seed=0)
    atoms.positions = np.round(atoms.positions, 6)
    one = oracle("dft", workers=2)
    (label,) = one.label([atoms]).outcomes
    geometry = "; ".join(
        f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
    )
    field = dft.RKS(gto.M(atom=geometry, unit="Angstrom", basis="def2-svp", verbose=0), xc="bp86")
    field = field.density_fit(auxbasis="def2-universal-jfit")
    field.disp, field.grids.level, field.conv_tol = "d3bj", 3, 1e-10
    energy = field.kernel() * 27.211386245988
    assert label.energy == pytest.approx(energy, abs=1e-4)  # the constants differ in the ninth digit
    theirs = -field.nuc_grad_method().kernel() * 27.211386245988 / 0.529177210903
    np.testing.assert_allclose(label.forces, theirs, atol=1e-4)
    # The integration grid moves with the atoms: PySCF's own forces are off by this much, on finer grids too.
    for direction in np.random.default_rng(0).standard_normal((2, 4, 3)):
        direction /= np.linalg.norm(direction)
        ends = [atoms.copy(), atoms.copy()]
        for moved, step in zip(ends, (5e-4, -5e-4), strict=True):
            moved.positions += step * direction
        slope = np.subtract(*(found.energy for found in one.label(ends).outcomes)) / 1e-3
        assert -np.sum(label.forces * direction) == pytest.approx(slope, abs=5e-3)
    assert np.abs(label.forces).max() > 0.5
    (without,) = oracle("dft", dispersion=None).label([atoms]).outcomes
    assert 0.01 < without.energy - label.energy < 0.1
    assert "not converged" in oracle("dft", max_cycle=1).label([atoms]).failures[0]
    periodic = atoms.copy()
    periodic.cell, periodic.pbc = [9, 9, 9], True
    assert "periodic" in one.label([periodic]).failures[0]


class Known:
    """A data set that is already in memory."""

    def __init__(self, structures):
        self.structures = structures

    def load(self):
        return self.structures


def replay_of(known):
    """A replay of labels that are in memory."""
    settings = {"_target_": "uqbench.oracles.replay.Replay", "tolerance": 1e-4, "max_failed": 1.0}
    return config.build(OmegaConf.create({"oracle": settings}).oracle, dataset=Known(known))


def test_replay_finds_frames_however_they_are_turned(oracle, springs):
    frames = rattled(4)
    for atoms in frames:
        atoms.positions -= atoms.positions.mean(axis=0)  # so that the springs are invariant too
    known = springs().label(frames).structures("toys")
    replay = replay_of(known)
    turned = frames[2].copy()
    turned.rotate(40, (1, 2, 3))
    turned.positions[:, 0] *= -1  # a mirror image, whose energy is the same
    expected = -2.0 * turned.positions
    turned.positions += [1, 2, 3]
    near, far = frames[1].copy(), frames[1].copy()
    near.positions[0] += 5e-5
    far.positions[0] += 5e-3
    swapped = frames[0][[1, 0, 2, 3]]
    labels = replay.label([turned, near, far, molecule("H2O"), swapped, frames[3]])
    assert labels.labelled == [0, 1, 5] and labels.computed == 0
    assert "no frame of toys" in labels.failures[2]
    assert labels.outcomes[0].energy == known.energies[2] and labels.outcomes[5].energy == known.energies[3]
    np.testing.assert_allclose(labels.outcomes[0].forces, expected, atol=1e-7)


def test_replay_of_periodic_frames(springs):
    crystal = Atoms("NaCl", [[0.1, 0, 0], [2.0, 2.1, 1.9]], cell=[4, 4.2, 4.4], pbc=True)
    known = springs().label([crystal]).structures("crystals")
    replay = replay_of(known)
    shifted, strained, molecular = crystal.copy(), crystal.copy(), crystal.copy()
    shifted.positions += [1.7, 0.3, 3.9]
    shifted.wrap()
    strained.set_cell([4.1, 4.2, 4.4])
    molecular.pbc = False
    labels = replay.label([shifted, strained, molecular])
    assert labels.labelled == [0]
    np.testing.assert_array_equal(labels.outcomes[0].forces, known.forces)


@pytest.fixture
def on_local_cluster(monkeypatch):
    """Processes of submitit stand for jobs of SLURM; none outlives the test. Ask for it before any oracle."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "CLUSTER", "local")
    monkeypatch.setattr(cluster, "POLL_S", 0.1)
    before = set(children(os.getpid()))
    yield
    for pid in set(children(os.getpid())) - before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while set(children(os.getpid())) - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_slurm_labels_as_this_machine_does(on_local_cluster, springs, tmp_path):
    """Labels, crashes and time limits have the same words, and there is one cache."""
    frames = [*rattled(2), *dimers(EXIT, HANG)]
    far = springs(executor="slurm", workers=4, timeout_s=3.0).label(frames)
    assert far.labelled == [0, 1] and far.computed == 2
    assert far.failures == {
        2: "crash: the worker process ended with exit code 3 (out of luck)",
        3: "timeout: not done after 3 s",
    }
    near = springs(executor="local").label(frames[:2])
    assert near.computed == 0, "the cache is one"
    assert all(a.energy == b.energy for a, b in zip(near.outcomes, far.outcomes, strict=False))
    assert {path.suffix for path in (tmp_path / "cache" / "slurm").iterdir()} <= {".out", ".err"}


def test_slurm_that_loses_a_job(on_local_cluster, springs, monkeypatch):
    monkeypatch.setattr(cluster.slurm, "states_of", lambda jobs, _: ["NODE_FAIL" for _ in jobs])
    labels = springs(executor="slurm", workers=2).label(rattled(1))
    assert "lost: SLURM job" in labels.failures[0] and "ended as NODE_FAIL" in labels.failures[0]


def open_folder(path):
    path.parent.chmod(0o777)
    return path.parent, "can be written by others (mode 777)"


def open_file(path):
    path.chmod(0o666)
    return path, "can be written by others (mode 666)"


def foreign_folder(path):
    os.chown(path.parent, 54321, 54321)
    return path.parent, "belongs to user 54321"


def foreign_file(path):
    path.unlink()
    path.write_bytes(b"")
    os.chown(path, 54321, 54321)
    return path, "belongs to user 54321"


class Trap:
    """Unpickling this leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("change", [open_folder, open_file, foreign_folder, foreign_file], ids=lambda c: c.__name__)
def test_answers_that_others_could_have_written_are_not_unpickled(
    on_local_cluster, springs, monkeypatch, tmp_path, change
):
    """Another user places an answer while the job runs."""
    if change.__name__.startswith("foreign") and os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    found = []
    honest = cluster.slurm.left_behind

    def left_behind(path, state):
        assert honest(path, state)
        found[:] = change(path)
        path.write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
        return True

    monkeypatch.setattr(cluster.slurm, "left_behind", left_behind)
    with pytest.raises(ConfigError, match="oracle.executor: .* set another oracle.cache") as caught:
        springs(executor="slurm", workers=1).label(rattled(1))
    assert "{} {}".format(*found) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_no_job_is_submitted_from_a_folder_that_others_can_write(on_local_cluster, springs, tmp_path, started):
    folder = tmp_path / "cache" / "slurm"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=f"oracle.executor: {folder} can be written by others"):
        springs(executor="slurm").label(rattled(1))
    assert not list(folder.iterdir()) and not started()


def test_slurm_with_an_umask_for_groups(on_local_cluster, springs, tmp_path):
    """Where new files are open to the group, those that are unpickled are not."""
    before = os.umask(0o002)
    try:
        labels = springs(executor="slurm").label(rattled(1))
    finally:
        os.umask(before)
    assert labels.labelled == [0]


def test_slurm_that_is_not_there(springs, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match='oracle.executor: Could not detect "srun"'):
        springs(executor="slurm").label(rattled(1))


def test_engine_that_cannot_start_on_a_node(on_local_cluster, oracle):
    broken = oracle("ase", calculator="toy_calculators.Springs", arguments={"q": 1}, executor="slurm")
    with pytest.raises(ConfigError, match="oracle.arguments"):
        broken.label(rattled(1))


def test_startup_that_never_ends(springs, monkeypatch, started):
    monkeypatch.setattr(pool, "STARTUP_S", 0.0)
    with pytest.raises(OracleError, match="did not start"):
        springs().label(dimers(7))
    assert started() == []
