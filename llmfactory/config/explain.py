"""Where each value came from: the config as a tree, with the file, the override or the default behind every line.

`compose_job` puts the files of Hydra's defaults list into the tree one by one and notes who set what; this prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmfactory.config.arguments import typed
from llmfactory.config.plain import TYPE, to_plain
from llmfactory.config.spec import Job

MOST = 60
"""Longest value that is shown whole."""


def explain(job: Job, origins: Mapping[str, str]) -> list[tuple[str, str]]:
    """(indented key and value, origin) of every line of the config."""
    return list(_lines(to_plain(job), origins, "", 0))


def _lines(plain: dict[str, Any], origins: Mapping[str, str], path: str, depth: int) -> Iterator[tuple[str, str]]:
    for name, value in plain.items():
        key = f"{path}.{name}" if path else name
        if name == TYPE and key not in origins:
            continue
        indent = "  " * depth
        if isinstance(value, dict) and key not in origins:
            yield f"{indent}{name}: {value.get(TYPE, '')}".rstrip(), origins.get(f"{key}.", "")
            yield from _lines(value, origins, key, depth + 1)
        else:
            text = typed(value)
            yield f"{indent}{name}: {text if len(text) <= MOST else text[:MOST] + '...'}", origins.get(key, "")
