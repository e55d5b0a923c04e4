"""Texts that tokenizers must bring back, and one that they learn from."""

from __future__ import annotations

import pytest

ENGLISH = "The quick brown fox jumps over the lazy dog, and it's 1234 years old. Don't you think so?"
CHINESE = "数学是研究数量、结构以及空间等概念的一门学科。《红楼梦》，中国古典四大名著之首；“好的”，他说：3.14。\n\n　　第二段……"
CODE = "def f(x: int) -> int:\n    if x > 0:\n        return x + 1\n\n\tclass A:\n\t\tpass  # comment\n"
ODD = [
    "",
    " ",
    "  ",
    "\n",
    "a",
    "的",
    "👩‍👩‍👧‍👦 🇫🇷 \U0001f1e6 ﷽ ‮gninrut‬",
    "\u0000\u0001\u007f\u0080\u00a0\ufeff\ufffd\uffff\U0010ffff",
    "  leading and trailing  \t\r\n ",
    "a\r\nb\rc\u2028d\u3000e",
    "e\u0301 \u00e9 \ufb01 \u2126 \u03a9 I\u0307 \u1e9e",
    "<|endoftext|> <0x41> </s> <unk> [SEP] [MASK] is only a text about it",
    "0123456789 ½ ² ٣ 一二三",
    "x" * 5000,
]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return [ENGLISH * 20, CHINESE * 20, CODE * 20, "words and more words, a word at a time\n" * 50, "Größe naïve мир 👩‍👧\n" * 10]


@pytest.fixture(scope="session")
def samples() -> list[str]:
    """Of every kind of text; those with ▁ are left out, which SentencePiece reads as a space."""
    return [ENGLISH, CHINESE, CODE, *ODD]
