"""Published folders without tokenizer.json: the ids that transformers gives, and refusal where they are not known."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.hf_folder import read_folder
from llmfactory.data.tokenizer.spec import ByteBpe, HfFile, Split, Wordpiece

TEXTS = ["The quick brown fox", "it's 1984, isn't it?", "数学是研究数量", " a  b ", ""]


def model(**settings: Any) -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=made,
        hard_vocab_limit=False,
        minloglevel=2,
        byte_fallback=True,
        **settings,
    )
    return made.getvalue()


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_llama_s_sentencepiece_folder(tmp_path: Path) -> None:
    content = model(model_type="bpe", vocab_size=400, normalization_rule_name="identity", remove_extra_whitespaces=False)
    (tmp_path / "tokenizer.model").write_bytes(content)
    write(tmp_path, config={"model_type": "llama"}, tokenizer_config={"eos_token": "</s>"})
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    size = theirs.get_piece_size()
    write(tmp_path, added_tokens={"<turn>": size + 1, "<pad>": size})
    ours = HfFile(file=str(tmp_path)).build(1000).make(())
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert (ours.end_id, ours.usage.begin_ids, ours.usage.stop_ids) == (2, (1,), (2,))
    assert (ours.specials()["<pad>"], ours.specials()["<turn>"], ours.vocab_size) == (size, size + 1, size + 2)
    write(tmp_path, tokenizer_config={"eos_token": "</s>", "add_bos_token": False})
    assert read_folder(tmp_path).usage.begin_ids == ()
    listed = {str(size + 2): {"content": "<more>"}}
    write(tmp_path, tokenizer_config={"eos_token": "</s>", "added_tokens_decoder": listed})
    assert read_folder(tmp_path).specials()["<more>"] == size + 2
    write(tmp_path, added_tokens={"<turn>": size + 5})
    with pytest.raises(UserError, match=r"says that '<more>' has the id|says that '<turn>' has the id"):
        read_folder(tmp_path)


def test_t5_s_sentinels_stand_behind_its_pieces(tmp_path: Path) -> None:
    content = model(model_type="unigram", vocab_size=330, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "spiece.model").write_bytes(content)
    write(
        tmp_path, config={"model_type": "t5", "decoder_start_token_id": 0}, tokenizer_config={"eos_token": "</s>", "extra_ids": 3}
    )
    ours = read_folder(tmp_path)
    size = sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size()
    assert [ours.specials()[f"<extra_id_{k}>"] for k in range(3)] == [size + 2, size + 1, size]
    assert (ours.end_id, ours.usage.begin_ids, ours.usage.decoder_start_id) == (1, (), 0)


@pytest.mark.parametrize("kind", ["xlm-roberta", None])
def test_other_kinds_may_give_other_ids(tmp_path: Path, kind: str | None) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model(model_type="unigram", vocab_size=330))
    write(tmp_path, config={"model_type": kind})
    with pytest.raises(UserError, match=r"is not known here; transformers makes a tokenizer.json"):
        read_folder(tmp_path)


def test_bert_s_vocab(tmp_path: Path, corpus: list[str]) -> None:
    from transformers import BertTokenizer

    made = Wordpiece(lowercase=False).build(400).make(corpus)
    assert isinstance(made, HfTokenizer)
    pieces = made.inner.get_vocab(with_added_tokens=False)
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n", encoding="utf-8")
    for lowercase in (True, False):
        write(tmp_path, config={"model_type": "bert"}, tokenizer_config={"do_lower_case": lowercase, "sep_token": "[SEP]"})
        theirs, ours = BertTokenizer.from_pretrained(tmp_path), read_folder(tmp_path)
        texts = ["The QUICK brown fox über 数学", *TEXTS]
        assert [ours.encode(text) for text in texts] == [theirs.encode(text, add_special_tokens=False) for text in texts]
        assert (ours.end_id, ours.usage.begin_ids) == (theirs.sep_token_id, (theirs.cls_token_id,))


def test_gpt2_s_pair(tmp_path: Path, corpus: list[str]) -> None:
    made = ByteBpe(split=Split.gpt2).build(400).make(corpus)
    assert isinstance(made, HfTokenizer)
    content = json.loads(made.inner.to_str())["model"]
    write(tmp_path, vocab=content["vocab"], config={"model_type": "gpt2"})
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in content["merges"]), encoding="utf-8")
    ours = read_folder(tmp_path)
    assert [ours.encode(text) for text in TEXTS] == [made.encode(text) for text in TEXTS]
    assert ours.end_id == made.end_id


def test_a_damaged_list_of_tokens_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model(model_type="bpe", vocab_size=330))
    write(tmp_path, config={"model_type": "llama"})
    (tmp_path / "added_tokens.json").write_text("[1]")
    with pytest.raises(UserError, match=r"added_tokens.json is damaged"):
        read_folder(tmp_path)
