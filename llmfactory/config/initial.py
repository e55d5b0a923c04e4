"""`init=<run folder>`: model and data start from that run's resolved config unless the command line picks others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from llmfactory.config.fields import field_types
from llmfactory.config.plain import spec_from_plain
from llmfactory.config.register import packages
from llmfactory.config.tree import Branch, Tree
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import Spec, stem

CONFIG = "config.yaml"
TAKEN = ("model", "data")


def run_of(init: str) -> Path | None:
    """The run folder that `init` names or lies in; None: it is no run of ours."""
    path = Path(init).expanduser()
    return next((folder for folder in (path, *list(path.absolute().parents)[:2]) if (folder / CONFIG).is_file()), None)


def start_from(tree: Tree, init: str, chosen: Iterable[str], names: tuple[str, ...]) -> dict[str, str]:
    """Put the run's model and data into the tree; returns what to call them. `chosen`: keys that the command line picked."""
    path, output_dir = Path(init).expanduser(), tree.root.values["output_dir"]
    if not path.is_dir():
        tree.problems.append(_no_folder(init, str(output_dir)))
        return {}
    run = run_of(init)
    if run is None:
        return {}
    try:
        saved = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ConfigError([Problem("", saved, "it holds no config")])
        names = tuple(dict.fromkeys([*names, *packages(plugins=saved.get("plugins") or ())]))
        types = field_types(tree.root.cls)
        found = {key: spec_from_plain(saved.get(key, {}), types[key].base, names, key) for key in TAKEN}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError) as error:
        reason = f"{run / CONFIG} is not one that this version can read: {' '.join(str(error).split())}"
        tree.problems.append(Problem("init", init, reason, "init=null"))
        return {}
    chosen, called = set(chosen), {}
    for key, spec in found.items():
        if key in chosen:
            continue
        new = branch_of(spec, f"init ({run / CONFIG})")
        for part in (part for part in chosen if part.startswith(f"{key}.")):
            _keep_part(tree, new, part)
        tree.root.values[key] = new
        called[key] = run.name if key == "model" else stem(new.values["source"].cls)
    return called


def branch_of(spec: Spec, origin: str) -> Branch:
    """A branch with the values of a spec."""
    values = {field.name: _branched(getattr(spec, field.name), origin) for field in dataclasses.fields(spec)}
    return Branch(type(spec), origin, values, dict.fromkeys(values, origin))


def _branched(value: Any, origin: str) -> Any:
    if isinstance(value, Spec):
        return branch_of(value, origin)
    if isinstance(value, dict):
        return {key: _branched(item, origin) for key, item in value.items()}
    return value


def _keep_part(tree: Tree, new: Branch, path: str) -> None:
    """A part that the command line picked stays, with the run's values of what all parts of its group have."""
    part, kind = tree.find(path), tree.type_at(path)
    inside = Tree(new)
    key = path.partition(".")[2]
    old = inside.find(key)
    holder = inside.find(key.rpartition(".")[0])
    if not isinstance(part, Branch) or not isinstance(old, Branch) or not isinstance(holder, Branch) or kind is None:
        return
    for field in dataclasses.fields(kind.base):
        part.values[field.name], part.origins[field.name] = old.values[field.name], old.origins[field.name]
    holder.values[key.rpartition(".")[2]] = part


def _no_folder(init: str, output_dir: str) -> Problem:
    """No such folder; the runs that there are."""
    runs = sorted(Path(output_dir).glob(f"*/{CONFIG}"), key=lambda file: -file.stat().st_mtime)
    if not runs:
        return Problem("init", init, f"there is no such folder, and no run below {output_dir} yet", "init=null")
    folders = [str(file.parent) for file in runs]
    shown = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "")
    return Problem("init", init, f"there is no such folder; runs: {shown}", f"init={folders[0]}")
