"""From a command line to a job, or to everything that is wrong with it.

1. Read the overrides with Hydra's grammar; check the choices of groups against the options that there are.
2. Let Hydra make the defaults list with those choices, and put the files' schemas and values into a typed tree, in order.
3. Put the values of the command line into the tree, by the same walk.
4. Look for what is missing, check every spec, then the rules between them.

Hydra raises at the first mistake in its own words; here each step collects problems, and the next one goes on with the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from llmfactory.config import rules
from llmfactory.config.arguments import Argument, parse
from llmfactory.config.build import build, check, missing
from llmfactory.config.choices import choose, wants_group
from llmfactory.config.defaults import Piece, Pieces, collect
from llmfactory.config.initial import TAKEN, start_from
from llmfactory.config.plain import from_plain, to_plain
from llmfactory.config.profiled import unwrapped, wrap
from llmfactory.config.register import doubles, groups, option_folders, packages
from llmfactory.config.source import make_search_path
from llmfactory.config.spec import Job
from llmfactory.config.suggest import unknown_key
from llmfactory.config.toy import toy
from llmfactory.config.tree import COMMAND_LINE, Branch, Tree, Unknown
from llmfactory.config.values import plugins_of, put, refused, resolve
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.stage.spec import Extend


@dataclass(frozen=True, slots=True)
class Composed:
    """A job that is right, and how it came about."""

    job: Job
    plain: dict[str, Any]
    """The resolved config as plain data (config/plain.py)."""
    choices: dict[str, str]
    """Option of each group, by override key; of a model or data taken over from `init`, a name for it."""
    overrides: list[str]
    """As given."""
    origins: dict[str, str]
    """Where each value came from, by dotted key; of a part's type, by its key with a dot behind."""
    config_dirs: tuple[Path, ...] = ()
    """Folders of options beside the package's own."""


def compose_job(overrides: Sequence[str], config_dirs: Sequence[Path] = (), config_name: str = "config") -> Composed:
    """Compose, check and build. Raises ConfigError with every problem."""
    arguments, problems = parse(overrides)
    config_dirs = _existing(config_dirs)
    names = packages(config_dirs, plugins_of(arguments))
    folders = option_folders(config_dirs, names)
    clashes = list(doubles(folders))
    if clashes:
        raise ConfigError(clashes)
    known = groups(folders)
    for argument in arguments:
        problems += refused(argument)
    arguments = [argument for argument in arguments if not argument.is_hydras and not argument.sweeps]
    arguments, of_profile = unwrapped(arguments)
    group_arguments = [argument for argument in arguments if wants_group(argument, known)]
    choices, wrong = choose(group_arguments, known, folders)
    problems += wrong
    try:
        pieces = collect(config_name, choices, names, config_dirs)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    tree = grow(pieces, folders)
    places = {place_of(key): f"{key}={option}" for key, option in choices.items()}
    values = [argument for argument in arguments if argument not in group_arguments]
    called = _start(tree, values, pieces, names)
    for argument in values:
        if argument.key != "init":
            put(tree, argument)
    if of_profile is not None:
        wrap(tree)
        for argument in of_profile:
            put(tree, argument)
    _add_plugins(tree, names)
    resolve(tree)
    unsure = {place_of(argument.group_key) for argument in group_arguments} - set(places)
    problems += tree.problems
    problems += [
        _swapped(item, tree, places) or unknown_key(item, tree, known, folders)
        for item in tree.unknown
        if not any(_below(item.path, place) for place in unsure)
    ]
    told = {problem.path for problem in problems} | {key for problem in problems for key in _keys(problem.repair)}
    problems += [
        problem
        for problem in missing(tree)
        if problem.path not in told and not any(_below(problem.path, place) for place in unsure)
    ]
    problems += check(tree)
    if problems:
        raise ConfigError(_once(problems))
    job = build(tree.root)
    assert isinstance(job, Job)
    origins = {key: origin for key, _, _, origin in tree.leaves()}
    origins |= {f"{path}.": branch.origin for path, branch in tree.branches() if path}
    for key, who in pieces.chosen_by.items():
        if f"{place_of(key)}." in origins:
            origins[f"{place_of(key)}."] += f", chosen by {who}"
    if job.init is not None and not isinstance(job.stage, Extend) and (other := _other_tokenizer(pieces, origins)):
        reason = f"with init= data are read with the tokenizer that comes with it, so the one of {other} has no effect"
        raise ConfigError([Problem("data.tokenizer", places.get("data.tokenizer", "set"), reason, "init=null")])
    if job.toy:
        small = _toy_but_typed(job, origins)
        if job.init is not None and small.model != job.model:
            reason = "the weights of init are those of the whole model"
            raise ConfigError([Problem("toy", True, reason, "toy=false")])
        _mark_toy(origins, to_plain(job), to_plain(small))
        job = small
    problems = rules.check(job)
    if problems:
        raise ConfigError(problems)
    kept = {key: option for key, option in pieces.choices.items() if option is not None}
    return Composed(job, to_plain(job), {**kept, **called}, list(overrides), origins, tuple(config_dirs))


