"""The option as it is written: one word of the list is too much. The words here are harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step


def outcome(folder: Path, text: str) -> Outcome:
    path = folder / "words.txt"
    path.write_text("# a comment\nPig\nbad word\n坏蛋\n", encoding="utf-8")
    job = compose_job(["data/clean=[bad_words]", f"data.clean.bad_words.files=[{path}]"]).job
    step = job.data.clean["bad_words"].build(None)  # type: ignore[attr-defined, arg-type]
    assert isinstance(step, Step)
    return step.apply(Page("a", text))


@pytest.mark.parametrize("text", ["one pig in a long text, " + "and many words " * 200, "a bad word", "他是个坏蛋吗"])
def test_one_word_is_too_much(tmp_path: Path, text: str) -> None:
    assert isinstance(outcome(tmp_path, text), Drop)


def test_others_stay(tmp_path: Path) -> None:
    assert outcome(tmp_path, "a spigot is not bad") == Kept("a spigot is not bad")
