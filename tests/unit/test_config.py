"""Annotations, trusted construction, validation and the digest."""

import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from annotated_types import Len
from omegaconf import OmegaConf
from pydantic import PositiveInt

from uqbench import config
from uqbench.config.annotations import Different, Fraction, Supplied, describe, is_plain, matches
from uqbench.errors import ConfigError
from uqbench.training.settings import Training

FITS = [
    (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False), (None, int, False),
    (1, float, True), (0.5, float, True), (True, float, False), (float("nan"), float, False),
    (float("inf"), float, False), (10**400, int, False), (2, PositiveInt, True), (0, PositiveInt, False),
    (0.5, Fraction | None, True), (1.0, Fraction | None, False), (None, Fraction | None, True),
    ([1, 2], Different[int], True), ([1, 1], Different[int], False), ([], Different[int], False),
    (None, Training | None, True), ({}, Training, False), ({"_target_": "x.Y"}, Training | None, True),
    (True, bool, True), (1, bool, False), ("x", str, True), (1, str, False),
    (None, int | None, True), (None, Optional[int], True), ("x", int | None, False),  # noqa: UP045
    ("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False),
    ([1, 2], list[int], True), ([1, "x"], list[int], False), (1, list[int], False), ([], list, True),
    ([0.9, 1], tuple[float, float], True), ([0.9], tuple[float, float], False), ([1, 2, 3], tuple[int, ...], True),
    ("ab", Sequence[str], False),
    ({"H": -1.0}, dict[str, float], True), ({"H": "x"}, Mapping[str, float], False),
    ("a/b", Path, True), (1, Path, False), (1, Any, True), (2, Annotated[int, "even"], True),
    ({"_target_": "x.Y"}, Path, False), ({"_target_": "x.Y"}, types.SimpleNamespace | None, True),
    ({"_target_": "x.Y"}, int, False), (3, types.SimpleNamespace, False),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind", "fits"), FITS)
def test_matches(value, kind, fits):
    assert matches(value, kind) is fits


def test_describe_and_is_plain():
    assert describe(int | None) == "an integer or null"
    assert describe(tuple[float, float]) == "a list (a number, a number)"
    assert describe(Literal["a", 2]) == "'a' or 2"
    assert describe(float | types.SimpleNamespace) == "a number"
    assert describe(int | float | None) == "a number or null"
    assert describe(PositiveInt | Fraction | None) == "an integer >= 1 or a number > 0 and < 1 or null"
    assert describe(Annotated[list[PositiveInt], Len(3, 3)]) == "a list of 3 (an integer >= 1)"
    assert describe(Different[Fraction]) == "a list (a number > 0 and < 1, not empty, no value twice)"
    assert describe(Training | None) == "null" and describe(Training) == "a node with a _target_ (Training)"
    assert is_plain(list[int]) and is_plain(str | None)
    assert not is_plain(types.SimpleNamespace) and not is_plain(Supplied[int]) and not is_plain(object)


class Inner:
    def __init__(self, *, size: int):
        self.size = size


class Outer:
    def __init__(self, data: types.ModuleType, *, inner: Inner, rates: list[float], count: Supplied[int], seed: int):
        self.data, self.inner, self.rates, self.count, self.seed = data, inner, rates, count, seed


class Forward:
    def __init__(self, *, other: "Unimportable", n: int):  # noqa: F821
        self.other, self.n = other, n


class Refusing(Inner):
    def __init__(self, *, size: int):
        raise ConfigError(f"size {size} is too small")


class _Private(Inner):
    pass


def function(*, size: int):
    pass


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", module := types.ModuleType("mine"))
    for thing in (Inner, Outer, Forward, Refusing, _Private, function):
        monkeypatch.setattr(thing, "__module__", "mine")
        setattr(module, thing.__name__, thing)
    module.os, module.value, module.alias = __import__("os"), 3, _Private
    monkeypatch.setenv("UQBENCH_TRUSTED", "mine, other.*")
    for slot, kind in {"model": "mine.Outer", "inner": "mine.Inner", "f": "mine.Forward"}.items():
        monkeypatch.setitem(config.SLOTS, slot, kind)


OUTER = {
    "_target_": "mine.Outer",
    "inner": {"_target_": "mine.Inner", "size": "${seed}"},
    "rates": [0.5, 1],
    "seed": "${seed}",
}


def tree(**changes) -> Any:
    return OmegaConf.create({"seed": 3, "model": OUTER | changes})


def test_build_recurses_resolves_and_takes_extras():
    built = config.build(tree().model, data=types, count=5)
    assert (built.data, built.count, built.inner.size, built.rates, built.seed) == (types, 5, 3, [0.5, 1], 3)
    assert config.build(tree().model, data=types, count=5, seed=8).seed == 8


def test_build_errors_name_their_place():
    with pytest.raises(ConfigError, match="model.count: missing; mine.Outer needs it"):
        config.build(tree().model, data=types)
    with pytest.raises(ConfigError, match="model.inner.sice: mine.Inner takes no such argument; did you mean 'size'"):
        config.build(tree(inner={"_target_": "mine.Inner", "sice": 1}).model, data=types, count=1)
    with pytest.raises(ConfigError, match=r"^size 1 is too small$"):
        config.build(OmegaConf.create({"inner": {"_target_": "mine.Refusing", "size": 1}}).inner)
    with pytest.raises(ConfigError, match=r"inner.size: no value given; add inner.size=\.\.\."):
        config.build(OmegaConf.create({"inner": {"_target_": "mine.Inner", "size": "???"}}).inner)
    with pytest.raises(ConfigError, match="has no _target_"):
        config.build(OmegaConf.create({"size": 1}))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "'os.system' is not trusted"),
        ("mine.os.system", r"really (posix|nt)\.system"),
        ("uqbench.config.slots.importlib.import_module", "is not trusted"),
        ("mineral.x", "is not trusted"),
        ("mine.value", "is not trusted"),  # an instance has no name of its own
        ("mine._Private", "no public name"),
        ("mine.alias", "no public name"),
        ("uqbench.__main__.main", "no public name"),
        ("uqbench.models.compiled.build._run", "no public name"),
        ("mine.function", "is no class"),
        ("uqbench.config.locate", "is no class"),
        ("mine.Iner", "mine has no 'Iner'; did you mean 'Inner'?"),
        ("other.thing.X", "no module 'other'"),
        ("uqbench.nothing.X", "uqbench has no 'nothing'"),
        ("mine", "expected the dotted name"),
        ("mine..Inner", "expected the dotted name"),
        (3, "expected the dotted name"),
    ],
)
def test_locate_refuses(target, message):
    with pytest.raises(ConfigError, match=message):
        config.locate(target)


