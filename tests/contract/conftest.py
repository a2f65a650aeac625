"""The choice of kernels for a test."""

import pytest
from helpers import DEFAULT_KERNELS

from uqbench.errors import ConfigError
from uqbench.models import compiled


@pytest.fixture
def kernels(request):
    """Computes the test with these kernels; a parameter of the test."""
    try:
        compiled.use(request.param)
    except ConfigError as reason:
        pytest.skip(str(reason))
    yield request.param
    compiled.use(DEFAULT_KERNELS)
