"""Where words and sentences begin and end, told from single tokens: tables over a tokenizer's ids.

A token continues the word of the one before it if it begins with a letter or digit and that one ends with one. Word pieces say
it themselves (`##ing`). Byte-level vocabularies write bytes as visible characters (Radford et al. 2019): printable ones as
themselves, the 68 others from U+0100 on; bytes above 0x7F are parts of letters of other scripts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

Bool = NDArray[np.bool_]
STOPS = ".!?\n"
"""What a sentence ends with; closing quotes and spaces may follow."""


@dataclass(frozen=True, slots=True)
class Words:
    """Tables over the ids, [V]."""

    opens_V: Bool
    """The token begins within a word, if the one before it ends within one."""
    closes_V: Bool
    """The token ends within a word."""
    stops_V: Bool
    """A sentence ends with this token."""

    def starts(self, tokens_N: NDArray[np.int64]) -> Bool:
        """Whether each of these consecutive tokens begins a word, or stands outside of words; the first does."""
        starts_N = np.ones(len(tokens_N), bool)
        starts_N[1:] = ~(self.opens_V[tokens_N[1:]] & self.closes_V[tokens_N[:-1]])
        return starts_N


def words(tokenizer: Tokenizer) -> Words:
    """The tables of a tokenizer. Raises TypeError for a kind that it does not know."""
    if isinstance(tokenizer, ByteTokenizer):
        pieces: list[str] = [chr(i) for i in range(256)] + [""]
        return Words(
            np.array([_in_word(piece) for piece in pieces]),
            np.array([_in_word(piece) for piece in pieces]),
            np.array([piece in STOPS and piece != "" for piece in pieces]),
        )
    if isinstance(tokenizer, HfTokenizer):
        return _of_pieces(tokenizer)
    raise TypeError(f"{type(tokenizer).__name__} has no table of words")


def _of_pieces(tokenizer: HfTokenizer) -> Words:
    inner = tokenizer.inner
    form = json.loads(inner.to_str())
    marks = set(tokenizer.specials().values())
    pieces = ["" if i in marks else inner.id_to_token(i) or "" for i in range(tokenizer.vocab_size)]
    stops = np.array([_stops(inner.decode([i])) if pieces[i] else False for i in range(len(pieces))])
    if form["model"]["type"] == "WordPiece":
        prefix = form["model"]["continuing_subword_prefix"]
        opens = np.array([piece.startswith(prefix) for piece in pieces])
        return Words(opens, np.array([piece != "" for piece in pieces]), stops)
    in_word = _byte_in_word if "ByteLevel" in json.dumps(form["decoder"]) else _in_word
    return Words(np.array([in_word(piece[:1]) for piece in pieces]), np.array([in_word(piece[-1:]) for piece in pieces]), stops)


def _in_word(character: str) -> bool:
    return character.isalnum() or "\x80" <= character <= "\xff"


def _byte_in_word(character: str) -> bool:
    """Of a character that stands for a byte: U+0100 up to U+0121 are the 34 below 0x80 that cannot be printed."""
    return (character.isascii() and character.isalnum()) or (character >= "\x80" and not "\u0100" <= character <= "\u0121")


def _stops(text: str) -> bool:
    return text.rstrip(" \"')]”’")[-1:] in set(STOPS)
