"""Kinds of characters, and words and sentences, of texts that write spaces between words and of those that do not.

A Chinese character or a Japanese kana counts as a word; everything else is cut at white space. Thai, Lao, Khmer and Burmese, which
write no spaces either, are not cut.
"""

from __future__ import annotations

import re
import string

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
UNSPACED = HAN + KANA
"""Inside of a character class: characters that are a word each."""
WIDE_MARKS = "\u00b7\u2014\u2018\u201c\u201d\u2026\u3001-\u3004\u3006\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
"""Inside of a character class: marks between Chinese words. The apostrophe of "don’t" (U+2019) is none."""

TERMINAL = frozenset(
    ".!?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368"
    "\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9\u17da\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d"
    "\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876"
    "\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
"""Marks that end a sentence: those of Unicode's property Sentence_Terminal in the basic plane."""
MARKS = (
    string.punctuation
    + "".join(map(chr, [*range(32), *range(127, 160)]))
    + "«»´–—“”„’…∶━►、〈〉《》「」【】％（），：；～"
    + "".join(sorted(TERMINAL))
)
"""A word of these only is none."""
WIDE_TERMINAL = frozenset("。！？｡．")
CLOSING = frozenset("”’」』）》】\"'")
"""What may stand behind the mark of a sentence that is quoted or in brackets."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}{WIDE_MARKS}]+")
_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+(?=\S)|[。！？｡]+[”’」』）》】]*(?=.)", re.DOTALL)
_MARKS = frozenset(MARKS)
_LETTER = re.compile("[A-Za-z]")
FIRST_WIDE = "\u3005"
_FAR = re.compile(f"[{FIRST_WIDE}-\U0010ffff]")


def is_unspaced(text: str) -> bool:
    """Whether it has a character that is a word by itself."""
    if text.isascii():
        return False
    far = _FAR.search(text)  # one range: several times faster than the exact class, which most texts do not need
    return far is not None and _UNSPACED.search(text, far.start()) is not None


def count_unspaced(text: str) -> int:
    return 0 if text.isascii() else len(_UNSPACED.findall(text))


def words_of(text: str) -> list[str]:
    """At white space; where a text has Chinese or kana, each such character and what stands between two of them, without marks."""
    return _WORD.findall(text) if is_unspaced(text) else text.split()


def count_sentences(text: str) -> int:
    """How many sentences it has: at a mark with a space behind it, and at a Chinese one. An abbreviation's full stop counts, too."""
    text = text.strip()
    return 1 + sum(1 for _ in _END.finditer(text)) if text else 0


def ends_sentence(line: str) -> bool:
    """Whether its last character is a terminal mark, or one that closes a quotation behind a Chinese terminal mark."""
    last = line[-1:]
    return last in TERMINAL or (last in CLOSING and line[-2:-1] in WIDE_TERMINAL)


def is_marks(word: str) -> bool:
    """Whether it is made of marks only; for a word of one character at least."""
    return word[0] in _MARKS and not word.strip(MARKS)


def has_letter(word: str) -> bool:
    return word[0].isalpha() or _LETTER.search(word) is not None or (not word.isascii() and any(map(str.isalpha, word)))
