"""Imports point one way, leaves are reached through their `_target_` only, and no module holds two ideas."""

import ast
from pathlib import Path

import pytest
import yaml

import uqbench

PACKAGE = Path(uqbench.__file__).parent
CONF = PACKAGE.parent / "conf"
MODULES = {
    ".".join(["uqbench", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.glob("**/*.py"))
}
MAX_LINES = 350

# From the bottom up; a module may import from its own layer and those before it.
LAYERS = [
    {
        "errors",
        "seeding",
        "annotations",
        "files",
        "lock",
        "ownership",
        "lammps_library",
        "provenance",
        "geometry",
        "interruption",
        "progress",
        "slurm",
        "yamlfile",
    },
    {"metrics", "rundir", "config", "structures"},
    {"datasets"},
    {"graph", "verlet"},
    {"kernels"},
    {"backbones"},
    {"potential"},
    {"uq"},
    {"allocator", "checkpoints", "model", "schedule", "training"},
    {"figures", "predictions", "evaluation", "trained", "calculator"},
    {"simulate", "oracles"},
    {"active"},
    {"results", "cli", "commands", "completion", "jobs", "overrides", "sources", "__main__"},
]


def layer(module: str) -> int:
    part = module.split(".")[1]
    found = [number for number, names in enumerate(LAYERS) if part in names]
    assert found, f"{module} belongs to no layer: add '{part}' to LAYERS and to the design"
    return found[0]


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Modules of this package that a source imports, also within functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if is_package and node.level == 1 else -node.level or None]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in found if name.startswith("uqbench.")}


def leaves() -> set[str]:
    """Modules in folders that some YAML names as a `_target_`."""
    targets = set()
    for path in CONF.glob("*/*.yaml"):
        content = yaml.safe_load(path.read_text())
        if isinstance(content, dict) and isinstance(content.get("_target_"), str):
            targets.add(content["_target_"].rpartition(".")[0])
    return {module for module in targets if module.count(".") == 2}


def offences(module: str, imported: set[str], leaf_modules: set[str]) -> list[str]:
    upward = [name for name in imported if layer(name) > layer(module)]
    leafward = [name for name in imported & leaf_modules if name != module]
    return [f"{module} imports {name}" for name in sorted({*upward, *leafward})]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "uqbench"])
def test_imports_point_one_way(module):
    path = MODULES[module]
    imported = imports(path.read_text(), module, path.name == "__init__.py")
    assert offences(module, imported, leaves()) == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_small(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


def test_this_test_sees_offences():
    source = "def f():\n    from uqbench import jobs\n    import uqbench.uq.mve\n    from . import painn\n"
    found = imports(source, "uqbench.backbones.schnet")
    assert found == {"uqbench.jobs", "uqbench.uq.mve", "uqbench.backbones.painn"}
    assert offences("uqbench.backbones.schnet", found, {"uqbench.backbones.painn"}) == [
        "uqbench.backbones.schnet imports uqbench.backbones.painn",
        "uqbench.backbones.schnet imports uqbench.jobs",
        "uqbench.backbones.schnet imports uqbench.uq.mve",
    ]
    assert imports("from ..config import build", "uqbench.uq.base") == {"uqbench.config"}
    assert imports("from .base import X", "uqbench.uq", is_package=True) == {"uqbench.uq.base"}
