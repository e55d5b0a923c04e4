"""Source files of the running Python's standard library.

It is real text that is on every machine. Left out: tests (a third of the bytes, mostly tables of cases), `idlelib`,
`turtledemo`, `lib2to3` and `distutils` (programs and retired packages, absent from newer or slimmer Pythons), `encodings` and
`pydoc_data` (tables; the topics of the latter are documents of `pydocs`), `ensurepip` (wheels), and build settings of the
machine (`_sysconfigdata*`, `config-*`), which are no one else's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit

LEFT_OUT = re.compile(
    r"site-packages|dist-packages|tests?|idle_test|idlelib|turtledemo|lib2to3|distutils|encodings|pydoc_data|ensurepip"
    r"|lib-dynload|__phello__.*|_sysconfigdata.*|_sysconfig_vars.*|config-.*|__pycache__"
)
"""Names of folders and files whose content is no document."""


@lru_cache(maxsize=4)
def _sources(folder: Path, changed: int) -> tuple[Path, ...]:
    """`changed`: when. A folder that has not is walked once: installed packages may lie in it, tens of thousands of files."""
    return tuple(sorted(path for path in folder.rglob("*.py") if not _left_out(path.relative_to(folder))))


def _left_out(path: Path) -> bool:
    return any(LEFT_OUT.fullmatch(part) for part in path.with_suffix("").parts)


class SourceFiles:
    """The .py files of a folder of modules, sorted by module path."""

    def __init__(self, folder: Path, said: str, stamp: str = "") -> None:
        """
        Args:
            said: what they are the sources of, in messages.
            stamp: of what else their fingerprint shall depend on.
        """
        self.folder, self.said, self.stamp = folder, said, stamp

    @cached_property
    def files(self) -> list[Path]:
        return list(_sources(self.folder, self.folder.stat().st_mtime_ns if self.folder.is_dir() else 0))

    def module(self, path: Path) -> str:
        parts = path.relative_to(self.folder).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

    def read(self, path: Path) -> str:
        try:
            with tokenize.open(path) as file:  # honours the file's coding line
                return file.read()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path} of {self.said}: {error}") from error

    def fingerprint(self) -> str:
        """Of names of modules and contents of files, wherever they lie."""
        total = hashlib.sha256(self.stamp.encode())
        for path in self.files:
            try:
                total.update(f"{self.module(path)} {path.stat().st_size}\n".encode())
                total.update(path.read_bytes())
            except OSError as error:
                raise UserError(f"cannot read {path} of {self.said}: {error.strerror}") from error
        return total.hexdigest()

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)


class StandardLibrary(SourceFiles):
    """Those of the running Python's standard library."""

    def __init__(self) -> None:
        super().__init__(Path(sysconfig.get_path("stdlib")), "the standard library", sys.version)

    @cached_property
    def files(self) -> list[Path]:
        found = super().files
        if not found:
            raise UserError(
                f"this Python ({sys.executable}, {sys.version.split()[0]}) comes without the source files of its standard library "
                f"(none in {self.folder}): use another Python, or text of your own: data=text 'data.source.files=[my/*.txt]'"
            )
        return found


class InstalledPackage(SourceFiles):
    """Those of an installed package, which is looked up without being imported."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # a module of this name that says of itself that it comes from nowhere
            spec = None
        if spec is None:
            raise UserError(
                f"data.source.packages: {name} is not installed for {sys.executable}: pip install {name}, or leave it out"
            )
        if spec.origin is None or not spec.submodule_search_locations:
            raise UserError(f"data.source.packages: {name} is no package of Python modules ({spec.origin}): leave it out")
        super().__init__(Path(spec.origin).parent, f"the package {name}")

    @cached_property
    def files(self) -> list[Path]:
        found = super().files
        if not found:
            raise UserError(f"data.source.packages: {self.said} comes without source files ({self.folder}): leave it out")
        return found

    def module(self, path: Path) -> str:
        inner = super().module(path)
        return self.name if inner == "__init__" else f"{self.name}.{inner}"


def group(module: str) -> str:
    """Modules that belong together share their group: all of a package, and the parts of one module in C and Python."""
    top = module.partition(".")[0]
    return re.sub(r"^(_py_?(?=[a-z]{2})|_+)", "", top).rstrip("_") or top


class PythonCode(Source):
    """A source file a document."""

    can_cut = False

    def __init__(self) -> None:
        self.library = StandardLibrary()

    def fingerprint(self) -> str:
        return f"pycode {self.library.fingerprint()}"

    def units(self) -> list[Unit]:
        return [Unit("pycode", self.library.size())]

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        for path in self.library.files:
            text, module = self.library.read(path), self.library.module(path)
            account.good += 1
            if text.strip():
                yield Document(module, text, group(module))
            else:
                account.left_out("empty document", module)
