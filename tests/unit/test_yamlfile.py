"""YAML that would take too long to build is told from its events; what is refused here stops everywhere."""

import time

import pytest
import yaml
from helpers import CONF, bomb

from uqbench.config import yamlfile


def written_out(value: object) -> int:
    """Values of a document as they are counted, from what a loader has built."""
    if isinstance(value, dict):
        return 1 + sum(1 + written_out(item) for item in value.values())
    if isinstance(value, list):
        return 1 + sum(map(written_out, value))
    return 1


@pytest.mark.parametrize("path", sorted(CONF.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_our_own_configs_are_far_from_every_limit(path):
    text = yamlfile.read(path)
    assert 10 * len(text.encode()) < yamlfile.BYTES
    assert 10 * yamlfile.check(text) < yamlfile.VALUES


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "[]",
        "a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]",
        "a: &x 1\nb: [*x, *x]",
        "a: &x {b: 1}\nc: {<<: *x}",
        bomb(4),
    ],
)
def test_values_are_counted_as_if_no_alias_were_used(text):
    counted = yamlfile.check(text)
    merge = text.count("<<")  # the key itself and the mapping that it brings are counted, and then gone
    assert counted == written_out(yaml.safe_load(text)) + 2 * merge


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(), "more than 5000 values"),
        (bomb(40, 2), "more than 5000 values"),
        (bomb().replace("[", "{<<: [").replace("]", "]}").replace("{<<: [1]}", "{x: 1}"), "more than 5000 values"),
        ("a: &a [*a]", r"\*a has no complete &a before it"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 30 deep"),
        ("- " * 100 + "x", "nested more than 30 deep"),
        ("[" + "1, " * 6000 + "1]", "more than 5000 values"),
    ],
)
def test_what_grows_out_of_proportion_is_refused_at_once(text, reason):
    start = time.process_time()
    with pytest.raises(yamlfile.Oversized, match=reason):
        yamlfile.check(text)
    assert time.process_time() - start < 1.0


def test_files_are_read_as_far_as_a_config_goes(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("x" * (yamlfile.BYTES + 1))
    with pytest.raises(yamlfile.Oversized, match="more than 131072 bytes"):
        yamlfile.read(path)
    path.write_text("ä" * (yamlfile.BYTES // 2))
    assert len(yamlfile.read(path)) == yamlfile.BYTES // 2
    for other in ("/dev/zero", tmp_path, tmp_path / "absent"):
        with pytest.raises(OSError, match="is not a file"):
            yamlfile.read(other)
