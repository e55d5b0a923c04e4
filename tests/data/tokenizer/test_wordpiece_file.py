"""BERT's vocab.txt: the ids of transformers' own tokenizer, cased and not, with Chinese text."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import Wordpiece, WordpieceFile
from llmfactory.data.tokenizer.tokenizer import load


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def vocab(request: pytest.FixtureRequest, corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    made = Wordpiece(lowercase=request.param).build(400).make(corpus)
    assert isinstance(made, HfTokenizer)
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    pieces = made.inner.get_vocab(with_added_tokens=False)
    path.write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n", encoding="utf-8")
    return path, request.param


@pytest.mark.parametrize("chinese", [True, False])
def test_the_ids_are_those_of_transformers(
    vocab: tuple[Path, bool], chinese: bool, samples: list[str], corpus: list[str], tmp_path: Path
) -> None:
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    path, lowercase = vocab
    theirs = BertTokenizerLegacy(str(path), do_lower_case=lowercase, tokenize_chinese_chars=chinese)
    ours = WordpieceFile(file=str(path), lowercase=lowercase, split_chinese=chinese).build(1000).make(())
    texts = [text for text in [*samples, *corpus] if "[SEP]" not in text and "\uffff" not in text]  # names are taken from text
    assert ours.encode_batch(texts) == [theirs.convert_tokens_to_ids(theirs.tokenize(text)) for text in texts]
    assert ours.end_id == theirs.sep_token_id
    assert ours.usage.begin_ids == (ours.end_id,)
    assert not ours.lossless
    assert theirs.mask_token_id not in ours.encode("[MASK] is text")
    ours.save(tmp_path / "kept")
    assert load(tmp_path / "kept").encode_batch(texts) == ours.encode_batch(texts)


def test_every_field_counts(vocab: tuple[Path, bool]) -> None:
    path = str(vocab[0])
    specs = [WordpieceFile(file=path), WordpieceFile(file=path, lowercase=False), WordpieceFile(file=path, split_chinese=False)]
    specs += [WordpieceFile(file=path, special_tokens=["<turn>"]), WordpieceFile(file=path, end_token="[CLS]")]
    assert len({spec.build(1000).fingerprint() for spec in specs}) == len(specs)
    assert (
        WordpieceFile(file=path, special_tokens=["<turn>"]).build(1000).make(()).specials()["<turn>"]
        == specs[0].build(1000).make(()).vocab_size
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a\nb\n", r"no line \[UNK\]"), ("[UNK]\na\na\n", "the piece 'a' stands in it twice"), ("[UNK]\na\n", "knows none of")],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=f"vocab.txt .*{reason}"):
        WordpieceFile(file=str(path)).build(1000)
    path.write_bytes(b"\xff\xfe[UNK]")
    with pytest.raises(UserError, match=r"vocab.txt is no vocab.txt: not UTF-8"):
        WordpieceFile(file=str(path)).build(1000)
