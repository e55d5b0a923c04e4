"""GPT-2's two files (Radford et al. 2019): ids of tokens in JSON, and merges, one a line, the first to be applied first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.hf_file import END_TOKENS, FromFile, HfTokenizer, end_of, text_of
from llmfactory.data.tokenizer.patterns import PATTERNS, byte_level
from llmfactory.data.tokenizer.pieces import add
from llmfactory.data.tokenizer.spec import Gpt2Files, Split

BESIDE = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
"""What the second file is called, by the name of the first."""


class PairFiles(FromFile):
    def __init__(self, spec: Gpt2Files, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        path = Path(spec.file).expanduser()
        beside = path.with_name(BESIDE.get(path.name, "merges.txt"))
        inner = read(path, beside if spec.merges is None else Path(spec.merges).expanduser())
        add(inner, spec.special_tokens)
        super().__init__(path, HfTokenizer(inner, end_of(inner, path, spec.end_token)), vocab_size, specials)


def read(path: Path, merges_path: Path) -> Any:
    """The `tokenizers.Tokenizer` of the two files. Raises UserError."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    vocab, merges = _vocab(path), _merges(merges_path)
    if wrong := next((merge for merge in merges if not {*merge, "".join(merge)} <= vocab.keys()), None):
        raise UserError(
            f"{merges_path} does not belong to {path}: the merge {' '.join(wrong)!r} is of tokens that it does not have"
        )
    inner = Inner(models.BPE(vocab, merges))
    inner.pre_tokenizer = byte_level([PATTERNS[Split.gpt2]])
    inner.decoder = decoders.ByteLevel()
    add(inner, [token for token in END_TOKENS if token in vocab])
    return inner


def _vocab(path: Path) -> dict[str, int]:
    try:
        vocab = json.loads(text_of(path, "vocab.json"))
    except ValueError as error:
        raise UserError(f"{path} is no vocab.json: {error}") from error
    if not isinstance(vocab, dict) or not all(type(number) is int and number >= 0 for number in vocab.values()):
        raise UserError(f"{path} is no vocab.json: it holds no mapping of tokens to ids")
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{path} is damaged: two tokens have the same id")
    return vocab


def _merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(text_of(path, "merges.txt").split("\n"), start=1):
        parts = line.rstrip("\r").split(" ")
        if parts == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(parts) != 2:
            raise UserError(f"{path}, line {number}: {line!r} is no merge of two tokens")
        merges.append((parts[0], parts[1]))
    return merges
