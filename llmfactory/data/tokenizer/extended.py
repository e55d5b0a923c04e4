"""A tokenizer with new pieces, learned from text that it spells in too many (Cui et al. 2023: Chinese for LLaMA).

Pairs: the old tokenizer cuts the text into its pieces, and learning goes on from there. New merges stand behind all old ones, so
a text in which none of them applies keeps its ids, and each new piece is a sequence of old ones. Where what is unknown is spelled
in bytes, characters come first: bytes that stand for themselves cannot be merged.

Unigram and word pieces: a new tokenizer of the same kind is learned, and those of its pieces that the old one lacks are put
behind the old ones, with their scores.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.any_file import read_any
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.patterns import PATTERNS, byte_level
from llmfactory.data.tokenizer.pieces import BYTES, cut_pattern
from llmfactory.data.tokenizer.spec import Extended, Split
from llmfactory.data.tokenizer.tokenizer import Tokenizer, TokenizerSource, check_size, lacking
from llmfactory.data.tokenizer.trained import characters

FIRST = 0x10000
"""Old pieces are told to the learner as characters from here on: none of them is white space."""
LONGEST = 24
"""Most old pieces in a new one."""
COVERAGE = 0.9995
"""Share of the text's characters that shall have an id, where what is unknown is spelled in bytes."""


