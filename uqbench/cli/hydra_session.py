"""Hydra, opened on the config tree of the package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uqbench.errors import ConfigError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


@contextlib.contextmanager
def open_hydra(command: str, config_dir: str | None) -> Iterator[Hydra]:
    """Hydra with the config tree and, behind it, a folder of the user's on its search path."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    from uqbench.cli import config_source
    from uqbench.config import conf_dir

    version.setbase("1.3")
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise ConfigError(f"--config-dir {config_dir}: no such folder")
        folder = config_source.address(config_dir)
        search_path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    # A schema of the plugin's own under the name of our YAML: Hydra would merge the two and warn of doing so.
    ConfigStore.instance().repo.get("hydra", {}).get("launcher", {}).pop("joblib.yaml", None)
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name=command, config_search_path=search_path)
    finally:
        GlobalHydra.instance().clear()
