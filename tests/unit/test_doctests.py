"""Examples in docstrings are true: each is run, in a folder with runs that were trained."""

import doctest
import importlib
from pathlib import Path

import pytest
from test_architecture import MODULES

RUNS = Path(__file__).parents[1] / "data" / "runs_of_0.1"
EXAMPLES = sorted(name for name, path in MODULES.items() if ">>> " in path.read_text())
# What documents show to those who use the program from Python.
SHOWN = {
    *("config.slots", "data.structures", "inference.calibration", "inference.prediction_set"),
    *("inference.trained_model", "metrics.accuracy", "metrics.confidence", "metrics.likelihood", "metrics.ranking"),
    *("metrics.reliability", "testing.backbones", "testing.calculators", "testing.methods"),
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_a_module(module, tmp_path, monkeypatch):
    (tmp_path / "outputs").symlink_to(RUNS)
    monkeypatch.chdir(tmp_path)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(module), optionflags=options)
    assert results.attempted and not results.failed, "see the report above"


def test_what_the_documents_show_has_an_example():
    assert {"uqbench", *(f"uqbench.{name}" for name in SHOWN)} <= set(EXAMPLES)
