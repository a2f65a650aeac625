"""`make test-portable`: its settings reach what computes, and one test that fails is told and fails it."""

import importlib.util
import subprocess
import sys

import pytest
from helpers import CONF

from uqbench.models.compiled import build

SCRIPT = CONF.parent / "scripts" / "portable.py"


@pytest.fixture
def portable(monkeypatch):
    spec = importlib.util.spec_from_file_location("portable", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (*module.VARIABLES, "OMP_NUM_THREADS", "UQBENCH_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    return module


def test_the_settings_reach_torch_and_the_kernels(portable):
    code = (
        "import torch; from uqbench.models.compiled import build, choice; "
        "print(torch.backends.cpu.get_cpu_capability().lower(), torch.get_num_threads(), choice.current, "
        "*[flag for flag in build.FLAGS if 'march' in flag])"
    )

    def said(*choice):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=portable.environment(*choice), capture_output=True, text=True).stdout.split()

    # Each takes an import of torch: the plainest instructions and the best that this CPU has.
    best = portable.best_capability()
    for level in {0, best}:
        march = ("x86-64", "x86-64-v3", "x86-64-v4")[level]
        assert said(portable.X86[level], 2, "torch") == [portable.X86[level], "2", "torch", f"-march={march}"]
    assert said("native", 1, "native")[1:] == ["1", "native", "-march=native"]


def test_other_instructions_are_another_library(monkeypatch):
    try:
        keys = {build.library_path()}
    except build.NoKernels as reason:
        pytest.skip(str(reason))
    for march in ("x86-64", "x86-64-v3"):
        monkeypatch.setattr(
            build, "FLAGS", tuple(f"-march={march}" if "march" in flag else flag for flag in build.FLAGS)
        )
        keys.add(build.library_path())
    assert len(keys) == 3


def test_a_test_that_fails_is_shown_and_fails_the_run(portable, tmp_path, capfd):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    numerics\n")
    for name, claim in (("good", "os.environ['OMP_NUM_THREADS'] == '2'"), ("bad", "1 == 2")):
        text = f"import os, pytest\npytestmark = pytest.mark.numerics\ndef test_{name}(): assert {claim}\n"
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "test_unmarked.py").write_text("def test_other(): assert False\n")
    variables = portable.environment("native", 2, "torch")
    assert portable.run("both", variables, 2, [str(tmp_path)]) == 1
    shown = capfd.readouterr().out
    assert "both  1 passed, 1 failed, 0 skipped" in shown.splitlines()[-1] and "assert 1 == 2" in shown
    assert portable.run("one", variables, 2, [str(tmp_path / "test_good.py")]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("one  1 passed, 0 failed, 0 skipped") and shown.count("\n") == 1


def test_what_is_unknown_is_refused_and_what_is_missing_is_told(portable, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["portable.py", "--capabilities", "avx3"])
    with pytest.raises(SystemExit):
        portable.main()
    assert "no instruction set avx3; choose from native, default, avx2, avx512" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["portable.py", "--capabilities", "default,avx512", "--threads", "1"])
    monkeypatch.setattr(portable, "best_capability", lambda: 0)
    monkeypatch.setattr(portable.platform, "machine", lambda: "x86_64")
    ran = []
    monkeypatch.setattr(portable, "run", lambda name, *_: ran.append(name.split()) or 0)
    assert portable.main() == 0
    assert ran == [["default", "threads=1", f"kernels={kernels}"] for kernels in ("torch", "native")]
    assert (
        capsys.readouterr().out.count("avx512   threads=1  kernels=torch   not run: this CPU does not have it\n") == 1
    )
    monkeypatch.setattr(portable.platform, "machine", lambda: "aarch64")
    assert portable.main() == 0
    assert ran[2:] == [["native", "threads=1", f"kernels={kernels}"] for kernels in ("torch", "native")]
    assert "default,avx512 are of x86-64, and this machine is aarch64: native instead" in capsys.readouterr().out
