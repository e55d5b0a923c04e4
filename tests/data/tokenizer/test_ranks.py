"""`tiktoken` in the place of `tokenizers`: the same ids on every kind of text, and not at all where they might differ."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.patterns import FASTER, GPT4O, PATTERNS, QWEN2, byte_level, letters
from llmfactory.data.tokenizer.ranks import RUN, joined, ranks_of
from llmfactory.data.tokenizer.spec import ByteBpe, Split

SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
CHINESE = "数学是研究数量、结构以及空间等概念的学科。《红楼梦》,中国古典四大名著之首;“好的”,他说:3.14。\n\n　　第二段……\n"
CLASSES = [rf"\p{{{name}}}" for name in ("L", "N", "M", "Lu", "Lt", "Lm", "Lo", "Ll")] + [r"\s"]
EVERY = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
PIECES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "a",
    "B",
    "é",
    "'s",
    "'LL",
    "'ſ",
    "'",
    "\u00a0",
    "\u3000",
    "的",
    "数",
    "1",
    "²",
    "!",
    "=",
]
PIECES += ["_", "👩‍👧", "\u0301", "\x00", "\x85", "\u200b", "ﬁ", "İ", "\u2028", "<|endoftext|>", "<|no text|>", "ǅ", "ʰ"]


def soup(chance: random.Random, length: int) -> str:
    def one() -> str:
        if chance.random() < 0.8:
            return chance.choice(PIECES)
        return chr(
            chance.choice([chance.randrange(0x20, 0x3000), chance.randrange(0x3000, 0xD800), chance.randrange(0xE000, 0x110000)])
        )

    return "".join(one() for _ in range(length))


def texts() -> list[str]:
    chance = random.Random(0)
    found = ["", *(soup(chance, 6) for _ in range(1500)), *(soup(chance, 300) for _ in range(60))]
    found += [SOURCE[place : place + 4000] for place in range(0, 60_000, 4000)] + [CHINESE * 20]
    found += ["a\n" + " " * count for count in range(1, 13)]
    found += ["a\n  ", "a\n\n    ", "x \n \n", "=\n  ", "1\n\t "]
    found += ["'" + "'".join(EVERY[place : place + 4000]) for place in range(0, 0x20000, 4000)]  # what (?i:'s) means to each
    return found


def inner_of(pattern: str, size: int = 1500) -> Any:
    made = ByteBpe(split=Split.indent).build(size).make([SOURCE, CHINESE * 5, soup(random.Random(1), 20_000)])
    assert isinstance(made, HfTokenizer)
    made.inner.pre_tokenizer = byte_level([pattern])
    return made.inner


def slow(inner: Any, found: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in inner.encode_batch_fast(found, add_special_tokens=False)]


@pytest.mark.parametrize("pattern", FASTER, ids=["gpt2", "gpt4", "qwen2", "indent", "gpt4o"])
def test_it_gives_the_ids_of_the_other(pattern: str) -> None:
    tokenizer = HfTokenizer(inner_of(pattern), 0)
    assert ranks_of(tokenizer.inner) is not None
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts())] == slow(tokenizer.inner, texts())
    assert tokenizer.encode_batch(texts()[:50]) == [tokenizer.encode(text) for text in texts()[:50]]
    assert tokenizer.encode_arrays([]) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_both_engines_know_the_same_characters(kind: str) -> None:
    """Of every code point, so that the patterns cut alike."""
    encoding = tiktoken.Encoding(
        "one", pat_str=f"{kind}+", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    matched = bytes(encoding.encode_ordinary(EVERY)).decode()
    others = pre_tokenizers.Split(Regex(f"{kind}+"), "removed").pre_tokenize_str(EVERY)
    assert set(matched) == set(EVERY) - {letter for piece, _ in others for letter in piece}


def test_each_pattern_matches_every_character() -> None:
    for pattern in FASTER:
        pieces = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str("".join(texts()) + EVERY[:70_000])
        assert pieces == []


@pytest.mark.parametrize("run", [" ", "\n", " \n", "\u3000", "=", "a", "的", "\u0301", "ab", "x "])
@pytest.mark.parametrize("pattern", [PATTERNS[Split.gpt2], PATTERNS[Split.indent], GPT4O], ids=["gpt2", "indent", "gpt4o"])
def test_a_very_long_run(run: str, pattern: str) -> None:
    tokenizer = HfTokenizer(inner_of(pattern, 400), 0)
    for length in (RUN - 1, 2 * RUN, 5 * RUN):
        text = f"x{run * length}y"
        assert tokenizer.encode_arrays([text])[0].tolist() == slow(tokenizer.inner, [text])[0]


def test_a_run_of_white_space_too_long_for_the_other_engine_is_encoded_all_the_same() -> None:
    tokenizer = HfTokenizer(inner_of(PATTERNS[Split.gpt2], 400), 0)
    text = " " * 1_000_000 + "x"
    ranks = ranks_of(tokenizer.inner)
    assert ranks is not None
    assert ranks.encode(text) is None
    assert ranks.encode("x" + " " * (RUN - 1) + "y" * RUN) is not None
    assert tokenizer.decode(tokenizer.encode_arrays([text])[0].tolist()) == text


def pairs(*merges: tuple[str, str], more: tuple[str, ...] = (), **settings: Any) -> Any:
    """A vocabulary of the bytes and what these merges make, ids from the last to the first."""
    tokens = list(dict.fromkeys([*letters(), *("".join(merge) for merge in merges), *more]))
    vocab = {token: len(tokens) - 1 - place for place, token in enumerate(tokens)}
    inner = Inner(models.BPE(vocab, list(merges), **settings))
    inner.pre_tokenizer = byte_level([PATTERNS[Split.gpt2]])
    inner.decoder = decoders.ByteLevel()
    return inner


def test_ids_need_not_be_in_the_order_of_merges() -> None:
    tokenizer = HfTokenizer(pairs(("a", "b"), ("b", "c"), ("ab", "c")), 0)
    words = ["abc", "bc", "cab", "abcabc", "aabbcc"]
    assert [ids.tolist() for ids in tokenizer.encode_arrays(words)] == slow(tokenizer.inner, words)


def test_a_merge_that_is_never_applied_gets_no_rank() -> None:
    """`bc` is joined before `ab`, so abc is never made of ab and c, nor is there another way: it must stay in two."""
    inner = pairs(("b", "c"), ("a", "b"), ("ab", "c"))
    tokenizer = HfTokenizer(inner, 0)
    chance = random.Random(2)
    words = ["abc", "ab", *("".join(chance.choice("abc") for _ in range(9)) for _ in range(300))]
    assert [ids.tolist() for ids in tokenizer.encode_arrays(words)] == slow(inner, words)
    assert len(tokenizer.encode("abc")) == 2


@pytest.mark.parametrize("seed", range(60))
def test_random_lists_of_merges(seed: int) -> None:
    """Lists that no training would give: several ways to a token, parts that come after what is made of them."""
    chance = random.Random(seed)
    tokens, merges = list("abc"), []
    for _ in range(chance.randrange(1, 25)):
        merge = (chance.choice(tokens), chance.choice(tokens))
        merges.append(merge)
        tokens.append("".join(merge))
    if shuffled := seed % 3 == 0:
        chance.shuffle(merges)
    merges = list(dict.fromkeys(merges))
    for settings in ({}, {"ignore_merges": True}):
        inner = pairs(*merges, more=tuple("".join(chance.choice("abc") for _ in range(4)) for _ in range(2)), **settings)
        tokenizer = HfTokenizer(inner, 0)
        assert shuffled or settings or ranks_of(inner) is not None, "parts come first: ranks can say it"
        words = ["".join(chance.choice("abc ") for _ in range(chance.randrange(1, 14))) for _ in range(300)]
        assert [ids.tolist() for ids in tokenizer.encode_arrays(words)] == slow(inner, words)


def test_neighbours_of_the_lowest_rank_are_joined_first() -> None:
    ranks = {token: rank for rank, token in enumerate(["a", "b", "c", "bc", "ab", "abc"])}
    assert joined("abc", ranks) == ["abc"]
    assert joined("abc", {token: rank for token, rank in ranks.items() if token != "abc"}) == ["a", "bc"]
    assert joined("abab", {"a": 0, "b": 1, "ab": 2}) == ["ab", "ab"]


def test_a_token_in_the_text_that_is_no_special_one() -> None:
    tokenizer = HfTokenizer(inner_of(QWEN2, 400), 0)
    tokenizer.inner.add_tokens([AddedToken("of", normalized=False), AddedToken("x y", single_word=True, normalized=False)])
    made = HfTokenizer(tokenizer.inner, 0)
    found = ["a lot of words", "x y z", "xx yy", "nothing here"]
    assert [ids.tolist() for ids in made.encode_arrays(found)] == slow(made.inner, found)
    assert made.inner.token_to_id("of") in made.encode_arrays(found)[0]


def test_text_that_spells_a_special_token_is_text() -> None:
    tokenizer = HfTokenizer(inner_of(PATTERNS[Split.gpt4]), 0)
    ids = tokenizer.encode_arrays(["<|endoftext|> <|no text|>"])[0]
    assert tokenizer.end_id not in ids
    assert tokenizer.decode(ids.tolist()) == "<|endoftext|> <|no text|>"


def test_a_normal_form_is_taken_before() -> None:
    inner = inner_of(QWEN2)
    inner.normalizer = normalizers.NFC()
    tokenizer = HfTokenizer(inner, 0)
    assert ranks_of(inner) is not None
    found = ["e\u0301 \u1100\u1161 plain", "plain"]
    assert [ids.tolist() for ids in tokenizer.encode_arrays(found)] == slow(inner, found)


def test_what_it_does_not_know_is_left_to_the_other() -> None:
    assert ranks_of(Inner(models.WordLevel({"a": 0}, unk_token="a"))) is None
    for change in ("lowercase", "prefix", "pattern", "digits", "alphabet"):
        inner = pairs(("a", "b"))
        if change == "lowercase":
            inner.normalizer = normalizers.Lowercase()
        elif change == "prefix":
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        elif change == "pattern":
            inner.pre_tokenizer = byte_level([r"\w+"])
        elif change == "digits":
            inner.pre_tokenizer = byte_level([r"\p{N}", PATTERNS[Split.gpt2]])
        else:
            inner = Inner(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
            inner.pre_tokenizer = byte_level([PATTERNS[Split.gpt2]])
        assert ranks_of(inner) is None, change
        tokenizer = HfTokenizer(inner, 0)
        assert [ids.tolist() for ids in tokenizer.encode_arrays(["aB ab1 é"])] == slow(inner, ["aB ab1 é"])


def test_a_token_that_is_only_taken_whole_but_could_be_joined() -> None:
    """With `ignore_merges` a piece "xy" is one token, and x and y within a longer piece stay two: ranks cannot say that."""
    assert ranks_of(pairs(("a", "b"), more=("xy",), ignore_merges=True)) is None
    assert ranks_of(pairs(("a", "b"), more=("xyz",), ignore_merges=True)) is not None
    assert ranks_of(pairs(("a", "b"), more=("xy",))) is not None


def test_arrays_are_of_one_kind() -> None:
    tokenizer = HfTokenizer(inner_of(QWEN2, 400), 0)
    assert {ids.dtype for ids in tokenizer.encode_arrays(["", "a", " " * 3 * RUN])} == {np.dtype(np.uint32)}
