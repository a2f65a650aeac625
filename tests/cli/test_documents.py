"""Every command in the documents is one that the program takes: its overrides are composed and checked, not run."""

import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from uqbench.cli.hydra_session import open_hydra
from uqbench.cli.main import _parse_flags, commands
from uqbench.cli.overrides import Request
from uqbench.config import Skeleton

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
# Conclusions that were drawn from runs that do not carry them (docs/reproduction.md says why), and tests of ranks.
WITHDRAWN = (
    *("some 500", "no better than random", "4e-8|10⁻⁸", r"\bp = 0?\.?\d", r"critical difference \d"),
    *("changes more with the seed", "find nothing new", "told from the last two", r"change out of domain\? Yes"),
)
PLACEHOLDER = re.compile(r"<\w+>|…|\$\w+")  # what a person fills in
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language):
    for path in DOCUMENTS:
        for found, text in BLOCK.findall(path.read_text()):
            if found == language:
                yield path, text


def lines():
    """Every line of the shell blocks as words, without comments."""
    found = []
    for path, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = [PLACEHOLDER.sub("x", word) for word in shlex.split(line, comments=True)]
            if words:
                found.append(pytest.param(words, id=f"{path.relative_to(ROOT)}: {line.strip()[:80]}"))
    return found


def after(words, program):
    """The words that follow a program's name, behind assignments such as VARIABLE=value."""
    while words and "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    return words[1:] if words and words[0].rpartition("/")[2] == program else None


@pytest.mark.parametrize("words", [line for line in lines() if after(line.values[0], "uqbench") is not None])
def test_command(words):
    command, *arguments = after(words, "uqbench")
    assert command in commands() or command.startswith("--")
    if command.startswith("--"):
        return
    flags = _parse_flags(command, arguments)
    with open_hydra(command, None) as hydra:
        request = Request(hydra.config_loader, command, flags.overrides, flags.multirun)
        skeleton = getattr(importlib.import_module(f"uqbench.cli.commands.{command}"), "Skeleton", Skeleton)
        if not flags.help:
            assert request.jobs(skeleton)


@pytest.mark.parametrize("words", [line for line in lines() if after(line.values[0], "make") is not None])
def test_make(words):
    found = subprocess.run(
        ["make", "-n", *after(words, "make")], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 0, found.stderr


def test_python_examples_can_be_read():
    found = [text for _, text in blocks("python")]
    assert found
    for text in found:
        ast.parse(text)
        for name in re.findall(r"^(?:from|import) (uqbench[\w.]*)", text, re.MULTILINE):
            importlib.import_module(name)


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("words", WITHDRAWN)
def test_what_is_withdrawn_is_claimed_nowhere(words):
    for path in DOCUMENTS:
        text = " ".join(path.read_text().split())
        assert not re.search(words, text), f"{path.name}: {re.search(f'.{{0,60}}{words}.{{0,60}}', text)[0]}"


def test_verdicts_that_are_decided_are_called_provisional():
    for name in ("README.md", "docs/reproduction.md"):
        for paragraph in re.split(r"\n(?=- |\n)", (ROOT / name).read_text()):
            if re.search(r"\(?C[1-6]\b", paragraph) and re.search(r"\b(supported|contradicted)\b", paragraph):
                assert "provisionally" in paragraph, paragraph
