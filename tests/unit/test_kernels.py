"""The native kernels against the torch bodies, and what happens where they cannot be had."""

import dataclasses
import itertools
import os
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
import torch
from scipy.special import expit

from uqbench.errors import ConfigError
from uqbench.models import compiled
from uqbench.models.compiled import Pairs, build, choice
from uqbench.models.compiled.activation import ACTIVATIONS
from uqbench.models.compiled.painn import MIX, MIX_LAST, PAINN, painn_norm
from uqbench.models.compiled.schnet import SCHNET
from uqbench.runs import ownership

pytestmark = pytest.mark.numerics

ATOMS, PAIRS, RADIAL = 7, 45, 5
REFERENCES = {"painn": PAINN, "painn_first": PAINN, "schnet": SCHNET, "mix": MIX, "mix_last": MIX_LAST}


@pytest.fixture(scope="module")
def native():
    bodies, reason = choice.native_forms()
    if reason:
        pytest.skip(reason)
    return bodies


@pytest.fixture
def fresh(monkeypatch):
    """No library is loaded yet; afterwards everything is as it was."""
    monkeypatch.setattr(choice, "current", choice.current)
    choice.reset()
    yield
    choice.reset()


def draw(kind, channels, dtype, members=2, atoms=ATOMS, pairs=PAIRS):
    """Random pairs, an atom with itself and two atoms twice among them; arguments and cotangents."""
    generator = torch.Generator().manual_seed(3)

    def randn(*shapes):
        return tuple(torch.randn(members, *shape, generator=generator, dtype=dtype) for shape in shapes)

    first, second = torch.randint(atoms, (2, pairs), generator=generator)
    graph, row = Pairs(first, second, atoms, members), (atoms, channels)
    if kind == "schnet":
        return graph, randn((pairs, channels), row), randn(row), randn((pairs, channels), row)
    if kind.startswith("mix"):
        one, three = row, (3, *row)
        shapes, results = [(one, three, three, one), (one, three)]
        shapes, results = (shapes[:3], results[:1]) if kind == "mix_last" else (shapes, results)
        return None, randn(*shapes), randn(*results), randn(*shapes)
    more = ((3, *row),) if kind == "painn" else ()
    shapes = (pairs, 3), (pairs, RADIAL), (2 + len(more), RADIAL, channels), (2, *row), *more
    return graph, randn(*shapes), randn(row, (3, *row)), randn(*shapes)


def same(found, expected, asked, dtype):
    """What was asked for is equal; an absent derivative is zero."""
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
    for a, b, wanted in zip(found, expected, asked, strict=True):
        if not wanted:
            continue
        if a is None or b is None:
            assert all(x is None or not x.any() for x in (a, b))
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


# One channel, a number that leaves a rest in every vector register, and one that leaves none.
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.float64), (37, torch.float32), (37, torch.float64), (64, torch.float32)], ids=str
)
@pytest.mark.parametrize("kind", REFERENCES)
def test_every_derivative_is_that_of_the_torch_body(native, kind, channels, dtype):
    reference = REFERENCES[kind]
    graph, arguments, g, cotangents = draw(kind, channels, dtype)
    body = native[reference.name]
    same(body.message(graph, arguments), reference.message(graph, arguments), [True] * len(g), dtype)
    for needs in itertools.product((True, False), repeat=len(arguments)):
        same(body.pullback(graph, arguments, g, needs), reference.pullback(graph, arguments, g, needs), needs, dtype)
        for given in itertools.product((True, False), repeat=len(arguments)):
            some = tuple(c if there else None for c, there in zip(cotangents, given, strict=True))
            if any(given):
                found, expected = (form.second(graph, arguments, g, some, needs) for form in (body, reference))
                same(found, expected, [*needs, *[True] * len(g)], dtype)


@pytest.mark.parametrize("kind", REFERENCES)
def test_strides_do_not_matter(native, kind):
    graph, arguments, g, cotangents = draw(kind, 33, torch.float64)
    body, needs = native[REFERENCES[kind].name], (True,) * len(arguments)

    def strided(tensors):
        """The same values with other things between them, and with channels apart."""
        wide = [torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0] for t in tensors]
        gaps = [torch.cat([t, torch.full_like(t, torch.nan)], dim=-1)[..., : t.shape[-1]] for t in tensors]
        return [tuple(wide), tuple(gaps)]

    expected = body.second(graph, arguments, g, cotangents, needs)
    for a, b, c in zip(strided(arguments), strided(g), strided(cotangents), strict=True):
        found = body.second(graph, a, b, c, needs)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", REFERENCES)
