"""Documentation of the running Python: what it holds, that it is the same in every process, how pages look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source
from llmfactory.data.source.pycode import PythonCode, StandardLibrary, group
from llmfactory.data.source.pydocs import PythonDocs

HASH = """
import hashlib
from llmfactory.data.source.account import Account
from llmfactory.data.source.pydocs import PythonDocs
total = hashlib.sha256(PythonDocs().fingerprint().encode())
source = PythonDocs()
for document in source.documents(source.units()[0], Account(0.0)):
    total.update(repr(document).encode())
print(total.hexdigest())
"""


def read(source: Source, account: Account | None = None) -> list[Document]:
    (unit,) = source.units()
    return list(source.documents(unit, account or Account(0.0)))


def test_it_is_the_same_in_every_process(root: Path) -> None:
    found = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", HASH],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_without_code_the_rest_is_the_same() -> None:
    whole, docs = read(PythonDocs()), read(PythonDocs(code=False))
    assert docs == [d for d in whole if not d.name.startswith("source of")]
    assert len(docs) < len(whole)
    assert PythonDocs(code=False).fingerprint() != PythonDocs().fingerprint()


def test_what_it_holds() -> None:
    documents = {d.name: d for d in read(PythonDocs())}
    assert {name.split()[0] for name in documents} == {"topic", "docs", "source"}
    assert all(d.evaluated == (not d.name.startswith("source")) for d in documents.values())
    assert 'The "assert" statement' in documents["topic assert"].text
    assert "Serialize ``obj`` to a JSON formatted ``str``" in documents["docs of json"].text
    assert documents["docs of json"].group == documents["docs of json.decoder"].group == documents["source of json.decoder"].group
    assert "class builtins.dict" in documents["docs of builtins.dict"].text
    left_out = ("test", "idlelib", "lib2to3", "pydoc_data", "encodings", "site-packages", "_sysconfigdata")
    assert not [name for name in documents for part in left_out if name.startswith(f"source of {part}")]
    assert sum(len(d.text) for d in documents.values()) > 5_000_000


@pytest.mark.parametrize(
    ("module", "expected"),
    [("json.decoder", "json"), ("_pyio", "io"), ("_io", "io"), ("_py_abc", "abc"), ("pydoc", "pydoc"), ("__future__", "future")],
)
def test_parts_of_one_module_share_a_group(module: str, expected: str) -> None:
    assert group(module) == expected


def test_code_alone() -> None:
    documents = read(PythonCode())
    assert len({d.name for d in documents}) == len(documents)
    assert {"json", "json.decoder", "argparse"} <= {d.name for d in documents}
    assert all(d.evaluated for d in documents)


def test_a_python_without_sources_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"comes without the source files .*data=text"):
        PythonDocs().fingerprint()


def test_a_python_without_topics_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="comes without pydoc_data"):
        read(PythonDocs())


def test_a_module_that_does_not_parse_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.setattr(StandardLibrary, "files", [tmp_path / "broken.py"])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    account = Account(0.0)
    assert read(PythonDocs(), account)[-1].name == "source of broken"
    assert "broken" in account.drops.plain()["no page: source does not parse"]["samples"][0]
