"""Ids of texts that go on behind a prompt: with tokenizers that put a space before a text, as `transformers` has them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_templates import TURNS, source_of

from llmfactory.data.form.template.ids import encode
from llmfactory.data.form.template.template import READ, Piece, Template
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Usage

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>"]


def pieces_with_spaces(scheme: str) -> Any:
    """A tokenizer of SentencePiece's kind: `first` puts a space before a text, `always` also behind each special token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "first":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    inner.train_from_iterator(["some words and some more words, who are you and me? "] * 50, trainer)
    content = json.loads(inner.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize("name", ["mistral", "llama2", "chatml", "vicuna", "gemma"])
@pytest.mark.parametrize("scheme", ["first", "always"])
def test_spaces_before_texts_are_those_of_transformers(scheme: str, name: str) -> None:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    inner = pieces_with_spaces(scheme)
    source, specials = source_of(name)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    copy = type(inner).from_str(inner.to_str())
    theirs = PreTrainedTokenizerFast(tokenizer_object=copy, chat_template=source, eos_token="</s>", bos_token="<s>")
    ours = HfTokenizer(inner, 2, Usage((1,), (2,)))
    found = theirs.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    ((ids, turns),) = encode(ours, [Template(source, name, ours).pieces(TURNS)])
    assert ids == found["input_ids"]
    assert [int(turn != READ) for turn in turns] == found["assistant_masks"]


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_an_answer_that_goes_on_in_the_same_word_gets_no_space(scheme: str) -> None:
    """`some wo` and `rds`: together they are other tokens, so each side is tokenized by itself."""
    tokenizer = HfTokenizer(pieces_with_spaces(scheme), 2)
    ((ids, turns),) = encode(tokenizer, [[Piece("some wo", None, READ), Piece("rds", None, 0)]])
    assert ids[: turns.tolist().index(0)] == tokenizer.encode("some wo")
    assert "".join(tokenizer.inner.id_to_token(i) for i in ids) == "▁some▁words"


def test_a_token_over_the_border_is_cut_and_others_are_not() -> None:
    from chat_templates import trained

    tokenizer = trained()
    whole = tokenizer.encode("some words")
    assert len(tokenizer.encode(" words")) == 1
    ((ids, turns),) = encode(tokenizer, [[Piece("some", None, READ), Piece(" words", None, 0)]])
    assert (ids, turns.tolist()) == (whole, [READ] * (len(whole) - 1) + [0])
    ((ids, turns),) = encode(tokenizer, [[Piece("some wo", None, READ), Piece("rds", None, 0)]])
    assert ids == [*tokenizer.encode("some wo"), *tokenizer.encode("rds")] != whole
    assert turns.tolist() == [READ] * len(tokenizer.encode("some wo")) + [0] * len(tokenizer.encode("rds"))


def test_many_conversations_at_once_are_each_as_alone() -> None:
    tokenizer = ByteTokenizer()
    some = [[Piece("a", None, READ), Piece("b", None, 0), Piece("<|endoftext|>", 256, 0)], [], [Piece("c", None, READ)]]
    found = encode(tokenizer, some)
    assert [(ids, turns.tolist()) for ids, turns in found] == [([97, 98, 256], [READ, 0, 0]), ([], []), ([99], [READ])]
    assert encode(tokenizer, []) == []
