"""data=prompts: formats of prompts, and their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError
from llmfactory.data.form.form import BadDocument
from llmfactory.data.form.prompts import PromptsForm
from llmfactory.data.form.record_rows import PromptRows
from llmfactory.data.form.spec import Prompts, TooLong, Unwritable
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.form.template.spec import Jinja, Own
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.record.boxed import boxed
from llmfactory.data.record.formats import read
from llmfactory.data.record.record import BadRow, Kind
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.stage.rows import packed_rows

ASKED = [{"role": "user", "content": "2+3?"}]
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN_EVAL = {
    "task_id": "0",
    "prompt": "def f(x):\n",
    "test": "def check(f): f(1)",
    "entry_point": "f",
    "canonical_solution": " 1",
}
MBPP = {
    "task_id": 1,
    "text": "Add.",
    "code": "def add(): 0",
    "test_list": ["assert a", "assert b"],
    "test_setup_code": "import re",
}
WITH_TESTS = [{"role": "user", "content": "Add.\nYour code should pass these tests:\n\nassert a\nassert b"}]
ROWS: list[tuple[str, dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = [
    ("gsm8k", {"question": "2+3?", "answer": "2+3=5.\n#### 5"}, ASKED, {"solution": "2+3=5.\n#### 5", "answer": "5"}),
    (
        "gsm8k",
        {"question": "2+3?", "answer": "so #### 1,005", "id": 7},
        ASKED,
        {"id": 7, "solution": "so #### 1,005", "answer": "1,005"},
    ),
    ("math", {"problem": "2+3?", "solution": r"is \boxed{5}."}, ASKED, {"solution": r"is \boxed{5}.", "answer": "5"}),
    ("math", {"problem": "2+3?", "solution": "no box", "answer": "5"}, ASKED, {"solution": "no box", "answer": "5"}),
    ("prompt_answer_prompt", {"prompt": "2+3?", "answer": "5", "level": 1}, ASKED, {"level": 1, "answer": "5"}),
    ("prompt_answer_prompt", {"prompt": "2+3?", "answer": 5, "system": "Be brief."}, [SYSTEM, *ASKED], {"answer": 5}),
    ("question_answer_prompt", {"question": "2+3?", "answer": "5"}, ASKED, {"answer": "5"}),
    ("problem_answer_prompt", {"problem": "2+3?", "answer": "5"}, ASKED, {"answer": "5"}),
    ("question_answers_prompt", {"question": "2+3?", "answers": ["5", "five"]}, ASKED, {"answer": ["5", "five"]}),
    ("input_target_prompt", {"input": "2+3?", "target": "5"}, ASKED, {"answer": "5"}),
    (
        "alpaca_prompt",
        {"instruction": "Add.", "input": "2+3", "output": "5"},
        [{"role": "user", "content": "Add.\n2+3"}],
        {"answer": "5"},
    ),
    ("prompt_messages", {"prompt": [SYSTEM, *ASKED], "answer": "5"}, [SYSTEM, *ASKED], {"answer": "5"}),
    ("messages_prompt", {"messages": [*ASKED, {"role": "assistant", "content": "5"}]}, ASKED, {"answer": "5"}),
    ("messages_prompt", {"messages": [*ASKED, {"role": "assistant", "content": "so 5"}], "answer": "5"}, ASKED, {"answer": "5"}),
    ("messages_prompt", {"messages": ASKED}, ASKED, {}),
    ("prompt_alone", {"prompt": "2+3?", "tests": ["x"]}, ASKED, {"tests": ["x"]}),
    ("prompt_alone", {"prompt": "2+3?", "chosen": "5", "rejected": "6"}, ASKED, {"chosen": "5", "rejected": "6"}),
    (
        "human_eval",
        HUMAN_EVAL,
        [{"role": "user", "content": "def f(x):\n"}],
        {
            "task_id": "0",
            "entry_point": "f",
            "canonical_solution": " 1",
            "tests": ["def check(f): f(1)\n\ncheck(f)"],
            "begin": "def f(x):\n",
            "solution": " 1",
        },
    ),
    (
        "mbpp",
        MBPP,
        WITH_TESTS,
        {"task_id": 1, "tests": ["assert a", "assert b"], "setup": "import re", "solution": "def add(): 0"},
    ),
    (
        "mbpp_sanitized",
        {"prompt": "Add.", "code": "def add(): 0", "test_imports": ["import re"], "test_list": ["assert a", "assert b"]},
        WITH_TESTS,
        {"tests": ["assert a", "assert b"], "setup": "import re", "solution": "def add(): 0"},
    ),
]


@pytest.mark.parametrize(("name", "row", "messages", "record"), ROWS)
def test_formats(name: str, row: dict[str, Any], messages: list[dict[str, Any]], record: dict[str, Any]) -> None:
    found, (one,) = read(row, Kind.prompt)
    assert (found, one) == (name, {"prompt": messages, "record": record})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " "}, "empty text"),
        ({"problem": "x", "solution": "no box"}, "a solution without its answer"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "wrong order of roles"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}], "image": "a.png"},
            "pictures in a prompt",
        ),
        ({"text": "x", "test_list": []}, "tests that are no texts"),
        ({"text": "x"}, "no known format"),
    ],
)
def test_what_is_no_prompt(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as raised:
        read(row, Kind.prompt)
    assert raised.value.reason == reason


def test_boxes() -> None:
    assert boxed(r"a \boxed{1} b \boxed {\frac{1}{2}} c") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1} \boxed{2") == "1"
    assert boxed("boxed{1}") is None


def corpus(folder: Path, rows: list[dict[str, Any]], *more: str) -> tuple[Prepared, PromptRows]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["stage=prepare", "data=prompts", f"data.source.files=[{path}]", "data/tokenizer=bytes", "data.held_out=0"]
    line += [f"data.cache={folder}/cache", "data.workers=1", "model.vocab_size=300", "data.seq_len=64", "data.form.max_tokens=64"]
    job = compose_job([*line, *more]).job
    data = prepare(job.data, 300)  # type: ignore[arg-type]
    rows_of = packed_rows(job, data, "train", job.data.seq_len)
    assert isinstance(rows_of, PromptRows)
    return data, rows_of


def test_rows_give_what_the_model_reads_and_what_is_known(tmp_path: Path) -> None:
    data, rows = corpus(tmp_path, [{"prompt": "2+3?", "answer": "5"}, {"prompt": "1?", "tests": ["ü"]}])
    assert len(rows) == 2
    first, second = rows.prompt(0), rows.prompt(1)
    assert first.tokens == chat_ids(data.tokenizer, ASKED)
    assert data.tokenizer.decode(first.tokens).endswith("Assistant:")
    assert (first.messages, first.record) == (ASKED, {"answer": "5"})
    assert second.record == {"tests": ["ü"]}
    batch = rows.read(np.array([1, 0]))
    assert batch["tokens"][1, : len(first.tokens)].tolist() == first.tokens


def test_rows_by_length_know_which_prompt_they_are(tmp_path: Path) -> None:
    _, rows = corpus(tmp_path, [{"prompt": "x" * size, "answer": str(size)} for size in (9, 2, 5)], "data/pack=grouped")
    assert [rows.prompt(row).record["answer"] for row in range(3)] == ["2", "5", "9"]


def test_template_and_system_message(tmp_path: Path) -> None:
    data, rows = corpus(tmp_path, [{"prompt": "2+3?", "answer": "5"}], "data.form.system=Be brief.", "data/form/template=alpaca")
    text = data.tokenizer.decode(rows.prompt(0).tokens)
    assert rows.prompt(0).messages == [SYSTEM, *ASKED]
    assert text.startswith("Be brief.")
    assert text.rstrip().endswith("### Response:")


def test_a_text_is_continued_without_a_template(tmp_path: Path) -> None:
    _, rows = corpus(tmp_path, [{"prompt": "2+3=", "answer": "5"}], "data.form.chat=false")
    assert rows.prompt(0).tokens == [ByteTokenizer().end_id, *b"2+3="]
    data, rows = corpus(
        tmp_path, [{"prompt": "2+3="}, {"prompt": [SYSTEM, *ASKED]}], "data.form.chat=false", "data.source.bad_share=1"
    )
    assert len(rows) == 1
    assert list(data.counts["steps"]["form"]["dropped"]) == ["messages where a text is expected"]


def test_fields_and_format(tmp_path: Path) -> None:
    _, rows = corpus(tmp_path, [{"q": "2+3?", "a": "5"}], "data.form.fields={question: q, answer: a}")
    assert (rows.prompt(0).messages, rows.prompt(0).record) == (ASKED, {"answer": "5"})
    row = {"question": "2+3?", "answer": "#### 5"}
    assert corpus(tmp_path, [row], "data.form.format=question_answer_prompt")[1].prompt(0).record == {"answer": "#### 5"}
    with pytest.raises(ConfigError, match="is no format of such records"):
        Prompts(format="alpaca")


TURNS = [{"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c" * 4}]


@pytest.mark.parametrize(
    ("too_long", "prompt", "text"),
    [
        (TooLong.drop, "x" * 40, None),
        (TooLong.left, "x" * 40, "x" * 16 + "\n\nAssistant:"),
        (TooLong.left, TURNS, "User: cccc\n\nAssistant:"),
        (TooLong.left, "x" * 4, "User: xxxx\n\nAssistant:"),
        (TooLong.drop, "x" * 4, "User: xxxx\n\nAssistant:"),
    ],
)
def test_prompts_that_are_too_long(too_long: TooLong, prompt: Any, text: str | None) -> None:
    """28 tokens and the end before them fit."""
    form = PromptsForm(Prompts(template=Own(), max_tokens=29, too_long=too_long))
    tokenizer = ByteTokenizer()
    (record,) = read({"prompt": prompt, "answer": "5"}, Kind.prompt)[1]
    (found,) = form.encode(tokenizer, [json.dumps({"records": [record]})])
    if text is None:
        assert found == []
        return
    (one,) = found
    assert tokenizer.decode(list(one.ids)) == text
    assert (one.cut > 0) == (prompt != "x" * 4)
    assert json.loads(one.note)["record"] == {"answer": "5"}


def test_prompts_that_the_template_cannot_write() -> None:
    """Above all of a template that wants its roles to take turns."""
    picky = Jinja(
        source="{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
    )
    tokenizer = ByteTokenizer()
    texts = [json.dumps({"records": read({"prompt": prompt, "answer": "5"}, Kind.prompt)[1]}) for prompt in ("x", TURNS)]
    with pytest.raises(BadDocument, match=r"one at a time.*data.form.unwritable=drop") as raised:
        PromptsForm(Prompts(template=picky)).encode(tokenizer, texts)
    assert raised.value.number == 1
    found = PromptsForm(Prompts(template=picky, unwritable=Unwritable.drop)).encode(tokenizer, texts)
    assert [one is None for one in found] == [False, True]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    data, rows = corpus(tmp_path, [{"prompt": "x" * 90}, {"prompt": "x"}])
    assert len(rows) == 1
    assert data.counts["train"]["too_long"] == 1
    data, rows = corpus(tmp_path, [{"prompt": "x" * 90}, {"prompt": "x"}], "data.form.too_long=left")
    assert len(rows) == 2
    assert data.counts["train"]["cut"] > 0
    assert len(rows.prompt(0).tokens) == 63


@pytest.mark.parametrize("options", [{"too_long": TooLong.right}, {"chat": False, "system": "x"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Prompts(**options)
