"""Rules for web pages against datatrove's: documents a second, and whether both decide alike.

    python benchmarks/filters.py --rounds 5 [--files pages.jsonl more.txt]

Without `--files` the corpus is the documentation and the docstrings of the running Python, in pieces of about 1.2 KB; files of JSON
lines give their `text`, others are cut into such pieces. Both sides cut words at white space (datatrove's splitters of words and
of sentences want models that have to be downloaded: words are `str.split` on both sides, sentences are counted as we count
them). `gopher` is quality and repetition of the same page, one after the other, as a pipeline has them: ours looks at its words
once. Each sample is a process; times are CPU time. `--agree` compares all decisions, reasons and texts instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llmfactory.data.clean.characters import count_sentences
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import C4, Fineweb, GopherQuality, GopherRepetition
from llmfactory.data.clean.step import Drop

RULES: dict[str, tuple[str, ...]] = {
    "gopher": ("gopher_quality", "gopher_repetition"),
    "gopher_quality": ("gopher_quality",),
    "gopher_repetition": ("gopher_repetition",),
    "c4": ("c4",),
    "fineweb": ("fineweb",),
}
PIECE, DOCUMENTS, TOGETHER = 1200, 5000, 256
REASONS = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "short words",
    "gopher_above_avg_threshold": "long words",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "lines with bullets",
    "gopher_too_many_end_ellipsis": "lines that end with an ellipsis",
    "gopher_below_alpha_threshold": "words without a letter",
    "gopher_enough_stop_words": "stop words",
    "dup_para_frac": "duplicate paragraphs",
    "dup_para_char_frac": "characters of duplicate paragraphs",
    "dup_line_frac": "duplicate lines",
    "dup_line_char_frac": "characters of duplicate lines",
    **{f"top_{n}_gram": f"most frequent {n} words" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate sequences of {n} words" for n in range(5, 11)},
    "line_punct_ratio": "lines without a terminal mark",
    "short_line_ratio": "short lines",
    "char_dup_ratio": "characters of duplicate lines",
    "list_ratio": "list",
    "lorem_ipsum": "lorem ipsum",
    "curly_bracket": "curly bracket",
    "too_few_sentences": "too few sentences",
}


def corpus(files: Sequence[str]) -> list[str]:
    texts = [text for file in files for text in _read(Path(file))] or _pydocs()
    return [text for text in texts if text.strip()][:DOCUMENTS]


def _read(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
    return _pieces(text)


def _pydocs() -> list[str]:
    from llmfactory.data.source.account import Account
    from llmfactory.data.source.spec import Pydocs

    source = Pydocs().build()
    documents = (document for unit in source.units() for document in source.documents(unit, Account(0)))
    return [piece for document in documents for piece in _pieces(document.text)]


def _pieces(text: str) -> list[str]:
    """Lines together, up to about 1.2 KB."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces


Decision = tuple[str | None, str]
"""The reason for which a page is dropped, if it is, and its text."""


def ours(names: Sequence[str]) -> Callable[[Sequence[str]], list[Decision]]:
    specs = {"gopher_quality": GopherQuality, "gopher_repetition": GopherRepetition, "c4": C4, "fineweb": Fineweb}
    steps = [specs[name]().build(None) for name in names]

    def decide(texts: Sequence[str]) -> list[Decision]:
        found: list[Decision] = []
        for start in range(0, len(texts), TOGETHER):
            block = texts[start : start + TOGETHER]
            decisions: list[Decision] = [(None, text) for text in block]
            left = dict(enumerate(Page("", text) for text in block))
            for step in steps:
                for i, outcome in zip(list(left), step.apply_many(list(left.values())), strict=True):
                    if isinstance(outcome, Drop):
                        decisions[i] = outcome.reason, block[i]
                        del left[i]
                    else:
                        left[i] = left[i].with_text(outcome.text)
                        decisions[i] = None, outcome.text
            found += decisions
        return found

    return decide


def theirs(names: Sequence[str]) -> Callable[[Sequence[str]], list[Decision]]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter

    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, language: text.split()
    c4_filters.split_into_sentences = lambda text, language: range(count_sentences(text))
    classes: dict[str, Any] = {
        "gopher_quality": gopher_quality_filter.GopherQualityFilter,
        "gopher_repetition": gopher_repetition_filter.GopherRepetitionFilter,
        "c4": c4_filters.C4QualityFilter,
        "fineweb": fineweb_quality_filter.FineWebQualityFilter,
    }
    filters = [classes[name]() for name in names]

    def decide(text: str) -> Decision:
        document = Document(text=text, id="")
        for each in filters:
            outcome = each.filter(document)
            if outcome is not True:
                return REASONS.get(outcome[1], outcome[1]), text
        return None, document.text

    return lambda texts: [decide(text) for text in texts]


def agree(texts: Sequence[str]) -> None:
    """Print how many decisions, reasons and texts are alike, and those that are not."""
    for name in ("gopher_quality", "gopher_repetition", "c4", "fineweb"):
        both = list(zip(ours([name])(texts), theirs([name])(texts), strict=True))
        decisions = sum((a[0] is None) == (b[0] is None) for a, b in both)
        kept = sum(a[0] is None for a, _ in both)
        print(
            f"{name}: {decisions} of {len(texts)} decisions alike ({kept} kept), {sum(a == b for a, b in both)} with reason and text"
        )
        for (mine, its), count in Counter((a[0], b[0]) for a, b in both if a != b).most_common(5):
            print(f"  {count} times {mine} here, {its} there")


def measure(side: str, rules: str, texts: Sequence[str]) -> None:
    """Microseconds a document, the best of three passes."""
    decide = (ours if side == "ours" else theirs)(RULES[rules])
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        decide(texts)
        best = min(best, time.process_time() - start)
    print(best / len(texts) * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", nargs="*", default=[])
    parser.add_argument("--agree", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "RULES"))
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, corpus(options.files))
        return
    texts = corpus(options.files)
    size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    print(f"{len(texts)} documents of {size / max(1, len(texts)):.0f} bytes\n")
    agree(texts)
    if options.agree:
        return
    from harness import interleave

    for rules in RULES:
        print(f"\n{rules}\n")
        files = ["--files", *options.files] if options.files else []
        command = {side: [__file__, "--measure", side, rules, *files] for side in ("datatrove", "ours")}
        numbers = interleave(command, "datatrove", options.rounds, "us/document")
        for side, values in numbers.items():
            print(f"{side}: {1e6 / sorted(values)[len(values) // 2]:.0f} documents/s")


if __name__ == "__main__":
    main()
