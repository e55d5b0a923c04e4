"""A file of ranks, as `tiktoken` reads it: a token's bytes in base64 and its rank on each line. Ranks are ids.

The merges behind the ranks are found again: those of token T are the two parts that the bytes of T are joined to by lower
ranks (ranks.py says why no others are ever applied). A token of which three parts or more are left is only ever a whole piece.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.hf_file import FromFile, HfTokenizer, end_of, text_of
from llmfactory.data.tokenizer.patterns import GPT4O, PATTERNS, byte_level, letters
from llmfactory.data.tokenizer.pieces import add
from llmfactory.data.tokenizer.ranks import joined
from llmfactory.data.tokenizer.spec import Split, TiktokenFile, TiktokenSplit
from llmfactory.data.tokenizer.trained import END

PATTERN = {
    TiktokenSplit.gpt2: PATTERNS[Split.gpt2],
    TiktokenSplit.r50k: PATTERNS[Split.gpt2],
    TiktokenSplit.p50k: PATTERNS[Split.gpt2],
    TiktokenSplit.cl100k: PATTERNS[Split.gpt4],
    TiktokenSplit.o200k: GPT4O,
}
OWN = {
    TiktokenSplit.gpt2: (50256, {END: 50256}),
    TiktokenSplit.r50k: (50256, {END: 50256}),
    TiktokenSplit.p50k: (50280, {END: 50256}),
    TiktokenSplit.cl100k: (
        100256,
        {END: 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276},
    ),
    TiktokenSplit.o200k: (199998, {END: 199999, "<|endofprompt|>": 200018}),
}
"""Number of ranks and special tokens of the vocabularies of these names; source: tiktoken_ext/openai_public.py."""


class TiktokenTokenizerFile(FromFile):
    def __init__(self, spec: TiktokenFile, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        path = Path(spec.file).expanduser()
        inner = build(read(path), spec.split, path)
        add(inner, spec.special_tokens)
        if inner.token_to_id(spec.end_token or END) is None:
            add(inner, [spec.end_token or END])
        super().__init__(path, HfTokenizer(inner, end_of(inner, path, spec.end_token or END)), vocab_size, specials)


def read(path: Path) -> dict[bytes, int]:
    """Ranks by token. Raises UserError with the line that is wrong."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text_of(path, "file of ranks").splitlines(), start=1):
        if not line:
            continue
        token, _, rank = line.partition(" ")
        try:
            name, value = base64.b64decode(token, validate=True), int(rank)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{path}, line {number} is no token in base64 with its rank: {line[:80]!r} ({error})") from error
        if name in ranks or value < 0:
            raise UserError(f"{path}, line {number}: {'the token stands there twice' if name in ranks else f'rank {value}'}")
        ranks[name] = value
    if len(set(ranks.values())) < len(ranks):
        raise UserError(f"{path} is damaged: two tokens have the same rank")
    if lost := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{path} has no rank for {len(lost)} of the 256 bytes, the first is 0x{lost[0]:02x}")
    return ranks


def build(ranks: Mapping[bytes, int], split: TiktokenSplit, path: Path) -> Any:
    """The same as a `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    letter = letters()
    vocab = {"".join(letter[byte] for byte in token): rank for token, rank in ranks.items()}
    place, merges = {one: number for number, one in enumerate(letter)}, []
    for token in sorted(vocab, key=vocab.__getitem__):
        if len(token) > 1 and len(parts := joined(token, place)) == 2:
            merges.append((parts[0], parts[1]))
            place[token] = len(place)
    count, own = OWN[split]
    own = own if len(ranks) == count else {}
    if taken := set(own.values()) & set(vocab.values()):
        raise UserError(f"{path} is not the vocabulary {split.name}: it gives rank {min(taken)} to a text")
    inner = Inner(models.BPE({**vocab, **own}, merges, ignore_merges=len(place) < len(vocab)))
    inner.pre_tokenizer = byte_level([PATTERN[split]])
    inner.decoder = decoders.ByteLevel()
    add(inner, own)
    return inner
