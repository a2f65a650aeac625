"""A folder of config files that somebody else may have written: each is measured before Hydra reads it."""

import os

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult

from uqbench.config import yamlfile
from uqbench.errors import ConfigError


class CheckedSource(FileConfigSource):
    """A folder on Hydra's search path, named by `address`."""

    @staticmethod
    def scheme() -> str:
        return "checked"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a config file; raises ConfigError with its path where it is damaged, or takes too long to build."""
        path = os.path.join(self.path, self._normalize_file_name(config_path))
        try:
            yamlfile.check(yamlfile.read(path))
            return super().load_config(config_path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def address(folder: str | os.PathLike) -> str:
    """How Hydra's search path names a folder whose files are checked."""
    SourcesRegistry.instance().register(CheckedSource)
    return f"{CheckedSource.scheme()}://{os.path.abspath(folder)}"
