"""Tests of models run twice, with the compiled kernels and with the plain ones, unless UQBENCH_KERNELS names some."""

import os

import pytest

from uqbench.errors import ConfigError
from uqbench.models import compiled
from uqbench.models.compiled import choice

OF_MODELS = {"test_active", "test_backbones", "test_uq"}
BODIES = [body for body in ("native", "torch") if os.environ.get("UQBENCH_KERNELS", "auto") in ("auto", body)]
WITHOUT_KERNELS = ("nequip",)


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__.rpartition(".")[2] in OF_MODELS:
        metafunc.parametrize("body", BODIES, indirect=True)


def pytest_collection_modifyitems(config, items):
    twice = [
        item
        for item in items
        if getattr(item, "callspec", None)
        and item.callspec.params.get("body") == "torch"
        and len(BODIES) > 1
        and any(name in item.callspec.id for name in WITHOUT_KERNELS)
    ]
    if twice:
        config.hook.pytest_deselected(items=twice)
        items[:] = [item for item in items if item not in twice]


@pytest.fixture(autouse=True)
def body(request, monkeypatch):
    """Chooses the kernels of a test."""
    mode = getattr(request, "param", None)
    if mode is None:
        return
    monkeypatch.setattr(choice, "_mode", choice._mode)
    try:
        compiled.use(mode)
    except ConfigError as reason:
        pytest.skip(str(reason))
