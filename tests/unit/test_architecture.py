"""Imports point down from room to room and never in a circle, and leaves are reached through their `_target_` only."""

import ast
import collections
import functools
import graphlib
import re
from pathlib import Path

import pytest
import yaml

import uqbench
from uqbench.config import SLOTS

PACKAGE = Path(uqbench.__file__).parent
CONF = PACKAGE.parent / "conf"
MODULES = {
    ".".join(["uqbench", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.glob("**/*.py"))
}

# From the bottom up; a module may import from its own layer and those before it. The longest name that fits counts.
LAYERS = [
    {"errors", "families", "seeding", "text"},
    {"config", "progress", "lammps_library"},
    {"runs", "units"},
    {"metrics"},
    {"data"},
    {"models"},
    {"uq"},
    {"training", "figures"},
    {"inference"},
    {"testing"},
    {"md", "oracles"},
    {"evaluations"},
    {"runs.evaluation", "runs.experiment"},
    {"report.load", "report.figures"},
    {"report.statistics", "report.render"},
    {"report.claims"},
    {"report.sections"},
    {"active", "report"},
    {"cli", "__main__"},
]
LOOSE = 12  # modules at the top level at most
# What the report may import: it reads tables.
TABLES_ONLY = {"config", "errors", "families", "figures", "metrics", "report", "runs", "text"}


def layer(module: str) -> int:
    names = module.split(".")[1:]
    found = {
        ".".join(names[:k]): number
        for k in range(1, len(names) + 1)
        for number, rooms in enumerate(LAYERS)
        if ".".join(names[:k]) in rooms
    }
    assert found, f"{module} belongs to no layer: add '{names[0]}' to LAYERS and to docs/concepts.md"
    return found[max(found, key=len)]


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


@functools.cache
def imported(module: str) -> frozenset[str]:
    path = MODULES[module]
    return frozenset(imports(path.read_text(), module, path.name == "__init__.py"))


@functools.cache
def leaves() -> frozenset[str]:
    """Modules that some YAML names in a `_target_`, in whose rooms all parts stand beside each other."""
    targets = set()
    for path in CONF.glob("*/*.yaml"):
        content = yaml.safe_load(path.read_text())
        if isinstance(content, dict) and isinstance(content.get("_target_"), str):
            targets.add(content["_target_"].rpartition(".")[0])
    rooms = ("uqbench.data.sources.", "uqbench.uq.", "uqbench.models.", "uqbench.oracles.")
    shared = {kind.rpartition(".")[0] for kind in SLOTS.values()}  # they hold the contract as well
    return frozenset(module for module in targets - shared if module.startswith(rooms))


def offences(module: str, names: set[str] | frozenset[str], leaf_modules: set[str] | frozenset[str]) -> list[str]:
    upward = [name for name in names if layer(name) > layer(module)]
    leafward = [name for name in names & leaf_modules if name != module]
    return [f"{module} imports {name}" for name in sorted({*upward, *leafward})]


def circle(graph: dict[str, set[str] | frozenset[str]]) -> list[str]:
    """Modules of one circle of imports; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", [name for name in MODULES if name != "uqbench"])
def test_imports_point_one_way(module):
    assert offences(module, imported(module), leaves()) == []


def test_no_module_is_in_a_circle_of_imports():
    assert circle({module: imported(module) for module in MODULES}) == []


def test_the_report_reads_tables_only():
    report = [module for module in MODULES if module.startswith("uqbench.report")]
    assert report and {name.split(".")[1] for module in report for name in imported(module)} <= TABLES_ONLY


def test_few_modules_stand_outside_of_the_rooms():
    loose = [name for name, path in MODULES.items() if path.parent == PACKAGE]
    assert len(loose) <= LOOSE, loose


def test_the_drawing_of_the_rooms_shows_all_of_them():
    drawing = (CONF.parent / "docs" / "concepts.md").read_text().partition("```text")[2].partition("```")[0]
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= set(re.findall(r"[a-z]+", drawing))


def test_this_test_sees_offences():
    source = "def f():\n    from uqbench.cli import jobs\n    import uqbench.uq.mve\n    from . import painn\n"
    found = imports(source, "uqbench.models.schnet")
    assert found == {"uqbench.cli.jobs", "uqbench.uq.mve", "uqbench.models.painn"}
    assert offences("uqbench.models.schnet", found, {"uqbench.models.painn"}) == [
        "uqbench.models.schnet imports uqbench.cli.jobs",
        "uqbench.models.schnet imports uqbench.models.painn",
        "uqbench.models.schnet imports uqbench.uq.mve",
    ]
    assert imports("from ..config import build", "uqbench.uq.base") == {"uqbench.config"}
    assert imports("from .base import X", "uqbench.uq", is_package=True) == {"uqbench.uq.base"}
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


# Words that hide what a value is, and coined ones; docs/glossary.md has the field's.
NO_NAMES = {"found", "own", "place", "places", "whole", "twin", "twins", "judge", "trust", "watch", "portrait", "melts"}
NO_NAMES |= {"battery", "gap", "gaps"}
# One class of a name, but for parts that every backbone, command or check has.
SHARED = {"Skeleton", "Interaction", "Subject"}


def test_names_say_what_a_value_is():
    bad = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            else:
                name = getattr(node, "arg", None) or getattr(node, "name", None)
            if isinstance(name, str) and name.lower().strip("_") in NO_NAMES:
                bad.append(f"{module}: {name}")
    assert not bad


def test_a_name_of_a_class_has_one_meaning():
    modules = collections.defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name not in SHARED:
                modules[node.name].append(module)
    assert {name: several for name, several in modules.items() if len(several) > 1} == {}


def test_no_text_is_read_in_the_encoding_of_the_terminal():
    lines = [
        f"{path.name}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if ".read_text()" in line
    ]
    assert not lines
