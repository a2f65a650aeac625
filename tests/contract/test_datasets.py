"""The contract of every data set in conf/dataset: what is added there is tested here without another line."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from uqbench import config
from uqbench.datasets.base import SPLITS, Dataset
from uqbench.errors import DataError
from uqbench.structures import Structures, check_splits

CONF = Path(config.conf_dir()) / "dataset"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
# Settings that say how to split and not what to read.
SPLIT_KEYS = {"split_seed", "n_train", "n_validation", "n_test", "block", "validation_fraction", "split_file"}


def node(option, data_root, cache):
    """The option as composed, with paths that do not exist where the user must give one."""
    cfg = OmegaConf.create({"seed": 0, "data_root": str(data_root)})
    cfg.dataset = OmegaConf.load(CONF / f"{option}.yaml")
    for key in cfg.dataset:
        if OmegaConf.is_missing(cfg.dataset, key):
            cfg.dataset[key] = "absent.file"
    if "url" in cfg.dataset:
        cfg.dataset.url = None
    if "cache" in cfg.dataset:
        cfg.dataset.cache = str(cache)
    return cfg.dataset


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_lists_every_argument_and_python_has_no_defaults(option):
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    target = config.locate(content.pop("_target_"))
    assert issubclass(target, Dataset)
    parameters = inspect.signature(target).parameters
    assert list(content) == list(parameters)
    defaults = [name for name, p in parameters.items() if p.default is not p.empty]
    assert defaults == [], "a default in Python is a number that --cfg job does not show"


@pytest.mark.parametrize("option", OPTIONS)
def test_the_seed_of_the_model_does_not_move_the_split(option):
    """Runs that differ in `seed` alone are compared on the same frames."""
    resolved = []
    for seed in (0, 1):
        cfg = OmegaConf.create({"seed": seed, "data_root": None, "dataset": OmegaConf.load(CONF / f"{option}.yaml")})
        resolved.append(OmegaConf.to_container(cfg, resolve=True)["dataset"])
    assert resolved[0] == resolved[1]


@pytest.mark.parametrize("option", OPTIONS)
def test_constructing_reads_nothing(option, tmp_path):
    dataset = config.build(node(option, tmp_path / "nowhere", tmp_path / "cache"))
    assert isinstance(dataset, Dataset)
    assert isinstance(dataset.subset, str)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", OPTIONS)
def test_it_loads_and_splits_or_says_in_one_line_what_is_missing(option, tmp_path):
    dataset = config.build(node(option, tmp_path / "nowhere", tmp_path / "cache"))
    try:
        structures = dataset.load()
    except DataError as error:
        assert "\n" not in str(error) and str(tmp_path / "nowhere") in str(error)
        assert error.exit_code == 2
        return
    assert isinstance(structures, Structures)
    assert structures.sha256() == config.build(node(option, tmp_path, tmp_path)).load().sha256()
    splits = dataset.split(structures)
    assert tuple(splits)[: len(SPLITS)] == SPLITS, "others may follow, as a test out of domain"
    check_splits(splits, len(structures))
    again = config.build(node(option, tmp_path, tmp_path)).split(structures)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_data_root_without_the_files_names_the_path(option, tmp_path):
    (tmp_path / "empty").mkdir()
    dataset = config.build(node(option, tmp_path / "empty", tmp_path / "cache"))
    try:
        dataset.load()
    except DataError as error:
        assert "\n" not in str(error) and str(tmp_path / "empty") in str(error)


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if SPLIT_KEYS & set(OmegaConf.load(CONF / f"{option}.yaml"))]
)
def test_split_settings_reach_the_split(option, tmp_path):
    cfg = node(option, tmp_path, tmp_path)
    try:
        structures = config.build(cfg).load()
    except DataError:
        pytest.skip(f"{option}: no data without a path")
    before = config.build(cfg).split(structures)
    cfg.split_seed = cfg.split_seed + 1
    after = config.build(cfg).split(structures)
    assert not all(np.array_equal(before[name], after[name]) for name in SPLITS)
