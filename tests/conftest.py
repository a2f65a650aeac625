"""Data that many tests share."""

import pytest

from uqbench.datasets.quickstart import Quickstart
from uqbench.structures import Structures

pytest.register_assert_rewrite("model_checks")


@pytest.fixture(scope="session")
def ethanol() -> Structures:
    """Sixty frames of the embedded ethanol trajectories, spread over all of them."""
    quickstart = Quickstart(n_train=30, n_validation=10, n_test=20, block=1, split_seed=0)
    structures = quickstart.load()
    return structures[:: len(structures) // 60][:60]