def test_threads_do_not_change_a_bit(native, kind):
    graph, arguments, g, cotangents = draw(kind, 100, torch.float32, atoms=60, pairs=700)
    body, needs, before = native[REFERENCES[kind].name], (True,) * len(arguments), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(body.second(graph, arguments, g, cotangents, needs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["painn", "painn_first", "schnet"])
def test_without_pairs_there_is_no_message(native, kind):
    graph, arguments, _, _ = draw(kind, 8, torch.float32, pairs=0)
    assert not any(result.any() for result in native[REFERENCES[kind].name].message(graph, arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*ACTIVATIONS, "norm"])
def test_functions_of_single_atoms_to_the_third_order(native, fresh, name, dtype):
    generator = torch.Generator().manual_seed(5)

    def randn(*shape):
        return (3 * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_(True)

    shapes = {"norm": [(2, 3, 4, 21), (2, 4, 21)]}.get(name, [(5, 21), (5, 21)])
    function = painn_norm if name == "norm" else ACTIVATIONS[name]
    x, g, c, e = randn(*shapes[0]), randn(*shapes[1]), randn(*shapes[0]), randn(*shapes[1])

    def derivatives(order):
        found = [function(x)]
        for k, (inputs, cotangents) in enumerate(([[x], [g]], [[x, g], [c]], [[x, g, c], [c, e]])[:order], start=1):
            found = torch.autograd.grad(found, inputs, cotangents, create_graph=k < order)
        return found

    for order in range(4):
        compiled.use("native")
        found = derivatives(order)
        compiled.use("torch")
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        for a, b in zip(found, derivatives(order), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_the_whole_range(native, fresh, name, dtype):
    largest = {torch.float32: 80.0, torch.float64: 700.0}[dtype]
    x = torch.cat([torch.linspace(-largest, largest, 4001, dtype=dtype), torch.tensor([0.0, -1e30, 1e30], dtype=dtype)])
    compiled.use("native")
    found, nan = ACTIVATIONS[name](x), ACTIVATIONS[name](torch.tensor([torch.nan, 1.0], dtype=dtype))
    exact = x.double().numpy()
    exact = exact * expit(exact) if name == "silu" else np.logaddexp(0, exact) - np.log(2)
    precise = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, torch.as_tensor(exact, dtype=dtype), rtol=precise, atol=precise)
    assert nan.isnan().tolist() == [True, False]


def test_without_a_compiler_torch_is_taken_with_one_line(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled.use("auto") == "torch"
    assert choice.chosen(PAINN, torch.zeros(1)) is PAINN
    (line,) = caplog.messages
    assert "no-such-compiler" in line and "\n" not in line
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler found"):
        compiled.use("native")


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch, tmp_path, caplog):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "out of luck" >&2\nexit 3\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("UQBENCH_CACHE", str(tmp_path / "cache"))
    assert compiled.use("auto") == "torch"
    assert "ended with 3 (out of luck)" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache" / "kernels").iterdir()] == [".lock"]


def test_a_library_that_cannot_be_loaded_is_named(fresh, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("UQBENCH_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    try:
        damaged = build.library_path()
    except build.NoKernels as reason:
        pytest.skip(str(reason))
    damaged.write_bytes(b"half of it")
    assert compiled.use("auto") == "torch"
    assert f"{damaged} cannot be loaded" in caplog.text and "delete it" in caplog.text


# A library that leaves a file when it is loaded.
TRAP = """
#include <cstdio>
#include <cstdlib>
struct Trap { Trap() { if (const char* path = std::getenv("TRAP")) std::fclose(std::fopen(path, "w")); } } trap;
"""


@pytest.fixture
def trap(fresh, monkeypatch, tmp_path):
    """A library where that of the kernels is looked for, in a folder that only we can write to; and what it leaves."""
    cache = tmp_path / "cache"
    (cache / "kernels").mkdir(parents=True)
    for folder in (cache, cache / "kernels"):
        folder.chmod(0o755)
    monkeypatch.setenv("UQBENCH_CACHE", str(cache))
    try:
        target = build.library_path()
    except build.NoKernels as reason:
        pytest.skip(str(reason))
    source = tmp_path / "trap.cpp"
    source.write_text(TRAP)
    subprocess.run([build.find_compiler(), "-shared", "-fPIC", source, "-o", target], check=True)
    target.chmod(0o755)
    monkeypatch.setenv("TRAP", str(tmp_path / "trapped"))
    monkeypatch.setattr(build, "SOURCES", [source])  # what is built instead takes a second
    monkeypatch.setattr(build, "library_path", lambda: target)
    return target, tmp_path / "trapped"


def test_a_library_of_our_own_is_loaded(trap):
    target, trapped = trap
    build.library()
    assert trapped.exists()


def foreign_file(target):
    os.chown(target, 54321, 54321)
    return target, "belongs to user 54321"


def foreign_folder(target):
    os.chown(target.parent, 54321, 54321)
    return target.parent, "belongs to user 54321"


def open_file(target):
    target.chmod(0o777)
    return target, "can be written by others (mode 777)"


def open_folder(target):
    target.parent.chmod(0o777)
    return target.parent, "can be written by others (mode 777)"


def sticky_folder(target):
    target.parent.chmod(0o1777)
    return target.parent, "can be written by others (mode 1777)"


def open_above(target):
    target.parents[1].chmod(0o777)
    return target.parents[1], "can be written by others (mode 777)"


def link_to_an_open_folder(target):
    elsewhere = target.parents[2] / "elsewhere"
    target.parent.rename(elsewhere)
    elsewhere.chmod(0o777)
    target.parent.symlink_to(elsewhere)
    return elsewhere, "can be written by others (mode 777)"


CHANGES = [foreign_file, foreign_folder, open_file, open_folder, sticky_folder, open_above, link_to_an_open_folder]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_library_that_may_be_somebody_elses_is_not_loaded(trap, change, caplog, monkeypatch, tmp_path):
    target, trapped = trap
    if change.__name__.startswith("foreign") and os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    build.SOURCES[0].write_text('extern "C" int honest() { return 1; }\n')
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place, reason = change(target)
    before = target.read_bytes()
    assert build.library().honest() == 1
    assert not trapped.exists()
    [line] = caplog.messages
    assert f"{place} {reason}" in line and "for this process alone" in line and "\n" not in line
    assert target.read_bytes() == before
    assert not list(tmp_path.glob("uqbench-kernels-*")), "nothing stays"


def test_what_is_built_is_for_nobody_else_to_write_whatever_the_umask(trap, caplog):
    target, _ = trap
    shutil.rmtree(target.parents[1])
    umask = os.umask(0)
    try:
        build.library()
    finally:
        os.umask(umask)
    assert target.exists() and not caplog.messages
    assert ownership.weakness(target) is None


def test_a_wrong_kernel_is_not_used(native, fresh, monkeypatch, caplog):
    def twice(graph, arguments):
        return tuple(2 * result for result in PAINN.message(graph, arguments))

    monkeypatch.setattr(choice, "forms", lambda _: {"painn": dataclasses.replace(PAINN, message=twice)})
    compiled.use("native")
    assert choice.chosen(PAINN, torch.zeros(1)) is PAINN
    assert "painn kernel is off by" in caplog.text


def test_what_native_code_does_not_know_is_left_to_torch(native, fresh):
    compiled.use("native")
    assert choice.chosen(PAINN, torch.zeros(1)) is not PAINN
    assert choice.chosen(PAINN, torch.zeros(1, dtype=torch.bfloat16)) is PAINN
    assert choice.chosen(PAINN, torch.zeros(1, device="meta")) is PAINN
    compiled.use("torch")
    assert choice.chosen(PAINN, torch.zeros(1)) is PAINN


def test_an_unknown_choice_is_an_error():
    with pytest.raises(ConfigError, match="choose one of auto, torch, native"):
        compiled.use("fast")
