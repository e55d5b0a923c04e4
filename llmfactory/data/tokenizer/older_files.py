"""Tokenizers of published folders from before `tokenizer.json`.

What a `.model` of SentencePiece means depends on the kind of model: some give its pieces other ids (XLM-RoBERTa), so only kinds
are read that are known to take them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer import gpt2_files, sentencepiece_file, wordpiece_file
from llmfactory.data.tokenizer.pieces import add

MODELS = ("tokenizer.model", "spiece.model")
BEGINNING = ("llama", "mistral", "mixtral", "gemma", "gemma2")
"""Kinds of models whose texts begin with <s> (<bos>) if nothing else is said."""
AS_THEY_ARE = (*BEGINNING, "baichuan", "internlm", "t5", "mt5", "albert", "xlnet", "switch_transformers")
"""Kinds of models that take the pieces' own ids."""
ADDED = "added_tokens.json"
"""Ids of tokens that were added to the file's."""


def older(folder: Path, named: Mapping[str, Any], kind: str | None) -> Any:
    """The `tokenizers.Tokenizer` of a folder. `named`: what its tokenizer_config.json and the like say; `kind`: `model_type`.

    Raises UserError: there is none, or it would be another one than the model knows.
    """
    if found := next((folder / name for name in MODELS if (folder / name).is_file()), None):
        inner = _sentencepiece(found, named, kind)
    elif (folder / "vocab.txt").is_file():
        lowercase, chinese = named.get("do_lower_case", True), named.get("tokenize_chinese_chars", True)
        inner = wordpiece_file.read(folder / "vocab.txt", bool(lowercase), bool(chinese))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        inner = gpt2_files.read(folder / "vocab.json", folder / "merges.txt")
    else:
        raise UserError(
            f"{folder} has no tokenizer.json, nor {', '.join(MODELS)}, vocab.txt, or vocab.json with merges.txt; transformers makes "
            "one of other files: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    _add(inner, folder, named)
    return inner


def _sentencepiece(path: Path, named: Mapping[str, Any], kind: str | None) -> Any:
    from tokenizers import processors

    if kind not in AS_THEY_ARE:
        raise UserError(
            f"{path}: which ids a model of the kind {kind!r} gives to these pieces is not known here; transformers makes a "
            "tokenizer.json: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    inner = sentencepiece_file.build(sentencepiece_file.read(path))
    if kind in ("t5", "mt5", "switch_transformers"):  # the sentinels stand behind the pieces, the last one first
        add(inner, [f"<extra_id_{number}>" for number in reversed(range(int(named.get("extra_ids", 100))))])
    if named.get("add_bos_token", kind in BEGINNING):
        begin = "<bos>" if str(kind).startswith("gemma") else "<s>"
        begin_id = inner.token_to_id(begin)
        if begin_id is None:
            raise UserError(f"{path} has no piece {begin}, with which texts of the model begin")
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, begin_id)]
        )
    return inner


def _add(inner: Any, folder: Path, named: Mapping[str, Any]) -> None:
    """Tokens that were added later, at the ids that the folder says."""
    wanted: dict[int, str] = {}
    listed = named.get("added_tokens_decoder")
    if isinstance(listed, dict):
        wanted = {int(number): str(token["content"]) for number, token in listed.items() if isinstance(token, dict)}
    path = folder / ADDED
    if path.is_file():
        try:
            wanted |= {int(number): str(token) for token, number in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
    for number, token in sorted(wanted.items()):
        add(inner, [token])
        if inner.token_to_id(token) != number:
            raise UserError(
                f"{folder} says that {token!r} has the id {number}; behind the file's own tokens it gets {inner.token_to_id(token)}"
            )
