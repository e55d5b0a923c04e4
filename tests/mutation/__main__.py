"""python -m tests.mutation [a part of names of bugs]: plant the bugs; the whole list rewrites docs/mutations.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> int:
    from tests.mutation.killing import BUGS, PAGE, Hunt, page

    chosen = [bug for bug in BUGS if all(part in bug.name for part in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:
        hunt = Hunt(Path(folder))
        outcomes = []
        for bug in chosen:
            outcomes.append(hunt.kill(bug))
            print(f"{bug.name}: {outcomes[-1].found or 'NOT FOUND'}", flush=True)
    if len(chosen) == len(BUGS):
        PAGE.write_text(page(outcomes), encoding="utf-8")
    survivors = [outcome.bug.name for outcome in outcomes if outcome.found is None]
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} bugs were found", *survivors, sep="\n  ")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
