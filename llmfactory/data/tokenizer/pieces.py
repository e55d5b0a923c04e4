r"""SentencePiece's way with text (Kudo and Richardson 2018), said with the `tokenizers` library.

A space is written as ▁, and one is put before the text; no text is cut beforehand, so that all white space can be told from
the pieces. What is no piece is spelled in bytes. (▁ itself, where a text holds it, comes back as a space: theirs does so, too.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Pieces that stand for a byte."""
CUT = (
    SPACE + r"+(?=" + SPACE + r")|" + SPACE + r"?[\p{L}\p{M}]+|%s|" + SPACE + r"?[^" + SPACE + r"\s\p{L}\p{M}\p{N}]+|\s+|" + SPACE
)
"""Where merges are learned, no piece crosses from words to numbers, to punctuation or to the next word."""


def cut_pattern(split_digits: bool) -> str:
    """`split_digits`: each digit is a piece of its own, and so is the space before it."""
    return CUT % (r"\p{N}" if split_digits else SPACE + r"?\p{N}+")


def normalizer(prefix: bool, before: Sequence[Any] = ()) -> Any:
    """`prefix`: a space is put before the text. `before`: what happens to the text first."""
    from tokenizers import normalizers

    first = [normalizers.Prepend(SPACE)] if prefix else []
    return normalizers.Sequence([*before, *first, normalizers.Replace(" ", SPACE)])


def decoder(prefix: bool) -> Any:
    from tokenizers import decoders

    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def pairs(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    prefix: bool = True,
    unknown: str | None = None,
    fallback: bool = True,
    ignore_merges: bool = False,
) -> Any:
    """A `tokenizers.Tokenizer` that merges pieces; what is none is spelled in bytes (`fallback`) or is `unknown`."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models

    settings = {"fuse_unk": True, "byte_fallback": fallback, "ignore_merges": ignore_merges}
    inner = Inner(models.BPE(dict(vocab), list(merges), unk_token=unknown, **settings))
    inner.normalizer, inner.decoder = normalizer(prefix), decoder(prefix)
    return inner


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way in which a piece is made of two others, the best score first; of one piece's, the earlier pieces first."""
    place = {piece: number for number, piece in enumerate(scores)}
    found = [
        (-score, place[piece], place[piece[:cut]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def add(inner: Any, tokens: Iterable[str], special: bool = True) -> None:
    """Tokens that stand for no text (`special`), or that are taken from text before anything else; those that the vocabulary
    has keep their ids."""
    from tokenizers import AddedToken

    added = [AddedToken(token, special=special, normalized=False) for token in tokens]
    if added:
        (inner.add_special_tokens if special else inner.add_tokens)(added)
