"""A published folder's tokenizer: its end, begin and stop tokens and its chat template, wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.hf_folder import begin_of, read_folder, with_begin
from llmfactory.data.tokenizer.spec import ByteBpe, HfFile
from llmfactory.data.tokenizer.tokenizer import Usage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = ByteBpe().build(300).make(["some words and some more words " * 20])
    assert isinstance(made, HfTokenizer)
    made.inner.add_special_tokens(["<bos>", "<eos>", "<turn>"])
    made.inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def ids(folder: Path, *tokens: str) -> tuple[int, ...]:
    inner = read_folder(folder).inner
    return tuple(inner.token_to_id(token) for token in tokens)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", ["<eos>", {"content": "<eos>", "lstrip": False}])
def test_the_end_token_is_named_in_either_file(folder: Path, name: str, token: Any) -> None:
    write(folder, name, {"eos_token": token, "sep_token": "<turn>"})
    assert (read_folder(folder).end_id,) == ids(folder, "<eos>")
    assert (read_folder(folder, end_token="<turn>").end_id,) == ids(folder, "<turn>")


def test_without_a_name_the_known_ones_are_looked_for(folder: Path) -> None:
    assert (read_folder(folder).end_id,) == ids(folder, "<|endoftext|>")
    write(folder, "tokenizer_config.json", {"eos_token": None, "sep_token": "<turn>"})
    assert (read_folder(folder).end_id,) == ids(folder, "<turn>"), "an encoder has none but the one between two texts"


def test_it_stops_at_every_id_that_the_generation_config_names(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "<eos>"})
    eos, turn = ids(folder, "<eos>", "<turn>")
    write(folder, "config.json", {"eos_token_id": eos})
    assert read_folder(folder).usage.stop_ids == (eos,)
    write(folder, "generation_config.json", {"eos_token_id": [turn, eos]})
    assert read_folder(folder).usage.stop_ids == (eos, turn)


def test_the_post_processor_says_how_a_text_begins(folder: Path) -> None:
    assert read_folder(folder).usage.begin_ids == ()
    tokenizer = HfTokenizer(read_folder(folder).inner, 0, Usage(ids(folder, "<bos>", "<turn>"), (0,)))
    inner = with_begin(tokenizer)
    assert begin_of(inner) == ids(folder, "<bos>", "<turn>")
    assert inner.encode("some words").ids == [*ids(folder, "<bos>", "<turn>"), *tokenizer.encode("some words")]
    inner.enable_padding(length=64)
    inner.enable_truncation(3)
    inner.save(str(folder / "tokenizer.json"))
    assert read_folder(folder).usage.begin_ids == ids(folder, "<bos>", "<turn>")
    assert with_begin(HfTokenizer(inner, 0, Usage(ids(folder, "<bos>", "<turn>"), (0,)))).to_str() == inner.to_str()


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template.jinja": "file", "tokenizer_config.json": {"chat_template": "key"}}, "file"),
        ({"tokenizer_config.json": {"chat_template": "key"}}, "key"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
                }
            },
            "d",
        ),
        ({"tokenizer_config.json": {}}, None),
    ],
)
def test_the_chat_template(folder: Path, files: dict[str, Any], template: str | None) -> None:
    for name, content in files.items():
        write(folder, name, content)
    assert read_folder(folder).usage.chat_template == template


def test_as_an_option_it_is_kept_with_everything(folder: Path, tmp_path: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "<eos>", "chat_template": "{{ messages }}"})
    source = HfFile(file=str(folder)).build(400)
    made = source.make(())
    made.save(tmp_path / "kept")
    again = HfFile(file=str(tmp_path / "kept")).build(400)
    assert again.make(()).usage == made.usage
    assert again.fingerprint() == source.fingerprint()
    write(folder, "tokenizer_config.json", {"eos_token": "<eos>", "chat_template": "another"})
    assert HfFile(file=str(folder)).build(400).fingerprint() != source.fingerprint()


def test_what_is_wrong_is_named(folder: Path) -> None:
    write(folder, "tokenizer_config.json", "{")
    with pytest.raises(UserError, match=r"tokenizer_config.json cannot be read"):
        read_folder(folder)
    write(folder, "tokenizer_config.json", "[]")
    with pytest.raises(UserError, match=r"tokenizer_config.json is damaged: it holds no mapping"):
        read_folder(folder)
    write(folder, "tokenizer_config.json", {"eos_token": "<none>"})
    with pytest.raises(UserError, match="knows no '<none>'"):
        read_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json, nor .*transformers makes one.*save_pretrained"):
        read_folder(folder)
    ByteBpe()
    from llmfactory.data.tokenizer.bytes import ByteTokenizer

    ByteTokenizer().save(folder)
    with pytest.raises(UserError, match="a tokenizer of bytes: data/tokenizer=bytes"):
        read_folder(folder)
