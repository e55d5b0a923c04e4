"""`init=`: the model, and of a run of ours the data too, start from what the path itself says of them; so does the method of a run
whose adapters cannot be put into the model's weights.

A run folder has its resolved config; a published model (HF folder, GGUF file) its metadata. What the command line or an
experiment picks counts more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from llmfactory.checkpoint.names.adapter import open_adapter
from llmfactory.checkpoint.names.adapter_methods import spec_of
from llmfactory.checkpoint.names.folder import ADAPTER, is_adapter
from llmfactory.checkpoint.names.published import is_published, open_published
from llmfactory.checkpoint.names.sentence import MODULES, sentence_head
from llmfactory.config.fields import field_types
from llmfactory.config.plain import spec_from_plain
from llmfactory.config.register import packages
from llmfactory.config.saved import CONFIG, saved_config, saved_spec
from llmfactory.config.tree import Branch, Tree
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.core.spec import Spec, stem
from llmfactory.peft.spec import PeftSpec
from llmfactory.stage.spec import Describe, Embed, TrainingSpec

TAKEN = ("model", "data")
PEFT = "peft"


def run_of(init: str) -> Path | None:
    """The run folder that `init` names or lies in; None: it is no run of ours."""
    path = Path(init).expanduser()
    return next((folder for folder in (path, *list(path.absolute().parents)[:2]) if (folder / CONFIG).is_file()), None)


def start_from(tree: Tree, init: str, chosen: Iterable[str], names: tuple[str, ...]) -> dict[str, str]:
    """Put the model and data of `init` into the tree; returns what to call them. `chosen`: keys that somebody picked."""
    path = Path(init).expanduser()
    if is_published(path):
        return _start_published(tree, init, path, chosen)
    run = run_of(init) if path.is_dir() else _going_on(tree, init)
    if run is None:
        if not path.is_dir():
            tree.problems.append(_no_folder(init, str(tree.root.values["output_dir"]), _without(tree)))
        return {}
    try:
        saved = saved_config(run)
        names = tuple(dict.fromkeys([*names, *packages(plugins=saved.get("plugins") or ())]))
        types = field_types(tree.root.cls)
        found = {key: spec_from_plain(saved.get(key, {}), types[key].base, names, key) for key in TAKEN}
        method = spec_from_plain(saved.get(PEFT, {}), types[PEFT].base, names, PEFT)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError) as error:
        reason = f"{run / CONFIG} is not one that this version can read: {' '.join(str(error).split())}"
        tree.problems.append(Problem("init", init, reason, _without(tree)))
        return {}
    called = {"model": run.name, "data": ""}
    origin = f"init ({run / CONFIG})"
    for key in [key for key, spec in found.items() if not _put(tree, key, spec, origin, chosen)]:
        del called[key]
    if isinstance(method, PeftSpec) and not method.merges:
        _put(tree, PEFT, method, origin, chosen)
    if "data" in called:
        data = tree.root.values["data"]
        told = next((data.values[part] for part in ("source", "task") if part in data.values), data)
        called["data"] = stem(told.cls)
    return called


def method_of(init: str) -> PeftSpec | None:
    """How the trained part of what `init` names was trained; None: it says nothing of it, or cannot be read, which whoever reads it
    for good says."""
    path = Path(init).expanduser()
    try:
        if is_adapter(path):
            return spec_of(open_adapter(path))
        run = None if is_published(path) else run_of(init)
        return None if run is None else saved_spec(run, PeftSpec, PEFT)
    except UserError:
        return None


def _without(tree: Tree) -> str | None:
    """How to go on without `init`, where the stage can."""
    stage = tree.root.values["stage"]
    return "init=null" if isinstance(stage, Branch) and issubclass(stage.cls, (TrainingSpec, Describe)) else None


def _start_published(tree: Tree, init: str, path: Path, chosen: Iterable[str]) -> dict[str, str]:
    """The model that the metadata describe; where vectors of texts are wanted, with the pooling that they describe."""
    chosen, embeds = set(chosen), tree.root.values["stage"].cls is Embed
    try:
        published = open_published(path)
        method = spec_of(open_adapter(path)) if is_adapter(path) else None
        head = sentence_head(path) if embeds and not {"model", "model.head"} & chosen else None
    except UserError as error:
        tree.problems.append(Problem("init", init, str(error).rstrip("."), _without(tree)))
        return {}
    if method is not None and not method.merges:
        _put(tree, PEFT, method, f"init ({path / ADAPTER})", chosen)
    if not _put(tree, "model", published.spec, f"init ({published.origin})", chosen):
        return {}
    if head is not None:
        tree.root.values["model"].values["head"] = branch_of(head, f"init ({path / MODULES})")
    return {"model": path.stem if published.is_gguf else path.resolve().name}


def _put(tree: Tree, key: str, spec: Spec, origin: str, chosen: Iterable[str]) -> bool:
    """The spec at a key, unless somebody picked another; parts that were picked stay."""
    chosen = set(chosen)
    if key in chosen:
        return False
    new = branch_of(spec, origin)
    for part in (part for part in chosen if part.startswith(f"{key}.")):
        _keep_part(tree, new, part)
    tree.root.values[key] = new
    return True


def _going_on(tree: Tree, init: str) -> Path | None:
    """The job's own run folder where it was begun with this `init`, which may be gone by now."""
    name, output_dir = tree.root.values["name"], tree.root.values["output_dir"]
    if not isinstance(name, str) or not name:
        return None
    run = Path(str(output_dir), name).expanduser()
    try:
        return run if saved_config(run).get("init") == init else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError):
        return None


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


def _no_folder(init: str, output_dir: str, repair: str | None) -> Problem:
    """No such file or folder; the runs that there are."""
    runs = sorted(Path(output_dir).glob(f"*/{CONFIG}"), key=lambda file: -file.stat().st_mtime)
    if not runs:
        return Problem("init", init, f"there is no such file or folder, and no run below {output_dir} yet", repair)
    folders = [str(file.parent) for file in runs]
    shown = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "")
    return Problem("init", init, f"there is no such file or folder; runs: {shown}", f"init={folders[0]}")
