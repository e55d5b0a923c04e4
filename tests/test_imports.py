"""Who may import whom (one direction only), and which packages stand where."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "llmfactory"
LAYERS = [
    {"run"},
    {"stage"},
    {"objective", "inference", "checkpoint", "metric"},
    {"peft", "optim"},  # change a model from outside, as it lies over processes
    {"parallel"},  # walks over the parts of a model
    {"model", "data", "precision", "tracking", "launch", "guard"},
    {"kernel"},
    {"core"},
]
LEVEL = {name: len(LAYERS) - depth for depth, names in enumerate(LAYERS) for name in names}
ONLY_IN = {
    "hydra": {"run", "config"},
    "omegaconf": {"run", "config"},
    "lightning": {"stage", "parallel", "precision", "tracking", "run"},
    "triton": {"kernel"},
}
MODEL_ORDER = [{"block"}, {"attention", "ffn", "mixer"}, {"norm", "position", "embedding", "head"}]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, only for the type checker) of every import, those inside functions included."""

    def visit(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or "", child.lineno, typing_only
                yield from ((f"{child.module}.{alias.name}", child.lineno, typing_only) for alias in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from visit(child, True)
            else:
                yield from visit(child, typing_only)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def area(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "llmfactory" else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""
    wrong = []
    for module, line, typing_only in imports(path):
        there = area(module)
        if not there or there == here or typing_only or ".spec" in module or module.endswith(".spec"):
            continue
        if there not in LEVEL and there != "config":
            continue
        if path.name == "spec.py" and here != "config":
            # A spec's `build` imports its own subpackage's classes, and only `core` besides.
            allowed = there == "core"
        elif here == "config":
            # What a checkpoint is can be told from its metadata without torch.
            allowed = there == "core" or module.startswith("llmfactory.checkpoint.names")
        elif there == "config":
            allowed = here in {"run", "stage"}
        else:
            allowed = LEVEL[there] < LEVEL[here]
        if not allowed:
            wrong.append(f"{path.name}:{line} imports {module}")
    assert not wrong, f"against run -> stage -> ... -> core: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_stay_where_they_belong(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0]
    wrong = [
        f"{path.name}:{line} imports {module}"
        for module, line, typing_only in imports(path)
        if not typing_only and module.split(".")[0] in ONLY_IN and here not in ONLY_IN[module.split(".")[0]]
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_order_within_the_model(path: Path) -> None:
    rank = {name: len(MODEL_ORDER) - depth for depth, names in enumerate(MODEL_ORDER) for name in names}
    here = path.parent.name
    wrong = []
    for module, line, typing_only in imports(path):
        parts = module.split(".")
        if typing_only or ".spec" in module or module.endswith(".spec") or parts[:2] != ["llmfactory", "model"] or len(parts) < 3:
            continue
        there = parts[2]
        if here in rank and there in rank and there != here and rank[there] >= rank[here]:
            wrong.append(f"{path.name}:{line} imports {module}")
    assert not wrong, f"against skeleton -> block -> attention, ffn -> norm, position: {wrong}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*spec.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_specs_are_light(path: Path) -> None:
    """At the top of a spec file stands nothing heavier than the standard library and other specs."""
    heavy = {"torch", "lightning", "hydra", "omegaconf", "numpy", "transformers"}
    top = ast.parse(path.read_text(encoding="utf-8")).body
    names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in heavy]


def test_the_names_of_checkpoints_are_light() -> None:
    """They are read while composing."""
    import subprocess
    import sys

    code = "import sys, llmfactory.checkpoint.names.published; assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_init_file_holds_code() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        extra = [
            node
            for node in body
            if not isinstance(node, ast.Expr) and not (path.parent == PACKAGE and isinstance(node, ast.Assign))
        ]
        assert not extra, f"{path} holds code"


def at_import(module: str) -> set[str]:
    """Names that a module of ours imports while it is being imported: not within functions, not for the type checker."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from (name for part in child.orelse for name in visit(part))
            elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from visit(child)

    path = PACKAGE.parent / Path(*module.split("."))
    file = path.with_suffix(".py")
    return set(visit(ast.parse((file if file.is_file() else path / "__init__.py").read_text(encoding="utf-8"))))


def loaded_with(*modules: str) -> dict[str, str]:
    """Packages of others that importing these modules of ours imports, and who does it."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        path = PACKAGE.parent / Path(*module.split("."))
        if module in seen or not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
            continue  # the name of something within a module, which stands behind the module's own
        seen.add(module)
        for name in at_import(module):
            words = name.split(".")
            if words[0] == "llmfactory":
                todo += [".".join(words[:depth]) for depth in range(2, len(words) + 1)]
            elif words[0] not in sys.stdlib_module_names:
                found.setdefault(words[0], module)
    return found


def test_help_and_errors_wait_for_nobody() -> None:
    assert loaded_with("llmfactory.run.command") == {}
    composing = loaded_with("llmfactory.config.compose")
    assert composing.keys() <= {"hydra", "omegaconf", "yaml"}, composing


def test_a_training_imports_what_it_needs() -> None:
    """The time to the first step is that of imports; what only some jobs use is imported where it is used."""
    training = loaded_with("llmfactory.run.start", "llmfactory.run.train")
    allowed = {"torch", "lightning", "hydra", "omegaconf", "yaml", "numpy", "safetensors", "jinja2"}  # the last comes with torch
    zstandard = {"backports", "compression"}  # where there are such modules
    assert training.keys() <= allowed | zstandard, training
    assert {"torch", "lightning"} <= training.keys()