def search_path(config_dirs: Sequence[Path] = (), overrides: Sequence[str] = ()) -> ConfigSearchPathImpl:
    """Where Hydra itself finds all this, for its sweeps; `overrides` may name plugins."""
    arguments, _ = parse(overrides)
    path = make_search_path(packages(config_dirs, plugins_of(arguments)), config_dirs)
    for plugin in Plugins.instance().discover(SearchPathPlugin):  # the first use imports all: sweepers, launchers, shells
        instance = plugin()
        assert isinstance(instance, SearchPathPlugin)
        instance.manipulate_search_path(path)
    return path


def grow(pieces: Pieces, folders: Sequence[Path]) -> Tree:
    """The tree that the files make."""
    tree = Tree(Branch.of(Job, "default"), folders)
    for piece in pieces.pieces:
        package = tree.entry(piece.package, piece.option)
        if piece.schema is not None:
            tree.place(package, piece.schema, piece.origin)
        elif piece.package:
            tree.assign(package, piece.body, piece.origin)
        else:
            tree.merge("", piece.body, piece.origin)
    return tree


def place_of(key: str) -> str:
    """The dotted key that an override key of a group goes to."""
    group, _, package = key.partition("@")
    return package or group.replace("/", ".")


def _existing(config_dirs: Sequence[Path]) -> list[Path]:
    gone = [folder for folder in config_dirs if not Path(folder).is_dir()]
    if gone:
        raise ConfigError([Problem("--config-dir", str(folder), "there is no such folder") for folder in gone])
    return [Path(folder) for folder in config_dirs]


def _start(tree: Tree, values: Sequence[Argument], pieces: Pieces, names: tuple[str, ...]) -> dict[str, str]:
    """`init` first, for what it brings is what the other values change: those of an experiment, then the command line's."""
    for argument in values:
        if argument.key in ("init", "output_dir", "name"):
            put(tree, argument)
    init = tree.root.values["init"]
    if not isinstance(init, str) or not init:
        return {}
    called = start_from(tree, init, {place_of(key) for key in pieces.chosen_by}, names)
    for piece in _free(pieces):
        tree.merge("", {key: piece.body[key] for key in TAKEN if key in piece.body}, piece.origin)
    return called


def _free(pieces: Pieces) -> list[Piece]:
    """Files that set values anywhere: the main config and experiments."""
    return [piece for piece in pieces.pieces if piece.schema is None and not piece.package]


def _other_tokenizer(pieces: Pieces, origins: Mapping[str, str]) -> str | None:
    """Who picks or changes the tokenizer; None: nobody."""
    chosen = next((who for key, who in pieces.chosen_by.items() if place_of(key) == "data.tokenizer"), None)
    free = {COMMAND_LINE, *(piece.origin for piece in _free(pieces))}
    return chosen or next(iter(sorted(free & _origins_below(origins, "data.tokenizer"))), None)


def _add_plugins(tree: Tree, names: Sequence[str]) -> None:
    """Packages of a plugins.txt are named in the config, so that a worker or a later run finds them too."""
    installed = set(packages())
    own = [name for name in names if name not in installed]
    if own and isinstance(tree.root.values["plugins"], list):
        tree.root.values["plugins"] = own


def _below(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}.")


def _swapped(item: Unknown, tree: Tree, places: Mapping[str, str]) -> Problem | None:
    """A file sets what a part chosen on the command line does not have."""
    if item.origin == COMMAND_LINE:
        return None
    place = max((place for place in places if _below(item.path, place)), key=len, default=None)
    if place is None or places[place].partition("=")[0].startswith("experiment"):
        return None
    fields = ", ".join(field.name for field in dataclasses.fields(item.inside)) or "no fields"
    reason = (
        f"{item.origin} sets it, but {places[place]} on the command line has no such field: {item.inside.__name__} has {fields}"
    )
    return Problem(item.path, item.value, reason)


def _origins_below(origins: Mapping[str, str], place: str) -> set[str]:
    """Where the values below a place come from."""
    return {origin for key, origin in origins.items() if _below(key, place)}


def _keys(repair: str | None) -> list[str]:
    """Keys that a repair sets."""
    return [word.partition("=")[0].strip("'") for word in (repair or "").split(" ") if "=" in word]


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem told once."""
    return list({(problem.path, problem.reason): problem for problem in problems}.values())


def _toy_but_typed(job: Job, origins: Mapping[str, str]) -> Job:
    """The job with a small model, except for what the command line says itself."""
    before, after = to_plain(job), to_plain(toy(job))
    for key in [key for key, origin in origins.items() if origin == COMMAND_LINE and key != "toy"]:
        *above, name = key.split(".")
        old, new = before, after
        for part in above:
            old, new = old[part], new[part]
        new[name] = old[name]
    return from_plain(after)


def _mark_toy(origins: dict[str, str], before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> None:
    """Values that `toy=true` changed."""
    for key, value in after.items():
        path, old = f"{prefix}{key}", before.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and path not in origins:
            _mark_toy(origins, old, value, f"{path}.")
        elif value != old and path in origins:
            origins[path] = "toy"
