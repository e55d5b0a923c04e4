"""BERT's `vocab.txt` (Devlin et al. 2018): a piece on each line, its number its id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.hf_file import FromFile, HfTokenizer, end_of, text_of
from llmfactory.data.tokenizer.pieces import add
from llmfactory.data.tokenizer.spec import WordpieceFile
from llmfactory.data.tokenizer.wordpiece import BEGIN, END, UNKNOWN, dressed


class WordPieceTokenizerFile(FromFile):
    def __init__(self, spec: WordpieceFile, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        path = Path(spec.file).expanduser()
        inner = read(path, spec.lowercase, spec.split_chinese)
        add(inner, spec.special_tokens)
        super().__init__(path, HfTokenizer(inner, end_of(inner, path, spec.end_token)), vocab_size, specials)


def read(path: Path, lowercase: bool = True, split_chinese: bool = True) -> Any:
    """The `tokenizers.Tokenizer` of a file. Raises UserError."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, processors

    lines = text_of(path, "vocab.txt").split("\n")
    pieces = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    if UNKNOWN not in vocab:
        raise UserError(f"{path} is no vocab.txt of word pieces: it has no line {UNKNOWN}")
    if len(vocab) < len(pieces):
        twice = next(piece for number, piece in enumerate(pieces) if vocab[piece] != number)
        raise UserError(f"{path} is damaged: the piece {twice!r} stands in it twice")
    inner = dressed(Inner(models.WordPiece(vocab, unk_token=UNKNOWN)), lowercase, split_chinese)
    if BEGIN in vocab and END in vocab:
        inner.post_processor = processors.BertProcessing((END, vocab[END]), (BEGIN, vocab[BEGIN]))
    return inner
