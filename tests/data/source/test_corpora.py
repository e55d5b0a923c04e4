"""The option files of published corpora: each reads a local copy of the same schema, and docs/corpora.md says what they say."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from llmfactory.config.compose import compose_job
from llmfactory.config.register import conf_folder, options
from llmfactory.data.source.spec import Hub
from tests.data.source.conftest import Read

FOLDER = conf_folder() / "data" / "source"
PAGE = Path(__file__).resolve().parents[3] / "docs/corpora.md"
HINT = "accept with pytest --update-golden tests/data/source/test_corpora.py"
GITHUB = {"repo_name": "a/b", "path": "x.py", "language": "Python", "license": "mit", "size": 9}
TREE = {
    "message_tree_id": "1",
    "tree_state": "ready_for_export",
    "prompt": {"text": "Hi?", "role": "prompter", "lang": "en", "replies": [{"text": "Hi!", "role": "assistant", "rank": 0}]},
}
CHOSEN = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi!"}]
REJECTED = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "No."}]
# option -> (name of a file as it is published, its only row, the field that is the text)
ROWS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "bookcorpus": ("train.parquet", {"text": "the half-ling book one"}, "text"),
    "gutenberg": ("train.parquet", {"TEXT": "It was the best", "SOURCE": "gutenberg", "METADATA": "{}"}, "TEXT"),
    "c4": ("c4-train.00000-of-01024.json.gz", {"text": "Page.", "timestamp": "2019-04-25T12:57:54Z", "url": "http://a"}, "text"),
    "cc_stories": ("train.parquet", {"text": "Once upon a time"}, "text"),
    "cc_news": (
        "train.parquet",
        {"title": "T", "text": "News.", "domain": "a", "date": "2018", "description": "", "url": "", "image_url": None},
        "text",
    ),
    "realnews": ("realnews.jsonl", {"url": "a", "title": "T", "text": "News.", "authors": ["A"], "split": "train"}, "text"),
    "openwebtext": ("train.parquet", {"text": "Port-au-Prince"}, "text"),
    "pushshift": ("RC.parquet", {"author": "a", "body": "A comment.", "score": 3, "subreddit": "x"}, "body"),
    "wikipedia": ("train.parquet", {"id": "1", "url": "a", "title": "T", "text": "維基百科"}, "text"),
    "the_stack": ("data.parquet", {"hexsha": "0", "lang": "Python", "ext": "py", "content": "import os\n"}, "content"),
    "bigquery_code": ("0000.parquet", {"code": "import os\n", **GITHUB}, "code"),
    "the_pile": ("00.jsonl.zst", {"text": "A text.", "meta": {"pile_set_name": "Pile-CC"}}, "text"),
    "roots": ("train.parquet", {"text": "An article.", "meta": "{'title': 'T'}"}, "text"),
    "fineweb": ("000_00000.parquet", {"text": "A page.", "id": "1", "dump": "CC-MAIN-2024-10", "token_count": 3}, "text"),
    "alpaca": ("alpaca_data.json", {"instruction": "Say hi.", "input": "", "output": "Hi."}, None),
    "sharegpt": (
        "sg.json",
        {"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi!"}]},
        None,
    ),
    "belle": ("Belle_open_source_1M.json", {"instruction": "你好", "input": "", "output": "你好！"}, None),
    "dolly": ("dolly.jsonl", {"instruction": "Say hi.", "context": "", "response": "Hi.", "category": "open_qa"}, None),
    "openassistant": ("trees.jsonl.gz", TREE, None),
    "gsm8k": ("train.jsonl", {"question": "1 + 1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}, None),
    "hh_rlhf": (
        "train.jsonl.gz",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hi!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
        None,
    ),
    "ultrafeedback": (
        "train_prefs.parquet",
        {"prompt": "Hi?", "chosen": CHOSEN, "rejected": REJECTED, "score_chosen": 8.0},
        None,
    ),
    "summarize_from_feedback": (
        "0000.parquet",
        {
            "info": {"post": "A long post.", "title": "T"},
            "summaries": [{"text": "A."}, {"text": "B."}],
            "choice": 1,
            "split": "train",
        },
        None,
    ),
}


def corpora() -> list[str]:
    return [name for name in options("data/source") if "\n# licence: " in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")]


def write(path: Path, row: dict[str, Any]) -> None:
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist([row]), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(line))
    elif path.suffix == ".zst":
        from llmfactory.data.source.streams import zstd

        path.write_bytes(zstd.compress(line))
    elif path.name.startswith(("alpaca", "sg")):
        path.write_bytes(b"[" + line + b"]")
    else:
        path.write_bytes(line)


@pytest.mark.parametrize("corpus", corpora())
def test_a_local_copy_of_the_same_schema_is_read(read: Read, tmp_path: Path, corpus: str) -> None:
    name, row, field = ROWS[corpus]
    write(tmp_path / name, row)
    spec = compose_job([f"data/source={corpus}", f"data.source.path={tmp_path}", "stage=describe"]).job.data.source  # type: ignore[attr-defined]
    assert isinstance(spec, Hub)
    assert spec.field == field
    documents, account = read(spec)
    assert len(documents) == 1
    assert not account.bads
    if field is None:
        assert json.loads(documents[0].text) == row
    else:
        assert documents[0].text == row[field]
    said = re.search("^# fields: (.*)$", (FOLDER / f"{corpus}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert said
    assert field is None or field in said[1]


def test_every_corpus_has_a_row_here() -> None:
    assert set(ROWS) == set(corpora())


def line(corpus: str) -> str:
    text = (FOLDER / f"{corpus}.yaml").read_text(encoding="utf-8")
    said = dict(re.findall(r"^# (licence|fields|note): (.*)$", text, re.MULTILINE))
    content = yaml.safe_load(text)
    where = f"`{content['id']}`" + (f", `{content['name']}`" if "name" in content else "")
    what = text.splitlines()[0].removeprefix("# ").partition(".    ")[0]
    cells = [
        f"`{corpus}`",
        what,
        where,
        said["fields"],
        f"`{content['field']}`" if content.get("field") else "text",
        said["licence"],
    ]
    if content.get("field", "") is None:
        cells[4] = "the row"
    return f"| {' | '.join([*cells, said.get('note', '')])} |".replace("|  |", "| |")


def page() -> str:
    head = """# Published corpora

Each is an option of `data/source`: `llmfactory data/source=c4` streams it from the Hugging Face hub (the extra `data`), and
`data.source.path=my_copy` reads a local copy of its files instead. A licence is what its publisher says; read it there before use.
The rows of instructions and preferences are for the forms that know them (`data=chat`, `data=preference`).

"""
    columns = ["option", "what", "on the hub", "fields", "read", "licence", "note"]
    table = [f"| {' | '.join(columns)} |", "|" + " :-- |" * len(columns), *(line(corpus) for corpus in corpora())]
    return head + "\n".join(table) + "\n"


def test_the_page_is_the_generated_one(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), HINT
