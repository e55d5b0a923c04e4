r"""Where byte-level tokenizers cut text before merges, as regular expressions: what published ones do, by name.

Sources: GPT-2's encoder.py; tiktoken_ext/openai_public.py; the tokenizer.json files of Llama 3 and Qwen 2.
"""

from __future__ import annotations

from typing import Any

from llmfactory.data.tokenizer.spec import Split

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
PATTERNS = {
    Split.gpt2: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    Split.gpt4: WORDS + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # `(?= )` leaves the last space of an indentation to the word after it, so that words look the same within a line.
    Split.indent: WORDS + r"|[^\s\p{L}\p{N}]*\s*[\r\n]+(?: *(?= ))?| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
QWEN2 = PATTERNS[Split.gpt4].replace(r"\p{N}{1,3}", r"\p{N}")
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTION + "|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTION + "|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Also where a small letter is followed by a capital one."""

FASTER = {
    PATTERNS[Split.gpt2]: r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    PATTERNS[Split.gpt4]: r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s",
    QWEN2: r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s",
    PATTERNS[Split.indent]: r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"|[^\s\p{L}\p{N}]*+\s*[\r\n]+(?: *(?= ))?| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
    GPT4O: GPT4O,
}
"""Patterns that match every character, and what cuts in the same way with less going back where the engine is `tiktoken`'s."""


def pattern_of(step: Any) -> str | None:
    """The one pattern of a pre-tokenizer (as `tokenizers` writes it) that ends in bytes; None: it is no such."""
    found = patterns_of(step)
    return found[0] if found is not None and len(found) == 1 else None


def patterns_of(step: Any) -> list[str] | None:
    """Patterns of a pre-tokenizer that ends in bytes; None: it is none of that kind."""
    found: list[str] = []
    steps = step["pretokenizers"] if isinstance(step, dict) and step["type"] == "Sequence" else [step]
    for one in steps:
        kind = one and one["type"]
        if kind == "ByteLevel" and one is steps[-1] and not one["add_prefix_space"]:
            return found + ([PATTERNS[Split.gpt2]] if one["use_regex"] else [])
        if kind == "Split" and one["behavior"] == "Isolated" and not one["invert"] and "Regex" in one["pattern"]:
            found.append(one["pattern"]["Regex"])
        elif kind == "Digits" and one["individual_digits"]:
            found.append(r"\p{N}")
        else:
            return None
    return None


def byte_level(patterns: list[str]) -> Any:
    """The pre-tokenizer that applies the patterns one after the other and writes bytes."""
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def letters() -> list[str]:
    """The character that stands for each byte (Radford et al. 2019): printable ones for themselves, the others from 256 on."""
    themselves = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in themselves else next(others)) for byte in range(256)]
