"""From the tree to specs: bottom-up, running every check, so that one report holds everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.config.tree import WRONG, Branch, Reference, Tree
from llmfactory.core.errors import Problem
from llmfactory.core.spec import MISSING, Spec, field_docs


def missing(tree: Tree) -> Iterator[Problem]:
    """Values that must be given and are not."""
    for key, kind, value, _ in tree.leaves():
        if value is MISSING:
            parent, _, name = key.rpartition(".")
            holder = tree.find(parent)
            cls: Any = holder.cls if isinstance(holder, Branch) else Spec
            docs = field_docs(cls).get(name, "")
            if kind.is_spec:
                yield Problem(key, MISSING, "nothing is chosen for this part")
            else:
                about = f" ({docs.rstrip('.')})" if docs else ""
                yield Problem(key, MISSING, f"must be given{about}: {kind.expected()}", f"{key}={kind.example()}")


def check(tree: Tree) -> Iterator[Problem]:
    """What is wrong with each spec of the tree, parts before what holds them."""
    sick: set[str] = set()
    for path, branch in reversed(list(tree.branches())):
        below = any(other.startswith(f"{path}.") if path else True for other in sick)
        if not _complete(branch):
            sick.add(path)
            continue
        found = []
        try:
            for problem in unchecked(branch).problems():
                found.append(problem.below(path))
        except Exception:
            # A check across parts may trip over a part that is wrong itself, and has been reported.
            if not below and not found:
                raise
        if found:
            sick.add(path)
        yield from found


def _complete(branch: Branch) -> bool:
    return not any(value is MISSING or value is WRONG or isinstance(value, Reference) for value in branch.values.values())


def unchecked(branch: Branch) -> Spec:
    """The spec without its checks."""
    spec: Spec = object.__new__(branch.cls)
    for name, value in branch.values.items():
        setattr(spec, name, _built(value, unchecked))
    return spec


def build(branch: Branch) -> Spec:
    """The spec, checked once more by its own constructor."""
    return branch.cls(**{name: _built(value, build) for name, value in branch.values.items()})


def _built(value: Any, make: Any) -> Any:
    if isinstance(value, Branch):
        return make(value)
    if isinstance(value, dict):
        return {key: _built(item, make) for key, item in value.items()}
    return value
