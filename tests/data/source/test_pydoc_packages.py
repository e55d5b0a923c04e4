"""Questions about installed packages: what they say, that they are trained on and never evaluated, and what their cache depends on.

Both the standard library and the packages are small ones that are written here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.shard import group_number
from llmfactory.data.source import pydoc_items
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document
from llmfactory.data.source.pycode import InstalledPackage, SourceFiles
from llmfactory.data.source.pydocs import PythonDocs
from llmfactory.data.source.spec import PydocChoices, PydocItemsSpec, PydocPairs, PydocQa
from llmfactory.data.split import Side, choose_by

OVENS = '''
def bake(bread, hours):
    """Bake a loaf of bread."""
def cool(bread):
    """Let it stand until it is cold."""
'''
TOOLS = '''
def whisk(eggs, *more):
    """Beat eggs until they are stiff."""
class Pan:
    """Something to fry in."""
    def fry(self, fish):
        """Fry it on both sides in butter."""
    @property
    def handle(self):
        """Where one takes hold of it."""
def knead(dough):
    """Bake a loaf of bread. Then knead."""
'''


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library of two modules, and a folder with the package `ladle` on the path."""
    write(tmp_path / "library", {"ovens.py": OVENS, "plates.py": OVENS.replace("it", "them").replace("loaf of", "lump of")})

    class Docs(PythonDocs):
        def __init__(self) -> None:
            self.library, self.code = SourceFiles(tmp_path / "library", "a library"), True  # type: ignore[assignment]

        def _topics(self) -> Iterator[Document]:
            yield from ()

        _builtins = _topics

    monkeypatch.setattr(pydoc_items, "PythonDocs", Docs)
    monkeypatch.setattr(pydoc_items, "StandardLibrary", lambda: Docs().library)
    write(
        tmp_path / "site",
        {
            "ladle/__init__.py": 'def serve(soup):\n    """Put soup on a plate."""\n',
            "ladle/inner/tools.py": TOOLS,
            "ladle/tests/test_it.py": OVENS,
            "ladle/broken.py": "def f(:",
            "alone.py": OVENS,
            "spoons/small.py": OVENS,
            "empty/__init__.py": "",
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path
    pydoc_items.survey.cache_clear()
    pydoc_items.library.cache_clear()


def read(spec: PydocItemsSpec) -> tuple[list[Document], Account]:
    account, source = Account(0.0), spec.build()
    (unit,) = source.units()
    return list(source.documents(unit, account)), account


def test_items_are_called_from_the_last_part_of_their_module_on(kitchen: Path) -> None:
    documents, account = read(PydocQa(packages=["ladle"]))
    own = [d for d in documents if d.group == "package ladle"]
    assert {d.name for d in own} == {
        "ladle.serve(soup)",
        "ladle.inner.tools.whisk(eggs, *more)",
        "ladle.inner.tools.knead(dough)",
        "ladle.inner.tools.Pan",
        "ladle.inner.tools.Pan.fry(fish)",
        "ladle.inner.tools.Pan.handle",
    }  # tests are left out
    asked = {d.name: json.loads(d.text)["instruction"] for d in own}
    assert asked["ladle.serve(soup)"] in {question.format("ladle.serve(soup)") for question in pydoc_items.QUESTIONS}
    said = "tools.whisk(eggs, *more)"
    assert asked["ladle.inner.tools.whisk(eggs, *more)"] in {question.format(said) for question in pydoc_items.QUESTIONS}
    assert account.drops.by_reason["no docstrings: source does not parse"].documents == 1
    library = {d.name for d in documents} - asked.keys()
    assert library == {"ovens.bake(bread, hours)", "ovens.cool(bread)", "plates.bake(bread, hours)", "plates.cool(bread)"}
    assert {d.name for d in read(PydocQa())[0]} == library


def test_they_are_trained_on_and_never_evaluated(kitchen: Path) -> None:
    spec = PydocQa(packages=["ladle"])
    documents, _ = read(spec)
    group = np.array([group_number(d.group) for d in documents], np.uint64)
    evaluated = np.array([d.evaluated for d in documents])
    weights = spec.build().weights()
    assert weights == PydocQa().build().weights()  # who is held out does not depend on them
    assert weights
    side = choose_by(weights, group, evaluated, 0.5, 1 << 20)
    sides = {d.name: one for d, one in zip(documents, side.tolist(), strict=True)}
    assert {one for name, one in sides.items() if name.startswith("ladle")} == {Side.train}
    assert Side.held_out in sides.values()


def test_what_repeats_their_words_is_not_evaluated(kitchen: Path) -> None:
    alone = {d.name for d in read(PydocQa())[0] if d.evaluated}
    beside = {d.name for d in read(PydocQa(packages=["ladle"]))[0] if d.evaluated}
    assert alone - beside == {"ovens.bake(bread, hours)"}
    assert beside < alone


def test_wrong_answers_are_of_the_same_module(kitchen: Path) -> None:
    pairs = [json.loads(d.text) for d in read(PydocPairs(packages=["ladle"]))[0] if d.name.startswith("ladle")]
    inner = {"Beat eggs until they are stiff.", "Something to fry in.", "Fry it on both sides in butter."}
    inner |= {"Where one takes hold of it.", "Bake a loaf of bread. Then knead."}
    assert len(pairs) == 5  # serve is alone in its module
    assert all({row["chosen"], row["rejected"]} <= inner for row in pairs)
    rankings = [json.loads(d.text) for d in read(PydocChoices(packages=["ladle"], choices=5))[0] if d.name.startswith("ladle")]
    assert [set(row["answers"]) for row in rankings] == [inner] * 5


def test_the_fingerprint_is_that_of_what_is_in_them_wherever_they_lie(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint() -> str:
        return PydocQa(packages=["ladle"]).build().fingerprint()

    before, documents = fingerprint(), read(PydocQa(packages=["ladle"]))[0]
    assert before != PydocQa().build().fingerprint()
    shutil.move(kitchen / "site", kitchen / "elsewhere")
    monkeypatch.syspath_prepend(str(kitchen / "elsewhere"))
    assert fingerprint() == before
    assert read(PydocQa(packages=["ladle"]))[0] == documents
    path = kitchen / "elsewhere/ladle/inner/tools.py"
    path.write_text(path.read_text().replace("stiff", "white"))
    assert fingerprint() != before
    changed = read(PydocQa(packages=["ladle"]))[0]
    assert [now.name for now, then in zip(changed, documents, strict=True) if now != then] == [
        "ladle.inner.tools.whisk(eggs, *more)"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_at_all", "nowhere_at_all is not installed .*pip install nowhere_at_all"),
        ("alone", "alone is no package of Python modules"),
        ("spoons", "spoons is no package of Python modules"),  # a folder without __init__.py
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_what_to_do(kitchen: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PydocQa(packages=[name]).build().fingerprint()


@pytest.mark.parametrize(("name", "said"), [("json", "part of the standard library"), ("torch.nn", "no name that one imports")])
def test_names_that_are_no_packages_are_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        PydocQa(packages=["torch", name, "numpy"])
    assert [problem.repair for problem in refused.value.problems] == ["packages=[torch,numpy]"]


def test_a_real_one() -> None:
    package = InstalledPackage("numpy")
    modules = {package.module(path) for path in package.files}
    assert {"numpy", "numpy.linalg", "numpy.lib.stride_tricks"} <= modules
    assert not any("tests" in module.split(".") for module in modules)
