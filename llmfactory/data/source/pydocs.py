"""Documentation of the running Python's standard library: language topics, docstrings, and the source they stand in.

Documents are the topics of `pydoc_data` (the language reference and part of the library's), a page of each documented module
and class (`docstrings.py`, `builtin_docs.py`), and the source files (`pycode.py`). Only documentation is evaluated.

A docstring stands both on its page and in the source, so both carry the module's group: a held-out module is unseen as a whole.
Docstrings also repeat across modules, and topics repeat parts of one another: a held-out page of which any 13 words in a row
stand in the training part is dropped.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

from llmfactory.core.errors import UserError
from llmfactory.data.source import builtin_docs, docstrings
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.pycode import StandardLibrary, group


class PythonDocs(Source):
    max_overlap = 0.0
    can_cut = False

    def __init__(self, code: bool = True) -> None:
        """`code`: whether source files are documents, too."""
        self.library, self.code = StandardLibrary(), code

    def fingerprint(self) -> str:
        total = hashlib.sha256(self.library.fingerprint().encode())
        for document in (*self._topics(), *self._builtins()):
            total.update(f"{document.name} {len(document.text)} {document.text}".encode())
        return f"pydocs {total.hexdigest()}{'' if self.code else ' without code'}"

    def units(self) -> list[Unit]:
        return [Unit("pydocs", self.library.size())]

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        yield from self._topics()
        yield from self._builtins()
        for path in self.library.files:
            source, module = self.library.read(path), self.library.module(path)
            account.good += 1
            if not source.strip():
                account.left_out("empty document", module)
                continue
            try:
                for name, text in docstrings.pages(source, module):
                    yield Document(f"docs of {name}", text, group(module))
            except SyntaxError as error:
                account.left_out("no page: source does not parse", f"{module}: {error.msg}, line {error.lineno}")
            if self.code:
                yield Document(f"source of {module}", source, group(module), evaluated=False)

    def _topics(self) -> Iterator[Document]:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise UserError(
                f"this Python ({sys.executable}, {sys.version.split()[0]}) comes without pydoc_data, the texts of help(): "
                "use another Python, or another source: data=pycode, data=text"
            ) from error
        for name, text in sorted(topics.items()):
            yield Document(f"topic {name}", text.strip("\n") + "\n", f"topic {name}")

    def _builtins(self) -> Iterator[Document]:
        for module in builtin_docs.modules():
            for name, text in builtin_docs.pages(module):
                yield Document(f"docs of {name}", text, group(module))
