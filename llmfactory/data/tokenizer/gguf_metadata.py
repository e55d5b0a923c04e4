"""A tokenizer as metadata of a GGUF file; gguf_file.py reads them back."""

from __future__ import annotations

import json
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.gguf_file import TEMPLATE, Kind
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.pieces import SPACE
from llmfactory.data.tokenizer.splits import name_of


def tokenizer_metadata(tokenizer: HfTokenizer, vocab_size: int) -> dict[str, Any]:
    """`vocab_size`: the model's; ids that the tokenizer does not use get a name too. Raises UserError for another kind."""
    content = json.loads(tokenizer.inner.to_str())
    added = {token["id"]: token for token in content["added_tokens"]}
    known = {number: token for token, number in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    tokens = [known.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    kinds = [_kind(number, token, added, known) for number, token in enumerate(tokens)]
    metadata: dict[str, Any] = {"tokens": tokens, "token_type": [int(kind) for kind in kinds]}
    model = content["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"GGUF files of this kind of model hold byte-pair tokenizers, this one is {model['type']}: stage/format=hf"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        metadata |= _pieces(content, tokens, merges)
    else:
        metadata |= _byte_pairs(tokenizer, content, merges)
    usage = tokenizer.usage
    metadata |= {"eos_token_id": tokenizer.end_id, "add_bos_token": bool(usage.begin_ids)}
    metadata["bos_token_id"] = usage.begin_ids[0] if usage.begin_ids else tokenizer.end_id
    if others := [stop for stop in usage.stop_ids if stop != tokenizer.end_id]:
        metadata["eot_token_id"] = others[0]
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value != []}
    return named if usage.chat_template is None else {**named, TEMPLATE: usage.chat_template}


def _kind(number: int, token: str, added: dict[int, Any], known: dict[int, str]) -> Kind:
    if number not in known:
        return Kind.UNUSED
    if number in added:
        return Kind.CONTROL if added[number]["special"] else Kind.USER_DEFINED
    return Kind.NORMAL


def _byte_pairs(tokenizer: HfTokenizer, content: dict[str, Any], merges: list[str]) -> dict[str, Any]:
    name = name_of(tokenizer.inner)
    if name is None or (content["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise UserError(
            "the tokenizer cuts text in a way that GGUF has no name for (of data.tokenizer.split, gpt2 and gpt4 have one): "
            "stage/format=hf"
        )
    return {"model": "gpt2", "pre": name, "merges": merges}


def _pieces(content: dict[str, Any], tokens: list[str], merges: list[str]) -> dict[str, Any]:
    """SentencePiece's scores only order the merges, so the merges' own order makes them."""
    score: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        score.setdefault(merge.replace(" ", "", 1), -float(rank))
    prefix = '"Prepend"' in json.dumps(content["normalizer"])
    if SPACE not in json.dumps(content["normalizer"], ensure_ascii=False):
        raise UserError("the tokenizer's pieces are not SentencePiece's, and GGUF has no other: stage/format=hf")
    lowest = -float(len(merges))
    return {"model": "llama", "scores": [score.get(token, lowest) for token in tokens], "add_space_prefix": prefix}
