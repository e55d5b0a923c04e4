"""Which files make up a config, in which order: Hydra's own defaults list, and its errors in our words."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmfactory.config.choices import SEVERAL, Choice, adds
from llmfactory.config.register import conf_folder, option_folders
from llmfactory.config.source import SCHEMA, make_repository
from llmfactory.config.tree import COMMAND_LINE
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import Spec


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the flat defaults list."""

    package: str
    """Dotted key that it goes to."""
    origin: str
    """The file, for people."""
    schema: type[Spec] | None
    """The class that it places, or"""
    body: dict[Any, Any]
    """the values that it sets."""
    option: str = ""
    """Name of the option that the file is."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The flat defaults list of one command line."""

    pieces: list[Piece]
    choices: dict[str, str | None]
    """Option of each group, by override key; without groups of which there may be several."""
    chosen_by: dict[str, str]
    """Who overrode the option of a group, by override key."""


def collect(config_name: str, choices: dict[str, Choice], names: Sequence[str], config_dirs: Sequence[Path]) -> Pieces:
    """Files of the primary config with these choices of groups. Raises ConfigError."""
    state = tuple(sorted(one for folder in option_folders(config_dirs, names) for one in _files(str(folder))))
    chosen = tuple((key, tuple(option) if isinstance(option, list) else option) for key, option in choices.items())
    return _collect(config_name, chosen, tuple(names), tuple(config_dirs), state, os.getcwd())


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """(path, time of the last change, size) of each option's file in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path)
            elif entry.name.endswith(".yaml"):
                state = entry.stat()
                yield entry.path, state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=512)
def _collect(
    config_name: str,
    chosen: tuple[tuple[str, str | tuple[str, ...] | None], ...],
    names: tuple[str, ...],
    config_dirs: tuple[Path, ...],
    *state: Any,
) -> Pieces:
    """Members of a sweep differ in values most of the time; `state` tells when a file has changed."""
    choices = dict(chosen)
    repository = _repository(names, config_dirs, *state)
    lines = [
        f"~{key}" if option is None else f"{'+' if adds(key) else ''}{key}={_typed(option)}" for key, option in choices.items()
    ]
    try:
        parsed = OverridesParser.create().parse_overrides(lines)
        found = create_defaults_list(repository, config_name, parsed, prepend_hydra=False, skip_missing=False)
        pieces = [_piece(repository, default) for default in found.defaults]
    except yaml.YAMLError as error:
        raise ConfigError([broken_yaml(error)]) from error
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError([_in_our_words(str(error), choices)]) from error
    by = {key: data.containing_config_path for key, data in found.overrides.override_metadata.items()}
    chosen_by = {key: f"conf/{file}.yaml" if file else COMMAND_LINE for key, file in by.items()}
    return Pieces(pieces, dict(reversed(found.overrides.known_choices.items())), chosen_by)


@functools.lru_cache(maxsize=8)
def _repository(names: tuple[str, ...], config_dirs: tuple[Path, ...], *state: Any) -> IConfigRepository:
    """Reads each file once for all compositions, as Hydra does for all members of a sweep."""
    return make_repository(names, config_dirs)


def _piece(repository: IConfigRepository, default: Any) -> Piece:
    path, package = default.config_path, default.package or ""
    loaded = repository.load_config(path)
    assert loaded is not None
    if path.startswith(SCHEMA):
        cls = OmegaConf.get_type(loaded.config)
        assert cls is not None
        parent = repository.load_config(default.parent)
        return Piece(package, _shown(parent.path if parent else "", default.parent), cls, {}, _option(default.parent))
    body = OmegaConf.to_container(loaded.config, resolve=False)
    if not isinstance(body, dict):
        raise ValueError(f"In '{path}': a config must be a mapping")
    if not package:
        body.pop("hydra", None)
    return Piece(package, _shown(loaded.path, path), None, body, _option(path))


def _typed(option: str | tuple[str, ...]) -> str:
    return option if isinstance(option, str) else f"[{','.join(option)}]"


def _option(path: str) -> str:
    return path.rpartition("/")[2]


def _shown(source: str, path: str) -> str:
    """The file of an option: short for ours, with its folder for others'."""
    folder = Path(source.partition("://")[2])
    if folder == conf_folder():
        return f"conf/{path}.yaml"
    return os.path.relpath(folder / f"{path}.yaml")


def broken_yaml(error: yaml.YAMLError) -> Problem:
    """A file that is no YAML: its name, line and column."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    if mark is None:
        return Problem("YAML", "", reason)
    line = _line(mark)
    return Problem(
        f"{os.path.relpath(mark.name)}, line {mark.line + 1}", line, f"is no YAML: {context + ', ' if context else ''}{reason}"
    )


def _line(mark: Any) -> str:
    try:
        return str(Path(mark.name).read_text(encoding="utf-8").splitlines()[mark.line].strip())
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


def _in_our_words(message: str, choices: Mapping[str, str | tuple[str, ...] | None]) -> Problem:
    """What Hydra says about a defaults list."""
    text = " ".join(message.partition("Config search path:")[0].split())
    file = re.match(r"In '([^']+)': ", text)
    text = text[file.end() :] if file else text
    unused = re.match(r"Could not override '([^']+)'\.(?: Did you mean to override (.*?)\?|.*)", text)
    if unused and file:
        wanted = ", ".join(f"{key}={option}" for key, option in choices.items() if key == "model") or "what is chosen"
        reason = f"{file[1]}.yaml overrides this part, but {wanted} on the command line has no such part"
        return Problem(unused[1], f"{file[1]}.yaml", reason, "experiment=null")
    if unused:
        key, others = unused[1], unused[2]
        value = _typed(choices.get(key) or "")
        if several := next((one for one in SEVERAL.values() if one.whole and one.key == key), None):
            assert several.whole is not None
            return Problem(key, value, "this config takes one of them, not several", "=".join(several.whole))
        if others:
            others = others.removeprefix("one of ")
            first = others.split(", ")[0]
            return Problem(key, value, f"the config has this part at another place: {others}", f"{first}={value}")
        return Problem(key, value, "the config has no such part")
    missing = re.match(r"Could not (?:find|load) '([^']+)'", text)
    if missing:
        return Problem(
            f"{file[1]}.yaml" if file else "defaults", missing[1], "its defaults list names this config, which does not exist"
        )
    if "primary config" in text:
        return Problem("--config-name", text.split("'")[1], "there is no such file among the configs")
    return Problem(f"{file[1]}.yaml" if file else "defaults", None, text)
