"""`llmfactory`, and `python -m llmfactory.run`."""

from __future__ import annotations

import sys

from llmfactory.run.command import run_command


def main() -> int:
    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
