r"""Byte-level pairs encoded by `tiktoken`, which is several times faster than `tokenizers`, wherever both give the same ids.

`tokenizers` has a list of merges (a, b) and applies the first of the list that fits; `tiktoken` has a rank for each token and
joins whatever two neighbours make the token of lowest rank. Go through the list, and give the token T = ab the merge's place as
its rank if joining the letters of T by the ranks given so far ends in [a, b]. Then both make the same of every text: suppose
that all joins of lower rank are done, and that x and y are neighbours that make T. None of those joins crossed the ends of T,
so within T they were those that are done on T alone, and these leave [a, b] only: x = a and y = b, for `tiktoken` as well as
for `tokenizers`. For the same reason a merge that gets no rank is never applied. (A part must be made before it is merged in the list, too.)

Both cut text before by a pattern, which is a pattern of each engine's own: only patterns are taken that match every character,
and the classes of characters that stand in them are the same in both (a test asks each engine about every code point).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.tokenizer.patterns import FASTER, letters, pattern_of

Ids = NDArray[np.uint32]
RUN = 10_000
"""A run of white space of twice as many characters is left to `tokenizers`: the other engine's stack overflows on longer ones."""
NO_TEXT = "<|no text|>"
"""`tiktoken` is only fast where it knows a special token; this one is never looked for."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """An encoder for the texts that `tiktoken` and `tokenizers` are known to agree on."""

    encoding: Any
    """`tiktoken.Encoding`."""
    id_of: Ids | None
    """Ids by rank; None: ranks are the ids."""
    normalizer: Any
    """Of `tokenizers`; None: text stays as it is."""
    added: tuple[str, ...]
    """Tokens that `tokenizers` looks for in text before anything else."""

    def encode(self, text: str) -> Ids | None:
        """None: this text is for `tokenizers`."""
        if self.added and any(token in text for token in self.added):
            return None
        if self.normalizer is not None and not text.isascii():
            text = self.normalizer.normalize_str(text)
        if any(text[place : place + RUN].isspace() for place in range(0, len(text) - RUN, RUN)):
            return None
        found: Ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        return found if self.id_of is None else self.id_of[found]


def ranks_of(inner: Any) -> Ranks | None:
    """Of a `tokenizers.Tokenizer` that takes no special token from text. None: it is no such tokenizer, or the proof fails."""
    content = json.loads(inner.to_str())
    model, normalizer = content["model"], content["normalizer"]
    pattern = FASTER.get(pattern_of(content["pre_tokenizer"]) or "")
    if pattern is None or model["type"] != "BPE" or any(model.get(key) for key in UNLIKE):
        return None
    if normalizer is not None and normalizer["type"] not in ASCII_STAYS:
        return None
    added = tuple(token["content"] for token in content["added_tokens"] if not token["special"])
    if added and normalizer is not None:
        return None
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ranks = _ranked(model["vocab"], merges, bool(model.get("ignore_merges")))
    return None if ranks is None else _made(pattern, ranks, model["vocab"], inner.normalizer, added)


UNLIKE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
"""Of a model of pairs, what `tiktoken` knows nothing of."""
ASCII_STAYS = ("NFC", "NFD", "NFKC", "NFKD")
"""Normalizers that leave ASCII alone."""


def _ranked(vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]], whole: bool) -> dict[str, int] | None:
    """Ranks by token, written in byte-level letters; None: there are none with which `tiktoken` does the same.

    `whole`: a piece that is a token is taken as it is, whether merges lead there or not.
    """
    ranks = {letter: number for number, letter in enumerate(letters())}
    if not ranks.keys() <= vocab.keys():  # `tokenizers` leaves such bytes out
        return None
    early: set[str] = set()
    for merge in merges:
        token = "".join(merge)
        early.update(part for part in merge if part not in ranks)
        if token not in ranks and joined(token, ranks) == list(merge):
            ranks[token] = len(ranks)
    if not early.isdisjoint(ranks):  # a merge of a part that only a later merge makes: then lower ranks come up again
        return None
    if whole:
        alphabet = set(letters())
        others = [token for token in vocab if token not in ranks and alphabet.issuperset(token)]
        if any(len(joined(token, ranks)) < 3 for token in others):  # `tiktoken` would join its two halves anywhere
            return None
        ranks |= {token: len(ranks) + place for place, token in enumerate(others)}
    return ranks


def joined(token: str, ranks: Mapping[str, int]) -> list[str]:
    """What the letters of a token become by joining the neighbours of lowest rank, the first of equal ones, again and again."""
    parts = list(token)
    while len(parts) > 1:
        best, at = len(ranks), -1
        for place in range(len(parts) - 1):
            rank = ranks.get(parts[place] + parts[place + 1], best)
            if rank < best:
                best, at = rank, place
        if at < 0:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _made(pattern: str, ranks: Mapping[str, int], vocab: Mapping[str, int], normalizer: Any, added: tuple[str, ...]) -> Ranks:
    import tiktoken

    byte = {letter: number for number, letter in enumerate(letters())}
    ids = np.array([vocab[token] for token in ranks], np.uint32)
    direct = bool((np.diff(ids[256:].astype(np.int64)) > 0).all())  # nothing is joined to a single byte: its rank is free
    table = {bytes(byte[letter] for letter in token): int(ids[r]) if direct else r for token, r in ranks.items()}
    beyond = max(table.values()) + 1
    encoding = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=table, special_tokens={NO_TEXT: beyond})
    return Ranks(encoding, None if direct else ids, normalizer, added)
