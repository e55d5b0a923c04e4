"""Personal data taken out, against datatrove's formatter, which knows e-mail and IPv4 addresses: MB/s of one core.

    python benchmarks/redaction.py --rounds 5 [--files pages.jsonl more.txt]

The corpus is that of filters.py. `addresses` is the two kinds that both sides know, `all` is every kind of ours but MAC addresses, the
default of data/clean=redact. Each sample is a process; times are CPU time. `--found` prints instead how many of each kind there are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from filters import corpus

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Personal, Redact
from llmfactory.data.clean.step import Drop


def ours(kinds: list[Personal]) -> Callable[[str], str]:
    step = Redact(kinds=kinds).build(None)

    def redact(text: str) -> str:
        outcome = step.apply(Page("", text))
        return "" if isinstance(outcome, Drop) else outcome.text

    return redact


def theirs() -> Callable[[str], str]:
    from datatrove.pipeline.formatters import PIIFormatter

    return PIIFormatter().format


SIDES: dict[str, Callable[[], Callable[[str], str]]] = {
    "datatrove": theirs,
    "addresses": lambda: ours([Personal.email, Personal.ip]),
    "all": lambda: ours(Redact().kinds),
}


def measure(side: str, texts: list[str]) -> None:
    """Nanoseconds a byte, the best of three passes."""
    redact, best = SIDES[side](), float("inf")
    for _ in range(3):
        start = time.process_time()
        for text in texts:
            redact(text)
        best = min(best, time.process_time() - start)
    print(best / sum(len(text.encode(errors="surrogatepass")) for text in texts) * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", nargs="*", default=[])
    parser.add_argument("--found", action="store_true")
    parser.add_argument("--measure", metavar="SIDE")
    options = parser.parse_args()
    texts = corpus(options.files)
    if options.measure:
        measure(options.measure, texts)
        return
    if options.found:
        step, found = Redact(kinds=list(Personal)).build(None), Counter[str]()
        for text in texts:
            outcome = step.apply(Page("", text))
            found.update({} if isinstance(outcome, Drop) else outcome.changes)
        print(dict(found))
        return
    from harness import interleave

    files = ["--files", *options.files] if options.files else []
    command = {side: [__file__, "--measure", side, *files] for side in SIDES}
    for side, values in interleave(command, "datatrove", options.rounds, "ns/byte").items():
        print(f"{side}: {1000 / sorted(values)[len(values) // 2]:.1f} MB/s")


if __name__ == "__main__":
    main()
