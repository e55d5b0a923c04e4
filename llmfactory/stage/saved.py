"""The config that a checkpoint of ours carries."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml  # type: ignore[import-untyped]

from llmfactory.config.initial import CONFIG
from llmfactory.config.plain import spec_from_plain
from llmfactory.config.register import packages
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.core.spec import Spec

S = TypeVar("S", bound=Spec)


def saved_spec(checkpoint: Path, declared: type[S], *place: str) -> S | None:
    """A part of the config that a checkpoint of ours carries; None: it carries none."""
    path = checkpoint / CONFIG
    if not path.is_file():
        return None
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = packages(plugins=saved.get("plugins") or ())
        for key in place:
            saved = saved[key]
        found = spec_from_plain(saved, declared, names, ".".join(place))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise UserError(f"{path} does not say {' '.join(place)}: {error}") from error
    assert isinstance(found, declared)
    return found
