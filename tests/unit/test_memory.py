"""Predictions of memory: what is counted, what it is compared with, and that nothing notices."""

import random
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import KERNELS, graphs_of, short_training, small_method
from torch.nn.functional import silu

from uqbench.errors import ConfigError, OutOfMemory
from uqbench.inference.prediction_set import predict
from uqbench.models.compiled import build
from uqbench.runs import memory
from uqbench.runs.memory import Available
from uqbench.training import loop
from uqbench.training.loop import BatchLoss, train
from uqbench.training.memory import ALLOWANCE, Allocations, Forecast, Load, Need, forecast, prediction_batch

pytestmark = pytest.mark.numerics
PLENTY = Available(10**12, "of this test")
MB = 2**20


# ---------------------------------------------------------------------------------------------- what is counted


def test_allocations_are_those_that_live_at_a_time():
    x = torch.zeros(MB // 4, requires_grad=True)  # a MB that was there before
    with Allocations() as allocations:
        y = x * 2
        z = silu(y)  # which keeps y for its derivative
        del y
        assert allocations.live == 2 * MB
        z.view(-1, 2).sum().backward()
        del z
        x.grad = None
        torch.zeros(3 * MB // 4)
    assert allocations.live < 100
    assert 3 * MB <= allocations.peak <= 5 * MB


@pytest.mark.parametrize("kernels", KERNELS, indirect=True)
@pytest.mark.parametrize("members", [None, 3])
def test_a_prediction_from_few_frames_is_what_many_take(ethanol, kernels, members):
    uq = "ensemble" if members else "deterministic"
    changes = {"uq.members": members} if members else {}
    method = small_method(ethanol, "painn_small", uq, **changes, **{"backbone.features": 64})
    settings = short_training(precision="float64", batch_size=60)
    graphs, model = graphs_of(ethanol), BatchLoss(method, settings)
    model(graphs, torch.arange(1), (1, 9))  # compares compiled code with torch
    with Allocations() as allocations:
        model(graphs, torch.arange(60), (60, 540))[0].backward()
    taken = ALLOWANCE * allocations.peak
    predicted = forecast(method, ethanol, ethanol[:10], settings, 0, Available(int(taken), "of this test"))
    assert 0.8 < predicted.step.of(60) / taken < 1.5


def test_scratch_memory_of_compiled_code_counts(ethanol):
    if "native" not in KERNELS:
        pytest.skip("there are no compiled kernels")
    method = small_method(ethanol, "painn_small", "deterministic").eval()
    graphs = graphs_of(ethanol)
    method.predict(graphs.batch([0]))
    batch = graphs.batch(range(60))
    with Allocations() as allocations, torch.no_grad():
        method.predict(batch)
    results = batch.positions.nbytes + len(batch.numbers) * 8 * 8
    # Pairs alone have distances, directions and radial functions with their derivatives.
    assert allocations.peak > 2 * results + len(batch.first) * 30 * 8


def test_more_frames_are_measured_where_the_first_ones_mislead():
    def call(n):
        torch.zeros(MB * (min(n, 8) * 4 + n))  # float32

    taken = 4 * MB * (8 * 4 + 100)
    plenty = Need.measured(call, 100, 1e12)
    scarce = Need.measured(call, 100, 8.0 * taken)
    assert plenty.of(100) > 2.5 * taken
    assert taken <= scarce.of(100) < 2 * taken


def test_batches_of_unequal_frames_are_weighed(ethanol):
    sizes = np.array([10] * 90 + [100] * 10)

    class Frames:
        n_atoms = sizes

    load = Load(Frames)
    assert load.of(1) == 1.0 and load.of(100) == load.of(10**12) == pytest.approx(19.0)
    rng = np.random.default_rng(0)
    drawn = max(rng.permutation(sizes)[:20].sum() / 100 for _ in range(1000))
    assert drawn <= load.of(20) < 12
    for budget in (0.5, 1.0, 5.0, 1e9):
        n = load.frames(Need(0.0, 1.0), budget)
        assert (n == 0 or load.of(n) <= budget) and (n == 100 or load.of(n + 1) > budget)


# ------------------------------------------------------------------------------------------- what is refused


def predicted(ethanol, **changes):
    """A forecast in MB: 10 of neighbour lists, 2 of frames, 3 of weights, 1 + 2 a frame of a step; 26 for ten."""
    needs = {"lists": 10e6, "graphs": 2e6, "weights": 3e6, "step": Need(1e6, 2e6), "validation": Need(0.0, 1e5)}
    load = Load(ethanol)
    common = {"settings": short_training(batch_size=10), "load": load, "validation_load": load, "device": "cpu"}
    return Forecast(**common, **needs | changes)


@pytest.mark.parametrize(
    ("changes", "available", "line"),
    [
        ({}, 25e6, r"training.batch_size: 10 frames .* 26 MB, but 25 MB .* the largest batch_size sure to fit is 4$"),
        ({}, 11e6, r"training.batch_size: 10 frames a step need about 26 MB, but 11 MB .*not even one frame fits"),
        ({"weights": 3e7}, 11e6, r"backbone: its weights and their optimiser need about 53 MB, but 11 MB .*"),
        ({"lists": 3e7}, 11e6, r"dataset: the frames and their neighbours need about 30 MB, but 11 MB .*"),
    ],
)
def test_what_does_not_fit_is_named(ethanol, changes, available, line):
    forecasted = predicted(ethanol, **changes)
    with pytest.raises(ConfigError, match=line):
        forecasted.require(Available(int(available), "of this test"))
    forecasted.require(Available(int(forecasted.peak), "of this test"))


def test_validations_are_smaller_only_where_they_do_not_fit(ethanol):
    forecasted = predicted(ethanol)  # 5 MB and 0.1 for each of 60 frames
    assert forecasted.validation_batch(Available(11_000_000, "of this test")) is None
    assert forecasted.validation_batch(Available(10_000_000, "of this test")) == 12  # (10 / 1.6 - 5) / 0.1


# ------------------------------------------------------------------------------------- nothing notices


def test_a_forecast_changes_no_bits(ethanol, tmp_path, monkeypatch):
    method = small_method(ethanol, "painn_small", "mve")
    kind, original = type(method), type(method).losses

    def drawing(self, *arguments):
        torch.rand(3), np.random.rand(3), random.random()
        return original(self, *arguments)

    monkeypatch.setattr(kind, "losses", drawing)
    generators = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: E731
    states = generators()
    weights = {name: value.clone() for name, value in method.state_dict().items()}
    settings = short_training(precision="float64", epochs=2)
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
        if folder == "with":
            forecast(method, ethanol[:24], ethanol[24:36], settings, 0, PLENTY)
            assert generators() == states
            assert all(torch.equal(weights[name], value) for name, value in method.state_dict().items())
            assert all(parameter.grad is None for parameter in method.parameters())
            assert method.training
        train(method, ethanol[:24], ethanol[24:36], settings, 0, tmp_path / folder)
    first, second = ((tmp_path / folder / "history.csv").read_bytes() for folder in ("with", "without"))
    assert first == second


# --------------------------------------------------------------------------- in smaller batches


def test_predictions_are_made_in_batches_that_fit(ethanol, monkeypatch, caplog):
    method = small_method(ethanol, "painn_small", "ensemble", **{"uq.members": 2}).eval()
    graphs = graphs_of(ethanol)
    expected = predict(method, ethanol, batch_size=60, device="cpu")
    monkeypatch.setattr(memory, "available", lambda device="cpu": Available(graphs.nbytes + MB, "of this test"))
    size = prediction_batch(method, graphs, ethanol, 60, "cpu")
    assert 1 <= size < 60
    sizes, original = [], type(method).predict
    monkeypatch.setattr(
        type(method), "predict", lambda self, batch, **given: sizes.append(len(batch)) or original(self, batch, **given)
    )
    predicted = predict(method, ethanol, batch_size=60, device="cpu")
    assert max(sizes) <= max(size, 4) and f"predicting {size} frames a time" in caplog.text
    np.testing.assert_allclose(predicted.forces, expected.forces, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(predicted.energy, expected.energy, rtol=1e-12)


def exhausted_above(monkeypatch, kind, largest):
    original = kind.predict

    def predicting(self, batch, **given):
        if len(batch) > largest:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return original(self, batch, **given)

    monkeypatch.setattr(kind, "predict", predicting)


def test_predictions_that_run_out_of_memory_go_on_in_smaller_batches(ethanol, monkeypatch, caplog):
    method = small_method(ethanol, "painn_small", "deterministic").eval()
    expected = predict(method, ethanol, batch_size=60, device="cpu")
    exhausted_above(monkeypatch, type(method), 10)
    predicted = predict(method, ethanol, batch_size=60, device="cpu")
    assert "going on with 7 frames a time" in caplog.text
    np.testing.assert_allclose(predicted.forces, expected.forces, rtol=1e-9, atol=1e-12)
    exhausted_above(monkeypatch, type(method), 0)
    with pytest.raises(OutOfMemory, match="ran out of memory with one frame a time"):
        predict(method, ethanol, batch_size=60, device="cpu")


def test_a_validation_that_runs_out_of_memory_goes_on_in_smaller_batches(ethanol, tmp_path, monkeypatch, caplog):
    original, sizes = loop.validate, []

    def validating(*arguments):
        sizes.append(arguments[-1])
        if sizes[-1] > 4:
            raise MemoryError
        return original(*arguments)

    monkeypatch.setattr(loop, "validate", validating)
    method = small_method(ethanol, "painn_small", "deterministic")
    train(method, ethanol[:12], ethanol[12:24], short_training(precision="float64", epochs=2), 0, tmp_path)
    assert sizes == [64, 6, 3, 3]  # twelve frames
    assert "going on with 3 frames a time" in caplog.text


# ------------------------------------------------------------------------------------------ what is available


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files of a system with 100 GB that nothing limits."""
    files = {
        "proc/meminfo": "MemTotal: 200000000 kB\nMemAvailable: 100000000 kB\n",
        "proc/self/status": "VmSize:\t 1000 kB\nVmData:\t 1000 kB\n",
        "proc/self/cgroup": "4:memory:/a/b\n0::/c/d\n",
    }
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")

    def write(more):
        for name, text in more.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    write(files)
    return write


GROUPS = {
    "version 1": {
        "cgroup/memory/a/memory.limit_in_bytes": "9000000000\n",
        "cgroup/memory/a/memory.usage_in_bytes": "4000000000\n",
        "cgroup/memory/a/memory.stat": "cache 5\ntotal_inactive_file 2000000000\n",
        "cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/a/b/memory.usage_in_bytes": "1\n",
    },
    "version 2": {
        "cgroup/c/memory.max": "9000000000\n",
        "cgroup/c/memory.current": "4000000000\n",
        "cgroup/c/memory.stat": "anon 5\ninactive_file 2000000000\n",
        "cgroup/c/d/memory.max": "max\n",
        "cgroup/c/d/memory.current": "1\n",
    },
    "in a container": {
        "cgroup/memory.max": "9000000000\n",
        "cgroup/memory.current": "4000000000\n",
        "cgroup/memory.stat": "inactive_file 2000000000\n",
    },
}


@pytest.mark.parametrize("files", GROUPS.values(), ids=GROUPS)
def test_limits_of_control_groups_and_their_parents_count(system, files):
    freed = 2e9  # more than this process has ever freed
    assert memory.available().of == "of the machine"
    assert 102.4e9 <= memory.available().bytes <= 102.4e9 + freed
    system(files)
    assert memory.available().of == "of the control group"
    assert 7e9 <= memory.available().bytes <= 7e9 + freed


@pytest.mark.parametrize(("kind", "words"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_limits_of_the_process_count(system, monkeypatch, kind, words):
    limits = {getattr(resource, kind): 3 * 10**9}
    monkeypatch.setattr(resource, "getrlimit", lambda one: (limits.get(one, resource.RLIM_INFINITY),) * 2)
    assert memory.available().of == f"under {words}"
    assert 3e9 - 1024e3 <= memory.available().bytes <= 5e9


def test_where_no_system_says_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert memory.available() is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_errors_of_all_libraries_are_known(error):
    assert memory.exhausted(error)
    assert not memory.exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_numpy_and_torch_say_so_themselves():
    for allocate in (lambda: np.empty(2**50), lambda: torch.empty(2**50)):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            allocate()
        assert memory.exhausted(raised.value)


CALL = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
sizes = [int(size) for size in sys.argv[3:]]
arguments = (ctypes.c_int64 * 200)(*sizes)
print(getattr(library, sys.argv[2])(arguments))
"""


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        # atoms, pairs, members, channels, radial, threads
        ("painn_message_float32", [10**15, 0, 2, 8, 3, 1]),
        ("painn_message_float32", [10**15, 0, 2, 8, 3, 2]),
        # atoms, pairs, systems, members
        ("network_painn_float64", [0, 10**15, 0, 1]),
        ("gradient_schnet_float64", [0, 10**15, 0, 1]),
    ],
)
def test_compiled_code_without_memory_does_not_end_the_process(function, sizes):
    if "native" not in KERNELS:
        pytest.skip("there are no compiled kernels")
    build.library()
    command = [sys.executable, "-c", CALL, str(build.library_path()), function, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_compiled_code_without_memory_is_a_memory_error(ethanol):
    if "native" not in KERNELS:
        pytest.skip("there are no compiled kernels")
    from uqbench.models.compiled.native import PainnArguments, entry

    message = entry(build.library(), "painn_message", torch.float32, PainnArguments)
    with pytest.raises(MemoryError, match="compiled code"):
        message(PainnArguments(atoms=10**15, members=1, channels=8, radial=3, threads=1))
