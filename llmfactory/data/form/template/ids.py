"""Pieces of conversations to ids. A run of text between two special tokens is tokenized as one, as at inference, where the prompt
ends in the middle of it: if its ids begin with those of the prompt, the rest are the answer's. Where a token would reach over the
border, both sides are tokenized by themselves, since the prompt's last token is given when the answer begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.form.template.template import Piece
from llmfactory.data.tokenizer.tokenizer import Tokenizer

Written = tuple[list[int], NDArray[np.int32]]
"""Ids, and of each the turn that it belongs to, [len(ids)]."""


def encode(tokenizer: Tokenizer, conversations: Sequence[Sequence[Piece]]) -> list[Written]:
    """The ids of each."""
    runs = [list(_runs(pieces)) for pieces in conversations]
    texts = {text: None for some in runs for run in some for text in _texts(run)}
    ids = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True)) if texts else {}
    found: list[Written] = []
    for some in runs:
        numbers: list[int] = []
        turns: list[int] = []
        for run in some:
            for part, piece in zip(_parts(run, ids), run, strict=True):
                numbers += part
                turns += [piece.turn] * len(part)
        found.append((numbers, np.array(turns, np.int32)))
    return found


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


def _texts(run: Sequence[Piece]) -> Iterator[str]:
    """Everything that `_parts` may look up."""
    if run[0].token is not None:
        return
    whole = ""
    for piece in run:
        whole += piece.text
        yield whole
    for piece in run[1:]:
        yield piece.text


def _parts(run: Sequence[Piece], ids: dict[str, list[int]]) -> list[list[int]]:
    if run[0].token is not None:
        return [[run[0].token]]
    whole, place, parts = "", 0, []
    joint = ids["".join(piece.text for piece in run)]
    for piece in run:
        whole += piece.text
        until = ids[whole]
        if joint[: len(until)] != until:
            return [ids[piece.text] for piece in run]
        parts.append(joint[place : len(until)])
        place = len(until)
    return parts
