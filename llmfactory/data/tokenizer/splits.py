"""The ways of cutting text before merges that GGUF files name (`tokenizer.ggml.pre`), and those of `tokenizers` that are the same.

Source of the patterns: llm_tokenizer_bpe in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.patterns import PATTERNS, QWEN2, byte_level, patterns_of
from llmfactory.data.tokenizer.spec import Split

GPT2, GPT4 = PATTERNS[Split.gpt2], PATTERNS[Split.gpt4]
DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A way of cutting."""

    names: tuple[str, ...]
    """In GGUF; the first is written."""
    patterns: tuple[str, ...]
    """Applied one after the other; pieces that match stand alone."""
    ignore_merges: bool = False
    """A piece that is a token as a whole is taken as it is."""


CUTS = (
    Cut(("gpt-2", "phi-2", "roberta-bpe", "olmo", "mpt", "jais"), (GPT2,)),
    Cut(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (DIGIT, GPT2)),
    Cut(("llama-bpe", "llama3", "llama-v3"), (GPT4,), ignore_merges=True),
    Cut(("dbrx", "smaug-bpe"), (GPT4,)),
    Cut(("qwen2", "deepseek-r1-qwen", "megrez"), (QWEN2,)),
)


def cut_of(name: str, path: object) -> Cut:
    """By GGUF's name."""
    for cut in CUTS:
        if name in cut.names:
            return cut
    known = ", ".join(name for cut in CUTS for name in cut.names)
    raise UserError(f"{path} cuts text in the way {name!r}, which is not known here: there are {known}")


def pre_tokenizer(cut: Cut) -> Any:
    """The same in the library."""
    return byte_level(list(cut.patterns))


def name_of(inner: Any) -> str | None:
    """GGUF's name for the way in which a `tokenizers.Tokenizer` cuts; None: it has none."""
    content = json.loads(inner.to_str())
    patterns = patterns_of(content["pre_tokenizer"])
    merges = bool(content["model"].get("ignore_merges"))
    if not content["model"].get("merges") and patterns is not None:  # then it is all the same where text is cut
        return CUTS[0].names[0]
    return next((cut.names[0] for cut in CUTS if list(cut.patterns) == patterns and cut.ignore_merges == merges), None)
