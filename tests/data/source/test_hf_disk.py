"""Folders that `save_to_disk` made, read without the package that made them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.spec import HfDisk
from tests.data.source.conftest import Read

ROWS = [{"text": f"text {i}", "meta": {"n": i}} for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(path / "one", num_shards=3)
    datasets.DatasetDict({"train": one, "test": one.select([5, 3])}).save_to_disk(path / "splits")
    return path


def test_it_holds_what_was_saved(read: Read, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert [d.text for d in read(HfDisk(path=str(folder / "one")))[0]] == [row["text"] for row in ROWS]
    rows = read(HfDisk(path=str(folder / "one"), field=None))[0]
    assert [json.loads(d.text) for d in rows] == ROWS
    assert [len(unit.place) for unit in HfDisk(path=str(folder / "one")).build().units()] == [3]
    assert read(HfDisk(path=str(folder / "one"), field="text"))[0][0].name.endswith("data-00000-of-00003.arrow, row 1")


def test_a_split_is_chosen(read: Read, folder: Path) -> None:
    path = str(folder / "splits")
    assert [d.text for d in read(HfDisk(path=path, split="test"))[0]] == ["text 5", "text 3"]
    assert len(read(HfDisk(path=path))[0]) == 20
    assert len(read(HfDisk(path=path, split=None))[0]) == 22
    with pytest.raises(UserError, match=r"has no split 'dev', it has train, test: data.source.split=train"):
        HfDisk(path=path, split="dev").build()


def test_rows_that_cannot_be_read_are_set_aside(read: Read, tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a"}, {"text": None}]).save_to_disk(tmp_path / "x")
    path = str(tmp_path / "x")
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow, row 2: wrong type"):
        read(HfDisk(path=path))
    documents, account = read(HfDisk(path=path, bad_share=0.5))
    assert ([d.text for d in documents], len(account.bads)) == (["a"], 1)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "is no folder that save_to_disk has made"),
        ({"state.json": "{"}, r"state\.json is damaged"),
        ({"state.json": '{"_data_files": []}'}, r"state\.json is damaged: _data_files is \[\]"),
        ({"state.json": '{"_data_files": [{"filename": "gone.arrow"}]}'}, r"no such file: .*gone\.arrow"),
        ({"dataset_dict.json": '{"splits": ["train"]}'}, r"cannot read .*train/state\.json: No such file"),
    ],
)
def test_a_folder_that_is_none_is_named(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        HfDisk(path=str(tmp_path)).build()