class Extension(TokenizerSource):
    def __init__(self, spec: Extended, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        if spec.base is None:
            raise UserError("data/tokenizer=extended needs a tokenizer to begin with: data.tokenizer.base=..., or stage=extend")
        self.base, self.count, self.sample_bytes = read_any(Path(spec.base).expanduser()), spec.new_tokens, spec.train_bytes
        size = self.base.vocab_size + self.count
        name = f"{spec.base} with data.tokenizer.new_tokens={self.count}"
        check_size(size, vocab_size, name, lacking(self.base, specials))

    def fingerprint(self) -> str:
        return f"extended {self.count} {self.sample_bytes} {version('tokenizers')} {self.base.fingerprint()}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return extend(self.base, texts, self.count)


def extend(base: HfTokenizer, texts: Iterable[str], count: int) -> HfTokenizer:
    """`base` with at most `count` new pieces, whose ids begin at its `vocab_size`. Raises UserError for a kind it does not know."""
    from tokenizers import Tokenizer as Inner

    content = json.loads(base.inner.to_str())
    model = content["model"]
    normalizer = base.inner.normalizer
    clean = [text if normalizer is None else normalizer.normalize_str(text) for text in texts]
    if model["type"] == "BPE":
        _more_pairs(content, clean, count, base.vocab_size)
    elif model["type"] == "Unigram":
        _more_of_unigram(content, clean, count, base.vocab_size)
    elif model["type"] == "WordPiece":
        _more_word_pieces(content, clean, count, base.vocab_size)
    else:
        raise UserError(f"a tokenizer of the kind {model['type']} cannot be extended: BPE, Unigram and WordPiece can")
    return HfTokenizer(Inner.from_str(json.dumps(content)), base.end_id, base.usage)


def pieces_of(old: HfTokenizer, new: HfTokenizer) -> dict[int, list[int]]:
    """Of each id that only the new tokenizer has, the old ids that its text was before."""
    known, unknown = old.inner.get_vocab(with_added_tokens=True), old.inner.model
    added = new.specials()
    found: dict[int, list[int]] = {}
    for token, number in sorted(new.inner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
        if token not in known:
            model_level = token not in added
            ids = [one.id for one in unknown.tokenize(token.removeprefix("##"))] if model_level else old.encode(token)
            found[number] = ids
    return found


def _add_ids(content: dict[str, Any], tokens: Iterable[str], start: int) -> None:
    """The next ids; tokens that were added to the vocabulary keep theirs by becoming a part of it."""
    vocab = content["model"]["vocab"]
    vocab.update({token["content"]: token["id"] for token in content["added_tokens"]})
    for token in tokens:
        if token not in vocab:
            vocab[token] = start
            start += 1


def _more_pairs(content: dict[str, Any], texts: list[str], count: int, start: int) -> None:
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    model = content["model"]
    in_bytes = "ByteLevel" in json.dumps(content["decoder"])
    if in_bytes and not model["merges"]:  # bytes alone have not been cut anywhere
        content["pre_tokenizer"] = json.loads(_shown(byte_level([PATTERNS[Split.gpt4]])))["pre_tokenizer"]
    new = [] if in_bytes else _new_characters(texts, model["vocab"], count)
    _add_ids(content, new, start)
    if not in_bytes and not model["merges"]:  # a tokenizer of characters
        return
    inner = Inner.from_str(json.dumps(content))
    cut = inner.pre_tokenizer if in_bytes else pre_tokenizers.Split(Regex(cut_pattern(split_digits=True)), "isolated")
    apart = frozenset() if in_bytes else frozenset(number for piece in BYTES if (number := model["vocab"].get(piece)) is not None)
    words = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(text))
    name = {number: token for token, number in model["vocab"].items()}
    merges = _learn(words, lambda word: [one.id for one in inner.model.tokenize(word)], apart, count - len(new))
    pairs = [tuple("".join(name[number] for number in part) for part in merge) for merge in merges]
    _add_ids(content, [left + right for left, right in pairs], start + len(new))
    model["merges"] = [*model["merges"], *([left, right] for left, right in pairs)]


def _shown(pre_tokenizer: Any) -> str:
    from tokenizers import Tokenizer as Inner
    from tokenizers import models

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizer
    return str(inner.to_str())


def _new_characters(texts: list[str], vocab: dict[str, int], count: int) -> list[str]:
    """Half of what may be added at most, so that there is room for pieces of more than one."""
    found = characters(texts, len(vocab) + count, COVERAGE)
    return [c for c in found if c not in vocab and not c.isspace()][: max(1, count // 2)]


def _learn(
    words: Counter[str], old_ids: Callable[[str], list[int]], apart: frozenset[int], count: int
) -> list[tuple[list[int], list[int]]]:
    """At most `count` merges of sequences of old ids, learned within words; ids that stand `apart` are in none of them."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers, trainers

    place: dict[int, int] = {}

    def told() -> Iterator[str]:
        for word, times in words.items():
            letters = [" " if i in apart else chr(FIRST + place.setdefault(i, len(place))) for i in old_ids(word)]
            yield " ".join(["".join(letters)] * times)

    sentences = list(told())
    alphabet = [chr(FIRST + number) for number in range(len(place))]
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + max(0, count),
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=LONGEST,
        show_progress=False,
    )
    inner.train_from_iterator(sentences, trainer)
    ids = list(place)
    merges = json.loads(inner.to_str())["model"]["merges"]
    return [([ids[ord(c) - FIRST] for c in left], [ids[ord(c) - FIRST] for c in right]) for left, right in merges]


def _more_of_unigram(content: dict[str, Any], texts: list[str], count: int, start: int) -> None:
    from llmfactory.data.tokenizer.gguf_file import Kind
    from llmfactory.data.tokenizer.pieces import SPACE
    from llmfactory.data.tokenizer.sentencepiece_file import understood
    from llmfactory.data.tokenizer.unigram import learn

    vocab = content["model"]["vocab"]
    have = {piece for piece, _ in vocab}
    behind = [token["content"] for token in content["added_tokens"] if token["content"] not in have]
    if len(vocab) + len(behind) != start:
        raise UserError("the tokenizer's pieces have gaps between their ids, so none can be put behind them")
    if behind:
        raise UserError(f"the tokenizer has tokens behind its pieces ({behind[0]}), so none can be put there")
    plain = (text.replace(SPACE, " ").strip(" ") for text in texts)
    made = understood(learn(plain, 2 * count + 300, COVERAGE, True, []), "the new tokenizer")
    triples = zip(made.pieces, made.scores, made.kinds, strict=True)
    new = [(piece, score) for piece, score, kind in triples if kind is Kind.NORMAL and piece not in have]
    vocab.extend([piece, score] for piece, score in new[:count])


def _more_word_pieces(content: dict[str, Any], texts: list[str], count: int, start: int) -> None:
    from llmfactory.data.tokenizer.wordpiece import NAMES, learn

    vocab = content["model"]["vocab"]
    made = learn(texts, list(NAMES), 2 * count + len(NAMES))
    new = [piece for piece in sorted(made, key=made.__getitem__) if piece not in vocab]
    _add_ids(content, new[:count], start)
