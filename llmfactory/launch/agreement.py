"""Do all processes of a job start from the same config, with the same versions?

A machine that reads an older config.yaml, or has another version installed, would compute something else without a word, or
wait in another collective. So before anything is built each process compares itself with rank 0, through the job's store.
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.launch.standing import ranks
from llmfactory.launch.watchdog import Peers

SHOWN = 10
"""Differences that the message lists."""


def insist_on_agreement(peers: Peers, config: Mapping[str, Any], timeout_s: float) -> None:
    """Return if all processes have the same config and versions. Raises UserError on all of them: what differs, and where."""
    store, own = peers.store, {**dict(leaves(config)), **versions()}
    limit = timedelta(seconds=timeout_s)
    if peers.rank == 0:
        store.set("agreement/reference", json.dumps(own))
    store.wait(["agreement/reference"], limit)
    reference = json.loads(store.get("agreement/reference").decode())
    other = {key: [reference.get(key), own.get(key)] for key in {**reference, **own} if reference.get(key) != own.get(key)}
    store.set(f"agreement/{peers.rank}", json.dumps({"host": socket.gethostname(), "other": other}))
    if peers.rank == 0:
        keys = [f"agreement/{rank}" for rank in range(peers.size)]
        store.wait(keys, limit)
        answers = [json.loads(text.decode()) for text in store.multi_get(keys)]
        store.set("agreement/verdict", verdict(answers))
    store.wait(["agreement/verdict"], limit)
    found = store.get("agreement/verdict").decode()
    if found:
        raise UserError(found)


def verdict(answers: list[dict[str, Any]]) -> str:
    """What differs and where, by rank; nothing if all is the same."""
    differing: dict[tuple[str, str, str], list[int]] = {}
    for rank, answer in enumerate(answers):
        for key, (here, there) in answer["other"].items():
            differing.setdefault((key, repr(here), repr(there)), []).append(rank)
    if not differing:
        return ""
    first = answers[0]["host"]
    lines = []
    for (key, here, there), found in list(differing.items())[:SHOWN]:
        hosts = ", ".join(dict.fromkeys(answers[rank]["host"] for rank in found))
        lines.append(f"  {key}: {here} on {first} (rank 0), {there} on {hosts} ({ranks(found)})")
    if len(differing) > SHOWN:
        lines.append(f"  and {len(differing) - SHOWN} more")
    advice = "start all machines from one config.yaml and one installation"
    return "\n".join(["the processes of this job do not agree:", *lines, advice])


def leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a list is a value."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def versions() -> dict[str, str]:
    """Of what computes. The code's digest tells checkouts of one version apart."""
    import torch

    import llmfactory

    return {
        "version of llmfactory": f"{llmfactory.__version__} (code {code_digest()})",
        "version of torch": torch.__version__,
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
    }


def code_digest() -> str:
    """Of all files of the package."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
