"""Where Hydra finds our configs: YAML files, and schemas made of spec classes the moment that one is asked for.

`/schema/<group>/<stem>` is served by a config source of our own (scheme `spec:`) whose path names the packages. It is put
into Hydra's registry of sources directly: Hydra's plugin scan imports every plugin that is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from llmfactory.config.fields import field_types
from llmfactory.config.register import class_of, option_folders
from llmfactory.core.spec import MISSING, Spec

SCHEMA = "schema/"


def schema_of(cls: type[Spec]) -> Any:
    """The class as a config. A part that it has by default is left open: the option's file chooses it, and Hydra cannot put
    another type in the place of one."""
    schema = OmegaConf.structured(cls)
    for name, kind in field_types(cls).items():
        if kind.is_spec and not OmegaConf.is_missing(schema, name) and schema[name] is not None:
            schema[name] = MISSING
    return schema


class SpecSource(ConfigSource):
    """Serves spec classes as schemas. Its path is the list of packages, `spec://llmfactory,my_package`."""

    @staticmethod
    def scheme() -> str:
        return "spec"

    def find(self, config_path: str) -> type[Spec] | None:
        """The class of `schema/<group>/<stem>`, or of `schema/<stem>` for the root's group."""
        path = config_path.removesuffix(".yaml")
        if not path.startswith(SCHEMA):
            return None
        group, _, name = path.removeprefix(SCHEMA).rpartition("/")
        return class_of(group, name, tuple(self.path.split(",")))

    def load_config(self, config_path: str) -> ConfigResult:
        cls = self.find(config_path)
        if cls is None:
            raise ConfigLoadError(f"no spec class for {config_path}")
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=schema_of(cls),
            header={"package": None},
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False  # so that schemas never show among options

    def is_config(self, config_path: str) -> bool:
        return self.find(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


_map_of_choices = defaults_list._create_interpolation_map
_NOTHING = OmegaConf.create()


def _map_where_needed(overrides: Any, defaults_list: list[Any], self_added: bool) -> Any:
    """All choices, for `${...}` among the entries of one defaults list. Hydra makes this map for each file, of all choices so far,
    which is most of the time that it takes to compose; where no entry refers to another, nobody looks into it."""
    if any(default.is_interpolation() for default in defaults_list):
        return _map_of_choices(overrides, defaults_list, self_added)
    return _NOTHING


defaults_list._create_interpolation_map = _map_where_needed


def register_sources() -> None:
    """Make the kinds of sources that we use known to Hydra; doing it again changes nothing."""
    registry = SourcesRegistry.instance()
    for source in (FileConfigSource, ImportlibResourcesConfigSource, StructuredConfigSource, SpecSource):
        registry.register(source)


def make_search_path(names: Sequence[str], config_dirs: Sequence[Path]) -> ConfigSearchPathImpl:
    """Hydra's own configs, ours, those of packages, the folders given, then the schemas."""
    register_sources()
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for number, folder in enumerate(option_folders(config_dirs, names)):
        path.append("main" if number == 0 else "own", f"file://{folder.absolute()}")
    path.append("specs", f"spec://{','.join(names)}")
    path.append("schema", "structured://")  # Hydra insists on this one at the end
    return path


def make_repository(names: Sequence[str], config_dirs: Sequence[Path]) -> CachingConfigRepository:
    """Loads configs by path, each once."""
    return CachingConfigRepository(ConfigRepository(make_search_path(names, config_dirs)))
