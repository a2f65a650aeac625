"""Data that many tests share; and how the cores are shared between the processes that run them."""

import contextlib
import os
import signal
import threading

# A shell hands a job in the background on with Ctrl-C ignored, and so would every program that a test starts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported here or in a process that a test starts: threads of several processes on the same cores
# wait for each other, and everything takes many times as long.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    shares = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(shares))

import pytest
from program import Program
from toy_calculators import children

from uqbench.data.sources.quickstart import Quickstart
from uqbench.data.structures import Structures


@pytest.fixture(scope="session")
def ethanol() -> Structures:
    """Sixty frames of the embedded ethanol trajectories, spread over all of them."""
    quickstart = Quickstart(n_train=30, n_validation=10, n_test=20, block=1, split_seed=0)
    structures = quickstart.load()
    return structures[:: len(structures) // 60][:60]


@pytest.fixture(scope="session")
def program():
    """Starts the program in processes of its own, which have imported everything already."""
    with Program() as server:
        yield server


@pytest.fixture(scope="module")
def without_figures():
    """Evaluations in this process draw nothing, which is most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uqbench.evaluations.metrics.render", lambda drawings: {})
        yield


@pytest.fixture
def kernels(request):
    """Computes the test with these kernels, a parameter of the test; skips where they are not to be had."""
    from uqbench.errors import ConfigError
    from uqbench.models import compiled

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(compiled.using(request.param))
        except ConfigError as reason:
            pytest.skip(str(reason))
        yield request.param


@pytest.fixture
def started():
    """Gives the processes that this test has started and that still run; other tests may have left some to end."""
    before = set(children(os.getpid()))
    return lambda: [pid for pid in children(os.getpid()) if pid not in before]
