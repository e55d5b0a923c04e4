"""More pieces for a tokenizer: old ids stay, old text keeps them, new text gets shorter, and what each new piece was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.any_file import read_any
from llmfactory.data.tokenizer.base_spec import TokenizerSpec
from llmfactory.data.tokenizer.bytes import ByteTokenizer, as_pairs
from llmfactory.data.tokenizer.extended import extend, pieces_of
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import (
    ByteBpe,
    Bytes,
    Characters,
    Extended,
    Normalization,
    SentencepieceBpe,
    Split,
    Unigram,
    WordLevel,
    Wordpiece,
)
from llmfactory.data.tokenizer.tokenizer import load

ENGLISH = ["The quick brown fox jumps over the lazy dog, and it's 1234 years old.\n" * 30, "words and more words of it\n" * 30]
CHINESE = ["数学是研究数量、结构以及空间等概念的一门学科。\n" * 30, "北京是中华人民共和国的首都，北京大学在北京。\n" * 30]
KINDS: dict[str, TokenizerSpec] = {
    "bytes": Bytes(),
    "byte_bpe": ByteBpe(),
    "byte_bpe_gpt2": ByteBpe(split=Split.gpt2, normalization=Normalization.nfc, special_tokens=["<|im_start|>"]),
    "pieces": SentencepieceBpe(special_tokens=["<|im_start|>"]),
    "unigram": Unigram(special_tokens=["<|im_start|>"]),
    "wordpiece": Wordpiece(special_tokens=["<|im_start|>"]),
    "characters": Characters(special_tokens=["<|im_start|>"]),
}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> HfTokenizer:
    made = KINDS[request.param].build(400).make(ENGLISH)
    return as_pairs() if isinstance(made, ByteTokenizer) else made  # type: ignore[return-value]


@pytest.fixture
def new(base: HfTokenizer) -> HfTokenizer:
    return extend(base, CHINESE, 60)


def test_old_ids_stay_and_new_ones_follow(base: HfTokenizer, new: HfTokenizer) -> None:
    before, after = (one.inner.get_vocab(with_added_tokens=True) for one in (base, new))
    assert before.items() <= after.items()
    numbers = sorted(number for token, number in after.items() if token not in before)
    assert numbers == list(range(base.vocab_size, new.vocab_size))
    assert 20 <= len(numbers) <= 60
    assert (new.end_id, new.usage, new.lossless) == (base.end_id, base.usage, base.lossless)
    assert new.specials() == base.specials()


def test_text_without_new_pieces_keeps_its_ids(base: HfTokenizer, new: HfTokenizer) -> None:
    text = "".join(ENGLISH) + "<|im_start|> <|endoftext|> x = 7"
    assert new.encode(text) == base.encode(text)


def test_new_text_is_shorter_and_comes_back(base: HfTokenizer, new: HfTokenizer, samples: list[str], tmp_path: Path) -> None:
    text = "".join(CHINESE)
    assert len(new.encode(text)) < 0.75 * len(base.encode(text)) or base.inner.model.__class__.__name__ == "WordPiece"
    assert max(new.encode(text)) >= base.vocab_size
    for one in [*samples, text] if base.lossless else []:
        form = new.inner.normalizer.normalize_str(one) if "NFC" in str(new.inner.normalizer) else one
        assert new.decode(new.encode(one)) == form
    new.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert again.encode_batch([text, *samples]) == new.encode_batch([text, *samples]) == [new.encode(t) for t in [text, *samples]]
    assert again.specials() == base.specials()


def test_a_new_piece_is_what_its_text_was(base: HfTokenizer, new: HfTokenizer) -> None:
    found = pieces_of(base, new)
    assert list(found) == list(range(base.vocab_size, new.vocab_size))
    text = "北京大学在北京，数学是一门学科。"
    if base.inner.model.__class__.__name__ == "BPE":
        spelled = [old for number in new.encode(text) for old in found.get(number, [number])]
        assert spelled == base.encode(text)
    assert all(0 <= old < base.vocab_size for ids in found.values() for old in ids)
    assert all(found.values())


def test_learning_again_gives_the_same(base: HfTokenizer, new: HfTokenizer) -> None:
    assert extend(base, iter(CHINESE), 60).fingerprint() == new.fingerprint()
    assert extend(base, CHINESE, 20).vocab_size <= base.vocab_size + 20


def test_it_can_be_extended_again(base: HfTokenizer, new: HfTokenizer) -> None:
    more = extend(new, ["ещё немного русского текста, и ещё немного\n" * 30], 30)
    text = "".join(CHINESE + ENGLISH)
    assert more.encode(text) == new.encode(text)
    assert new.vocab_size < more.vocab_size <= new.vocab_size + 30


def test_pairs_stay_fast() -> None:
    made = ByteBpe(split=Split.gpt4).build(400).make(ENGLISH)
    assert isinstance(made, HfTokenizer)
    assert extend(made, CHINESE, 60)._ranks is not None
    assert extend(as_pairs(), CHINESE, 60)._ranks is not None


def test_as_an_option(tmp_path: Path) -> None:
    made = ByteBpe().build(400).make(ENGLISH)
    made.save(tmp_path / "run/checkpoints/step_00000009/tokenizer")
    as_option = [Extended(base=str(tmp_path / "run"), new_tokens=n, train_bytes=b) for n, b in ((60, 9), (30, 9), (60, 8))]
    built = [spec.build(1000) for spec in as_option]
    assert len({one.fingerprint() for one in built}) == 3
    assert [one.sample_bytes for one in built] == [9, 9, 8]
    assert built[1].make(CHINESE).vocab_size == made.vocab_size + 30
    with pytest.raises(UserError, match=rf"has {made.vocab_size + 60} ids, the model only 300"):
        as_option[0].build(300)
    with pytest.raises(UserError, match=r"data.tokenizer.base=\.\.\., or stage=extend"):
        Extended(new_tokens=5).build(1000)
    words = WordLevel(min_count=1).build(400).make(ENGLISH)
    words.save(tmp_path / "words")
    with pytest.raises(UserError, match="of the kind WordLevel cannot be extended"):
        Extended(base=str(tmp_path / "words"), new_tokens=5).build(1000).make(CHINESE)


def test_any_path(tmp_path: Path) -> None:
    made = ByteBpe().build(400).make(ENGLISH)
    assert isinstance(made, HfTokenizer)
    made.save(tmp_path / "a/tokenizer")
    for path in ("a", "a/tokenizer", "a/tokenizer/tokenizer.json"):
        assert read_any(tmp_path / path).encode("more words") == made.encode("more words")
    ByteTokenizer().save(tmp_path / "b/checkpoints/step_00000001/tokenizer")
    made.save(tmp_path / "b/checkpoints/step_00000010/tokenizer")
    assert read_any(tmp_path / "b").vocab_size == made.vocab_size
    assert read_any(tmp_path / "b/checkpoints/step_00000001").vocab_size == 257
    with pytest.raises(UserError, match="is no tokenizer that can be told by its name"):
        read_any(tmp_path / "c.bin")


@pytest.mark.parametrize("kind", [ByteBpe(), SentencepieceBpe()], ids=["byte_bpe", "pieces"])
def test_new_merges_come_after_all_old_ones(kind: TokenizerSpec) -> None:
    """Of text in the same letters: what is joined is what the old tokenizer leaves."""
    base = kind.build(310).make(ENGLISH)
    assert isinstance(base, HfTokenizer)
    texts = ["the boxer's dogs were quickly jumping over those lazy foxes, or overjumping them\n" * 30]
    made = extend(base, texts, 40)
    found = pieces_of(base, made)
    for text in (*texts, *ENGLISH, "a lazy overjumper of dogs"):
        assert [old for number in made.encode(text) for old in found.get(number, [number])] == base.encode(text)
    assert len(made.encode(texts[0])) < 0.8 * len(base.encode(texts[0]))


def test_what_stays_in_bytes_parts_its_neighbours() -> None:
    base = SentencepieceBpe().build(300).make(["xx yy " * 30])
    assert isinstance(base, HfTokenizer)
    rare = [chr(0x4E00 + number) for number in range(40)]
    made = extend(base, ["".join(f"x{c}y{c} " for c in rare) * 3], 10)
    vocab = made.inner.get_vocab()
    assert sum(c in vocab for c in rare) == 5
    assert not any("xy" in piece or "yx" in piece for piece in vocab)
