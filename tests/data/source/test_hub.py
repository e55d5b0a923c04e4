"""The hub's datasets: streamed from a folder that is laid out as one, copies, versions, and errors that say what to do."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.account import Account
from llmfactory.data.source.spec import Hub
from tests.data.source.conftest import Read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "set"
    (path / "de").mkdir(parents=True)
    for part, count in (("train", 3), ("test", 1)):
        for i in range(count):
            rows = [{"text": f"{part} {i} {j}", "meta": {"n": j}} for j in range(4)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (path / "de" / f"{part}-{i:05}-of-{count:05}.jsonl").write_text(lines)
    (path / "fr").mkdir()
    (path / "fr" / "train.jsonl").write_text(
        '{"text": "bon", "meta": {"n": 0}}\n{"text": null, "meta": {"n": 1}}\n{"text": "", "meta": null}\n'
    )
    card = ["configs:"]
    for name in ("de", "fr"):
        card += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train*"]
        card += ["  - split: test", "    path: de/test*"] if name == "de" else []
    (path / "README.md").write_text("\n".join(["---", *card, "---", ""]))
    return path


def test_it_is_streamed_file_by_file(read: Read, folder: Path) -> None:
    spec = Hub(id=str(folder), name="de")
    documents, account = read(spec)
    assert [d.text for d in documents] == [f"train {i} {j}" for i in range(3) for j in range(4)]
    assert documents[5].name == f"{folder}, part 2 of 3, row 2"
    assert account.good == 12
    assert [json.loads(d.text) for d in read(Hub(id=str(folder), name="de", split="test", field=None))[0]][1] == {
        "text": "test 0 1",
        "meta": {"n": 1},
    }
    source = spec.build()
    copy = pickle.loads(pickle.dumps((source, source.units())))
    assert [d for unit in copy[1] for d in copy[0].documents(unit, Account(0.0))] == documents


def test_files_and_columns_are_chosen(read: Read, folder: Path) -> None:
    assert [d.text for d in read(Hub(id=str(folder), data_files=["de/test*"]))[0]] == [f"test 0 {j}" for j in range(4)]
    with pytest.raises(UserError, match=r"has no column 'body' among \['text', 'meta'\]: data.source.field"):
        read(Hub(id=str(folder), name="de", field="body"))
    with pytest.raises(UserError, match=r"wrong type: field 'meta.n' is a int"):
        read(Hub(id=str(folder), name="de", field="meta.n"))


def test_rows_without_text_are_set_aside(read: Read, folder: Path) -> None:
    with pytest.raises(UserError, match="part 1 of 1, row 2: wrong type: field 'text' is a NoneType"):
        read(Hub(id=str(folder), name="fr"))
    documents, account = read(Hub(id=str(folder), name="fr", bad_share=0.5))
    assert [d.text for d in documents] == ["bon"]
    assert [bad.reason for bad in account.bads] == ["wrong type"]
    assert account.drops.by_reason["empty document"].documents == 1


def test_a_damaged_file_is_an_error_that_names_it(read: Read, folder: Path) -> None:
    (folder / "de" / "train-00002-of-00003.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(UserError, match="set, part 3 of 3, row"):
        read(Hub(id=str(folder), name="de", bad_share=1.0))


def test_the_fingerprint_is_of_the_content_and_the_choice(folder: Path) -> None:
    first = Hub(id=str(folder), name="de").build().fingerprint()
    other = [{"name": "fr"}, {"name": "de", "split": "test"}, {"name": "de", "field": None}, {"name": "de", "bad_share": 0.1}]
    other += [{"data_files": ["de/*"]}]
    found = {Hub(id=str(folder), **fields).build().fingerprint() for fields in other}  # type: ignore[arg-type]
    assert len(found | {first}) == 6
    (folder / "de" / "test-00000-of-00001.jsonl").write_text('{"text": "changed", "meta": null}\n')
    assert Hub(id=str(folder), name="de").build().fingerprint() != first


def test_of_the_hub_a_commit_is_the_version(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: list[Any] = []

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            asked.append((name, revision))
            return SimpleNamespace(sha="c" * 40)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    loaded: dict[str, Any] = {}

    def load(path: str, name: str | None, **options: Any) -> Any:
        loaded.update(options, path=path, name=name)
        return real(str(folder), "de", split="train", streaming=True)

    real = datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", load)
    source = Hub(id="some/set", name="de", revision="main").build()
    assert source.fingerprint() == Hub(id="some/set", name="de", revision="c" * 40).build().fingerprint()
    assert len(source.units()) == 3
    assert asked == [("some/set", "main")]
    assert loaded == {
        "path": "some/set",
        "name": "de",
        "split": "train",
        "revision": "c" * 40,
        "data_files": None,
        "streaming": True,
    }


@pytest.mark.parametrize("revision", [None, "a" * 40])
def test_without_a_network_it_says_what_to_do(revision: str | None) -> None:
    source = Hub(id="allenai/c4", name="en", revision=revision).build()
    with pytest.raises(UserError, match=r"cannot load allenai/c4, en, split train from .*data\.source\.path=my_copy"):
        source.fingerprint()
        source.units()


def test_without_the_package_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets.*pip install 'llmfactory\[data\]'"):
        Hub(id=str(folder)).build().units()


def test_a_copy_is_read_instead(read: Read, folder: Path, tmp_path: Path) -> None:
    documents, account = read(Hub(id="some/set", path=str(folder / "fr"), bad_share=0.5))
    assert [d.text for d in documents] == ["bon"]
    assert account.bads[0].where == f"{folder}/fr/train.jsonl, line 2"
    one = datasets.Dataset.from_list([{"text": "saved"}])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "saved")
    assert [d.text for d in read(Hub(id="some/set", path=str(tmp_path / "saved"), split="test"))[0]] == ["saved"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "train"]),
        ({"split": "test"}, ["test-00000-of-00001"]),
        ({"data_files": ["fr/*.jsonl"]}, ["train"]),
        ({"data_files": ["gone/*.jsonl"], "split": "test"}, ["test-00000-of-00001"]),
    ],
)
def test_of_a_copied_folder_the_split_is_read_and_no_card(folder: Path, fields: dict[str, Any], expected: list[str]) -> None:
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "LICENSE.txt").write_text("a licence")
    source = Hub(id="some/set", path=str(folder), **fields).build()
    assert [Path(place[0]).stem for unit in source.units() for place in unit.place] == expected


def test_a_copied_folder_without_the_split_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no files of the split 'dev', but of \['test', 'train'\]: data\.source\.split=test"):
        Hub(id="some/set", path=str(folder), split="dev").build()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "rows.jsonl").write_text('{"text": "x"}')
    assert len(Hub(id="some/set", path=str(tmp_path / "plain")).build().units()) == 1
