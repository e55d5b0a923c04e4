"""The config that a run folder, or a checkpoint, of ours carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from llmfactory.config.plain import spec_from_plain
from llmfactory.config.register import packages
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.core.spec import Spec

CONFIG = "config.yaml"
S = TypeVar("S", bound=Spec)


def saved_config(folder: Path) -> dict[str, Any]:
    """The resolved config, whole."""
    saved = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(saved, dict):
        raise ConfigError([Problem("", saved, "it holds no config")])
    return saved


def saved_spec(folder: Path, declared: type[S], *place: str) -> S | None:
    """A part of the config; None: the folder carries none."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        saved = saved_config(folder)
        names = packages(plugins=saved.get("plugins") or ())
        for key in place:
            saved = saved[key]
        found = spec_from_plain(saved, declared, names, ".".join(place))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise UserError(f"{path} does not say {' '.join(place)}: {error}") from error
    assert isinstance(found, declared)
    return found