def test_untrusted_module_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not trusted"):
        config.locate("trap.Thing")


def test_module_that_needs_something_absent(tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot import other: No module named 'not_installed_anywhere'"):
        config.locate("other.Thing")


class Small:
    seed: int


def problems(cfg) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.validate(cfg, Small)
    return str(caught.value).splitlines()


def test_validate_accepts_what_code_will_supply():
    config.validate(tree(), Small)
    config.validate(OmegaConf.create({"seed": 1, "f": {"_target_": "mine.Forward", "n": 2}}), Small)


def test_validate_collects_everything():
    inner = {"_target_": "mine.Inner", "size": "x", "more": 1}
    cfg = tree(inner=inner, rates=[1, "y"], list=[{"_target_": "os.system"}])
    cfg.seed = "zero"
    cfg.anywhere = {"_target_": "mine.Inner", "size": 1}
    del cfg.model["seed"]
    assert problems(cfg) == [
        "seed: expected an integer, got 'zero'",
        "model.list: mine.Outer takes no such argument",
        "model.seed: missing; mine.Outer needs it",
        "model.rates: expected a list (a number), got [1, 'y']",
        "model.inner.more: mine.Inner takes no such argument",
        "model.inner.size: expected an integer, got 'x'",
        "model.list[0]._target_: 'os.system' cannot stand here; model.list is a plain value",
        f"anywhere._target_: 'mine.Inner' cannot stand here, only in {', '.join(config.SLOTS)}",
    ]
    assert problems(OmegaConf.create({"sede": 1})) == ["seed: missing; did you mean 'sede'?"]
    assert problems(OmegaConf.create({"seed": "???"})) == ["seed: no value given; add seed=..."]


INSIDE = {
    "another slot": ({"_target_": "mine.Inner", "size": 1}, "model._target_: mine.Inner cannot stand here; expected a"),
    "a function": ({"_target_": "mine.function", "size": 1}, "model._target_: mine.function is no class"),
    "in a number": (OUTER | {"seed": {"_target_": "mine.Spy"}}, "model.seed: expected an integer"),
    "in a list": (OUTER | {"rates": [{"_target_": "mine.Spy"}]}, "'mine.Spy' cannot stand here; model.rates is a"),
    "in an object": (OUTER | {"inner": {"_target_": "mine.Spy"}}, "model.inner._target_: mine.Spy cannot stand here"),
    "deep in an object": (
        OUTER | {"inner": {"_target_": "mine.Inner", "size": {"_target_": "mine.Spy"}}},
        "model.inner.size: expected an integer",
    ),
    "by reference": (OUTER | {"seed": "${spy}"}, "model.seed: expected an integer"),
}


@pytest.mark.parametrize(("node", "message"), INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("check", ["build", "validate", "require_slots"])
def test_nothing_is_built_before_all_of_it_is_known_to_be_what_its_place_accepts(node, message, check, monkeypatch):
    class Spy:
        def __init__(self):
            pytest.fail("this must not be built")

    Spy.__module__, Spy.__qualname__ = "mine", "Spy"
    monkeypatch.setattr(sys.modules["mine"], "Spy", Spy, raising=False)

    def beside(self, *, size: int):
        pytest.fail("nor this, beside it")

    monkeypatch.setattr(Inner, "__init__", beside)
    cfg = OmegaConf.create({"seed": 3, "spy": {"_target_": "mine.Spy"}, "model": node})
    calls = {
        "build": lambda: config.build(cfg.model, data=types, count=5),
        "validate": lambda: config.validate(cfg, Small),
        "require_slots": lambda: config.require_slots(cfg),
    }
    if check == "require_slots":
        message = "cannot stand here|is no class"
    with pytest.raises(ConfigError, match=message):
        calls[check]()


def test_a_config_that_refers_to_itself_is_an_error():
    cfg = OmegaConf.create({"seed": 3, "a": {"b": "${c}"}, "c": {"d": "${a}"}})
    with pytest.raises(ConfigError, match="refers to itself"):
        config.validate(cfg, Small)


def test_validate_imports_no_target_that_has_been_built_of_the_same_node(monkeypatch):
    stored = OmegaConf.create(OmegaConf.to_container(tree(), resolve=True))
    monkeypatch.delitem(sys.modules, "mine")  # an import would fail
    config.validate(tree(), Small, built=lambda cfg: stored)
    with pytest.raises(ConfigError, match=r"^model\._target_: no module 'mine'"):
        config.validate(tree(rates=[0.5, 1.0]), Small, built=lambda cfg: stored)  # 1.0 is no integer
    with pytest.raises(ConfigError, match=r"^model\._target_: no module 'mine'"):
        config.validate(tree(), Small, built=lambda cfg: None)
    monkeypatch.setenv("UQBENCH_TRUSTED", "other")
    with pytest.raises(ConfigError, match=r"model\.inner\._target_: 'mine\.Inner' is not trusted"):
        config.validate(tree(), Small, built=lambda cfg: stored)


def test_validate_looks_for_what_was_built_only_where_all_else_is_right():
    def built(cfg):
        raise AssertionError("a config with errors names no run")

    for wrong in ({"seed": "zero"}, {"seed": "???"}, {"seed": 1, "lr": "${rate}"}, {"sede": 1}):
        with pytest.raises(ConfigError):
            config.validate(OmegaConf.create(wrong), Small, built=built)


def test_nearest():
    known = ["training.lr", "training.epochs", "uq.members"]
    assert config.nearest("trainning.lr", known) == "training.lr"
    assert config.nearest("members", known) == "uq.members"
    assert config.nearest("zzz", known) is None


BASE = {
    "seed": 0,
    "outputs": "a",
    "data_root": "b",
    "dataset": {"data_root": "b", "cache": "c", "path": "p", "split": 1},
    "training": {"lr": 0.001, "progress": True, "checkpoint_seconds": 60, "accelerator": "cpu", "levels": [1, None]},
}
IRRELEVANT = {"outputs", "data_root", "dataset.data_root", "dataset.cache"}
IRRELEVANT |= {"training.progress", "training.checkpoint_seconds"}


def digest(**changes) -> str:
    cfg = OmegaConf.create(BASE)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return config.digest(cfg)


def test_digest_covers_all_that_can_change_a_result_and_nothing_else():
    leaves = [name for name in config.flatten(OmegaConf.create(BASE)) if name not in ("dataset", "training")]
    assert set(leaves) > IRRELEVANT
    for name in leaves:
        changed = digest(**{name: "changed"}) != digest()
        assert changed is (name not in IRRELEVANT), name
    assert digest(new=None) != digest()


def test_evaluations_of_a_finished_training_are_no_part_of_it():
    own = {"command": "train", "seed": 0}
    more = own | {"evaluations": {"far": {"split": "far"}}}
    assert config.digest(OmegaConf.create(own)) == config.digest(OmegaConf.create(more))
    assert config.settings(more) == own
    learning = [OmegaConf.create(one | {"command": "al"}) for one in (own, more)]
    assert config.digest(learning[0]) != config.digest(learning[1]), "its table holds their rows"


def test_digest_is_by_value():
    text = "{a: 1e-3, b: 2.0, c: '${a}', d: [x, 1]}"
    same = "{d: [x, 1.0], c: 0.001, b: 2, a: 0.001}"
    assert config.digest(OmegaConf.create(text)) == config.digest(OmegaConf.create(same))
    assert config.digest(OmegaConf.create("{a: 1}")) != config.digest(OmegaConf.create("{a: '1'}"))
    assert config.digest(OmegaConf.create("{a: 1}")) != config.digest(OmegaConf.create("{a: true}"))
    # Fixed for good: an innocent change of the code must not rename everybody's runs.
    expected = "01e8462897497f9a"
    assert config.digest(OmegaConf.create(text))[:16] == expected
    with pytest.raises(ConfigError):
        config.digest(OmegaConf.create({"a": "???"}))


def test_stored_config_has_the_same_digest(tmp_path):
    numbers = [1e-5, 0.1 + 0.2, 1e300, -0.0, float("inf"), 3, True, None]
    values = [*numbers, "1e-5", "null", "yes", "1_000", "a: b", "é", "${seed}"]
    cfg = OmegaConf.create({"seed": 3, "values": values})
    (tmp_path / "c.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    assert config.digest(OmegaConf.load(tmp_path / "c.yaml")) == config.digest(cfg)
