"""`--help` and `llmfactory options`: read off the option files and the spec classes, without composing anything."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from llmfactory.config.fields import default, field_types, nearest
from llmfactory.config.register import class_of, groups, option_files, option_folders, packages
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import MISSING, field_docs

HELP = """\
llmfactory: any language-model job, composed from config groups.

usage: llmfactory [option ...] [group=option ...] [key=value ...]

  group=option        choose a part, whole or below: model=gpt2_tiny  model/attention=gqa_kv8
  key=value           set a value: optim.lr=3e-4  trainer.max_steps=1000  data.source.files=[a.txt,b.txt]
  -m, --multirun      one run for each combination: -m optim.lr=1e-3,3e-4 model=llama_tiny,gpt2_tiny

  --cfg job           print the composed config instead of running it (-p KEY: a part of it; hydra, all: Hydra's too)
  --config-dir DIR    a folder of options of your own, behind ours; its plugins.txt may name packages with parts
  --config-name NAME  another primary config than config.yaml
  --shell-completion  install=bash, zsh or fish: eval "$(llmfactory -sc install=bash)"
  --help, --version
  options [GROUP]     options of a group with their fields and defaults; without a group: of all groups, by name

examples:
  llmfactory                                                         train on the documentation of your own Python
  llmfactory stage=describe model=llama3_8b                          what would run, and where each value comes from
  llmfactory data=text 'data.source.files=[my/*.txt]' name=mine      train on files of your own
  llmfactory name=mine trainer.max_steps=2000                        the same name goes on where it stopped
  llmfactory stage=generate init=outputs/mine 'stage.prompt=def read('

groups:
"""


def print_help(config_dirs: Sequence[Path] = ()) -> None:
    folders = _folders(config_dirs)
    print(HELP + "\n".join(_group_lines(folders)))


def print_options(asked: Sequence[str], config_dirs: Sequence[Path] = ()) -> None:
    """Of the groups asked for, at length; of all, by name."""
    folders = _folders(config_dirs)
    known = groups(folders)
    if not asked:
        print("\n".join(_group_lines(folders)))
        return
    for group in asked:
        if group not in known:
            near = nearest(group, known)
            meant = f": did you mean {near}?" if near else f"; there are {', '.join(known)}"
            raise ConfigError([Problem("options", group, f"is no group{meant}", near and f"options {near}")])
    print("\n\n".join(_one_group(group, folders, packages(config_dirs)) for group in asked))


def _folders(config_dirs: Sequence[Path]) -> list[Path]:
    return option_folders(config_dirs, packages(config_dirs))


def _group_lines(folders: Sequence[Path]) -> Iterator[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    for group in groups(folders):
        names = ", ".join(option_files(group, folders))
        yield textwrap.fill(names, width, initial_indent=f"  {group:<18}  ", subsequent_indent=" " * 22, break_on_hyphens=False)


def _one_group(group: str, folders: Sequence[Path], names: tuple[str, ...]) -> str:
    """Each option with its comment, then the fields of each class behind them."""
    lines, classes = [f"{group}:"], {}
    files = option_files(group, folders)
    width = max(map(len, files))
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        what, _ = first_comment(text)
        schema = re.search(r"/schema/([\w/]+)@_here_", text)
        lines.append(f"  {name:<{width}}  {what}")
        if schema:
            where, _, stem = schema[1].rpartition("/")
            classes[schema[1]] = class_of(where, stem, names)
    for path, cls in classes.items():
        if cls is not None:
            users = [name for name, file in files.items() if f"/schema/{path}@_here_" in file.read_text(encoding="utf-8")]
            lines += ["", f"  fields of {', '.join(users)}:", *_fields(cls)]
    return "\n".join(lines)


def _fields(cls: Any) -> Iterator[str]:
    docs, types = field_docs(cls), field_types(cls)
    if not types:
        yield "    none"
    for field in dataclasses.fields(cls):
        if types[field.name].is_spec:
            yield f"    {field.name}: a part, chosen through a group"
        else:
            yield f"    {field.name} = {_shown(default(field))}  {docs.get(field.name, '')} ({types[field.name].expected()})"


def _shown(value: Any) -> str:
    if value is MISSING:
        return "(no default)"
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def first_comment(text: str) -> tuple[str, str]:
    """(what it is, the command) of an option file: `# What it is.    llmfactory group=option`."""
    for line in text.splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            what, _, command = line.lstrip("# ").partition("    ")
            return what, command.strip()
    return "", ""
