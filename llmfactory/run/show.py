"""`--cfg`: the composed config instead of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from llmfactory.config.compose import compose_job, search_path
from llmfactory.config.fields import nearest
from llmfactory.core.errors import ConfigError, Problem


def show_config(
    which: str, overrides: Sequence[str], config_dirs: Sequence[Path], config_name: str, package: str | None, resolve: bool
) -> None:
    """Print the job's config (always resolved: it is what a run would get), or Hydra's own, once the job's is right."""
    composed = compose_job([text for text in overrides if not is_hydras(text)], config_dirs, config_name)
    if which == "job":
        print(to_yaml(select(composed.plain, package)), end="")
        return
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    try:
        hydra = Hydra.create_main_hydra2("llmfactory", search_path(config_dirs, overrides))
        hydra.show_cfg(config_name, list(overrides), which, package, resolve)
    finally:
        GlobalHydra.instance().clear()


def is_hydras(text: str) -> bool:
    """Whether an override is about Hydra itself."""
    return text.lstrip("+~").startswith(("hydra.", "hydra/"))


def select(plain: dict[str, Any], package: str | None) -> Any:
    """The part of the config at a dotted key."""
    here: Any = plain
    for name in package.split(".") if package else []:
        if not isinstance(here, dict) or name not in here:
            near = nearest(name, list(here)) if isinstance(here, dict) else None
            reason = f"the config has no such key{f': did you mean {near}?' if near else ''}"
            raise ConfigError([Problem("--package", package, reason)])
        here = here[name]
    return here


def to_yaml(data: Any) -> str:
    if not isinstance(data, (dict, list)):
        return f"{data}\n"
    return str(
        yaml.dump(
            data, Dumper=yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper, sort_keys=False, allow_unicode=True
        )
    )
