"""Where solutions of mathematical problems mark their answer: \\boxed{...} (Hendrycks et al. 2021)."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def boxed(text: str) -> str | None:
    """What stands in the last box whose braces are closed; None: there is none."""
    for begin in reversed([match.end() for match in BOX.finditer(text)]):
        depth = 1
        for place in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[begin:place]
    return None
