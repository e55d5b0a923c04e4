"""The tokenizer that a GGUF file carries, built with the `tokenizers` library.

Kind `gpt2`: byte-level pairs with a list of merges; where text is cut has a name (splits.py). Kind `llama`: SentencePiece's
pairs with scores: two pieces merge where their union is a piece, the best score first, and what is no piece is spelled in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.gguf_file import read_gguf
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.hf_file import FromFile, HfTokenizer
from llmfactory.data.tokenizer.pieces import add, merges_of, pairs
from llmfactory.data.tokenizer.spec import GgufFile
from llmfactory.data.tokenizer.splits import cut_of, pre_tokenizer
from llmfactory.data.tokenizer.tokenizer import Usage

TEMPLATE = "tokenizer.chat_template"


class Kind(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class GgufTokenizerFile(FromFile):
    def __init__(self, spec: GgufFile, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        path = Path(spec.file).expanduser()
        super().__init__(path, read_tokenizer(path), vocab_size, specials)


def read_tokenizer(path: Path) -> HfTokenizer:
    """Raises UserError: a file without a tokenizer, or with one of another kind."""
    about = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in read_gguf(path).metadata.items()
        if key.startswith("tokenizer.")
    }
    kind, tokens, end_id = about.get("model"), about.get("tokens"), about.get("eos_token_id")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{path} holds a tokenizer of the kind {kind!r}; gpt2 and llama can be read")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path} is damaged: tokenizer.ggml.tokens is no list of tokens")
    if len(set(tokens)) < len(tokens):
        raise UserError(f"{path} is damaged: a token stands in tokenizer.ggml.tokens twice")
    if type(end_id) is not int or not 0 <= end_id < len(tokens):
        raise UserError(f"{path} is damaged: tokenizer.ggml.eos_token_id is {end_id!r}, with {len(tokens)} tokens")
    types = about.get("token_type") or [Kind.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{path} is damaged: {len(tokens)} tokens with {len(types)} values of tokenizer.ggml.token_type")
    inner = _byte_pairs(path, about, tokens) if kind == "gpt2" else _pieces(path, about, tokens, types)
    _add_special(inner, tokens, types)
    adds_begin = about.get("add_bos_token", kind == "llama")
    begin = (about["bos_token_id"],) if adds_begin and about.get("bos_token_id") is not None else ()
    others = (about.get(f"{name}_token_id") for name in ("eot", "eom"))
    stops = tuple(dict.fromkeys([end_id, *(stop for stop in others if stop is not None)]))
    return HfTokenizer(inner, end_id, Usage(begin, stops, about.get(TEMPLATE)))


def _byte_pairs(path: Path, about: Mapping[str, Any], tokens: list[str]) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    cut = cut_of(str(about.get("pre", "default")), path)
    merges = [tuple(merge.split(" ")) for merge in about.get("merges") or []]
    vocab = {token: number for number, token in enumerate(tokens)}
    if wrong := next((m for m in merges if len(m) != 2 or not {*m, "".join(m)} <= vocab.keys()), None):
        raise UserError(f"{path} is damaged: the merge {' '.join(wrong)!r} is not of two tokens that make a third")
    inner = Inner(models.BPE(vocab, merges, ignore_merges=cut.ignore_merges))
    inner.pre_tokenizer = pre_tokenizer(cut)
    inner.decoder = decoders.ByteLevel()
    return inner


def _pieces(path: Path, about: Mapping[str, Any], tokens: list[str], types: list[int]) -> Any:
    scores = about.get("scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{path} is damaged: {len(tokens)} tokens without as many tokenizer.ggml.scores")
    vocab = {token: number for number, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == Kind.UNKNOWN), None)
    merges = merges_of({token: s for token, s, k in zip(tokens, scores, types, strict=True) if k == Kind.NORMAL})
    return pairs(vocab, merges, prefix=bool(about.get("add_space_prefix", True)), unknown=unknown)


def _add_special(inner: Any, tokens: list[str], types: list[int]) -> None:
    for kind, special in ((Kind.CONTROL, True), (Kind.USER_DEFINED, False)):
        add(inner, [token for token, k in zip(tokens, types, strict=True) if k == kind], special)
