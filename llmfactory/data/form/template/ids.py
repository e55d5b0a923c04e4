"""Pieces of conversations to ids. A run of text between two special tokens is tokenized as one, as at inference, where the prompt
ends in the middle of it: if its ids begin with those of the prompt, the rest are the answer's. Where a token would reach over the
border, both sides are tokenized by themselves, since the prompt's last token is given when the answer begins.

SentencePiece puts a space before a text, though not before one that goes on; whether it does so behind a special token is the
tokenizer's own choice. So a text that goes on is tokenized behind a line end, whose ids are then taken off.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.form.template.template import Piece
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

Written = tuple[list[int], NDArray[np.int32]]
"""Ids, and of each the turn that it belongs to, [len(ids)]."""
Text = tuple[str, bool]
"""And whether it goes on behind something."""
LINE_END = "\n"


def encode(tokenizer: Tokenizer, conversations: Sequence[Sequence[Piece]]) -> list[Written]:
    """The ids of each."""
    continued, behind_special = _spaces(tokenizer)
    runs = [list(_runs(pieces)) for pieces in conversations]
    first = [[number == 0 or not behind_special for number in range(len(some))] for some in runs]
    wanted = {
        text: None
        for some, firsts in zip(runs, first, strict=True)
        for run, at in zip(some, firsts, strict=True)
        for text in _texts(run, at)
    }
    ids = _encoded(tokenizer, list(wanted), continued)
    found: list[Written] = []
    for some, firsts in zip(runs, first, strict=True):
        numbers: list[int] = []
        turns: list[int] = []
        for run, at in zip(some, firsts, strict=True):
            for part, piece in zip(_parts(run, at, ids), run, strict=True):
                numbers += part
                turns += [piece.turn] * len(part)
        found.append((numbers, np.array(turns, np.int32)))
    return found


def _encoded(tokenizer: Tokenizer, texts: Sequence[Text], continued: bool) -> dict[Text, list[int]]:
    if not texts:
        return {}
    found = tokenizer.encode_batch([LINE_END + text if on and continued else text for text, on in texts])
    lead = len(tokenizer.encode(LINE_END)) if continued else 0
    return {text: ids[lead:] if text[1] else ids for text, ids in zip(texts, found, strict=True)}


@functools.lru_cache(maxsize=4)
def _spaces(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether it puts a space before a text, and whether it puts none where the text stands behind a special token."""
    continued = tokenizer.encode(LINE_END + "a") != [*tokenizer.encode(LINE_END), *tokenizer.encode("a")]
    if not continued or not isinstance(tokenizer, HfTokenizer):
        return continued, False
    special = next((token.content for token in tokenizer.inner.get_added_tokens_decoder().values() if token.special), None)
    if special is None:
        return True, False
    from tokenizers import Tokenizer as Inner

    behind: list[int] = Inner.from_str(tokenizer.inner.to_str()).encode(special + "a", add_special_tokens=False).ids[1:]
    return True, behind != tokenizer.encode("a")


def _runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Special tokens alone; texts that follow each other together, those of a turn as one."""
    run: list[Piece] = []
    for piece in pieces:
        if piece.token is not None:
            if run:
                yield run
            yield [piece]
            run = []
        elif run and run[-1].turn == piece.turn:
            run[-1] = Piece(run[-1].text + piece.text, None, piece.turn)
        else:
            run.append(piece)
    if run:
        yield run


def _texts(run: Sequence[Piece], first: bool) -> Iterator[Text]:
    """Everything that `_parts` may look up."""
    if run[0].token is not None:
        return
    whole = ""
    for number, piece in enumerate(run):
        whole += piece.text
        yield whole, not first
        yield piece.text, not (first and number == 0)


def _parts(run: Sequence[Piece], first: bool, ids: dict[Text, list[int]]) -> list[list[int]]:
    if run[0].token is not None:
        return [[run[0].token]]
    whole, place, parts = "", 0, []
    joint = ids["".join(piece.text for piece in run), not first]
    for piece in run:
        whole += piece.text
        until = ids[whole, not first]
        if joint[: len(until)] != until:
            return [ids[one.text, not (first and number == 0)] for number, one in enumerate(run)]
        parts.append(joint[place : len(until)])
        place = len(until)
    return parts
