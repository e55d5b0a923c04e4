"""A user's own function, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.stage.grader.function import FunctionGrader
from llmfactory.stage.grader.grader import Answer, NoGrade, graded
from llmfactory.stage.grader.spec import Function

Said = Callable[..., Answer]
REWARDS = """
import os, time

def score(answer, prompt, record):
    print("this goes elsewhere")
    if answer == "raise": raise ValueError(prompt)
    if answer == "hang": time.sleep(60)
    if answer == "swallow":
        while True:
            try: time.sleep(0.01)
            except BaseException: pass
    if answer == "leave": os._exit(3)
    if answer == "none": return None
    if answer == "nan": return float("nan")
    if answer == "words": return "words"
    if answer == "several": return [1.0, 2.0]
    return len(answer) + len(prompt) * 10 + record.get("more", 0)

number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package of this name lies in the working directory."""
    name = f"rewards_of_{abs(hash(request.node.nodeid))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "mine.py").write_text(REWARDS)
    (tmp_path / name / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / name / "leaving.py").write_text("import os; os._exit(0)")
    monkeypatch.chdir(tmp_path)
    return name


def test_it_is_called_with_texts_and_the_record(said: Said, package: str) -> None:
    grader = FunctionGrader(Function(call=f"{package}.mine:score", seconds=1.0), [package])
    try:
        assert grader.grade([said("ab", prompt="x" * 3), said("abc", prompt="", more=0.5)]) == [32.0, 3.5]
        assert graded(grader, [], 1.0) == []
    finally:
        grader.close()


def test_what_goes_wrong_costs_the_one_answer(said: Said, package: str) -> None:
    grader = FunctionGrader(Function(call=f"{package}.mine:score", seconds=0.5), [package])
    wrong = {
        "raise": "raised ValueError",
        "hang": "took longer than 0.5 s an answer",
        "swallow": "took longer than 0.5 s an answer",
        "leave": "ended its process",
        "none": "gave none",
        "nan": "gave a number that is not finite",
        "words": "gave something that is no number",
        "several": "gave something that is no number",
    }
    try:
        found = graded(grader, [said(text, prompt="") for name in wrong for text in (name, "four")], 0.5)
    finally:
        grader.close()
    assert found[::2] == [NoGrade(reason) for reason in wrong.values()]
    assert found[1::2] == [4.0] * len(wrong)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mine:nothing", "has no attribute 'nothing'"),
        ("nowhere:score", "No module named"),
        ("broken:score", "nothing_of_this_name"),
        ("leaving:score", "its module ends the process"),
    ],
)
def test_what_cannot_be_called_is_told_at_once(package: str, place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FunctionGrader(Function(call=f"{package}.{place}"), [package])


def test_only_plugins_are_called(package: str) -> None:
    with pytest.raises(UserError, match=rf"plugins=\[{package}\]"):
        FunctionGrader(Function(call=f"{package}.mine:score"), [])
    with pytest.raises(UserError, match="is not in a package that is a plugin"):
        FunctionGrader(Function(call="llmfactory.core.errors:UserError"), [])


@pytest.mark.parametrize("call", ["mine", "mine.score", "mine:", ":score", "a b:score", "mine:a.b"])
def test_a_place_has_a_module_and_a_name(call: str) -> None:
    with pytest.raises(ConfigError, match="is the place of a function"):
        Function(call=call)
