"""Keys, tokens and passwords in running text and in code.

Those with a form of their own are found by it (the forms are what the services document); others only where they are given to
a name that says what they are (`api_key = "..."`), and look drawn at random: letters and digits, three bits a character.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from llmfactory.data.clean.spans import Span, disjoint

TOKEN = r"[A-Za-z0-9_\-]"
LABEL = r"[A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?"
GAP = r"(?:\s|\\[nr]){0,8}"
"""Between the lines of a key, in a file or in a string of code."""


def _begins(prefix: str, pattern: str) -> re.Pattern[str]:
    """A token. One that goes on from before is none, so that no run of characters is read twice."""
    return re.compile(rf"{prefix}(?<![A-Za-z0-9_\-]{prefix}){pattern}(?!{TOKEN})")


FORMS: list[tuple[str, re.Pattern[str]]] = [
    *((prefix, _begins(prefix, "[A-Z2-7]{16}")) for prefix in ("AKIA", "ASIA")),  # Amazon Web Services
    ("LTAI", _begins("LTAI", "[A-Za-z0-9]{12,26}")),  # Alibaba Cloud
    ("AKID", _begins("AKID", "[A-Za-z0-9]{32}")),  # Tencent Cloud
    ("AIza", _begins("AIza", f"{TOKEN}{{35}}")),  # Google
    ("ya29.", _begins(r"ya29\.", f"{TOKEN}{{20,512}}")),
    ("sk-", _begins("sk-", f"(?=[A-Za-z_\\-]{{0,60}}[0-9]){TOKEN}{{20,220}}")),  # OpenAI, Anthropic and others
    ("xox", _begins("xox[abeoprs]-", r"[A-Za-z0-9\-]{10,250}")),  # Slack
    ("glpat-", _begins("glpat-", f"{TOKEN}{{20,64}}")),  # GitLab
    ("pypi-AgE", _begins("pypi-AgE", f"{TOKEN}{{50,512}}")),
    ("SG.", _begins(r"SG\.", f"{TOKEN}{{22}}\\.{TOKEN}{{43}}")),  # SendGrid
    ("_", _begins("gh[pousr]_", "[A-Za-z0-9]{36,255}")),  # GitHub
    ("github_pat_", _begins("github_pat_", "[A-Za-z0-9_]{22,255}")),
    ("hf_", _begins("hf_", "[A-Za-z0-9]{34,40}")),  # Hugging Face
    ("npm_", _begins("npm_", "[A-Za-z0-9]{36}")),
    ("k_", _begins("[sr]k_(?:live|test)_", "[A-Za-z0-9]{16,247}")),  # Stripe
    ("eyJ", _begins("eyJ", f"{TOKEN}{{8,8192}}\\.eyJ{TOKEN}{{4,16384}}\\.{TOKEN}{{8,4096}}")),  # JSON web token, RFC 7519
    (
        "-----BEGIN",  # RFC 7468
        re.compile(
            rf"-----BEGIN {LABEL}-----(?:\s{{0,4}}(?:Proc-Type|DEK-Info|Version|Comment): [^\n]{{0,200}}\n){{0,8}}"
            rf"(?:{GAP}[A-Za-z0-9+/=]{{16,}}(?![A-Za-z0-9+/=]))*(?:(?:{GAP}[A-Za-z0-9+/=]{{1,64}})?{GAP}-----END {LABEL}-----)?"
        ),
    ),
]
"""What a text must have in it, and the whole form."""
GIVEN = re.compile(r"[:=：]>?[ \t]{0,4}[\"'`]?([A-Za-z0-9_\-+/.~!@#$%^*]{16,256}={0,2})")
NAME = re.compile(
    r"(?i)(?:(?:api|app|access|auth|client|private|encryption|account|signing|master|admin|service)[_\- ]?key(?:[_\- ]?id)?"
    r"|secret(?:[_\- ]?key)?|token|passw(?:or)?d|passphrase|pwd|credentials?|密码|密碼|密钥|密鑰|口令)s?[\"'`\]]{0,2}[ \t]{0,4}$"
)
NAME_LENGTH = 40
NONE_REALLY = re.compile(r"(?i)your|example|placeholder|changeme|xxxx|\.{3}|^[a-z_.]+[a-z_]$|^/|//|^\$")
"""What stands where a reader is to put his own, and what is code or a path."""
BITS = 3.0


def credentials(text: str) -> list[Span]:
    found = [match.span() for part, pattern in FORMS if part in text for match in pattern.finditer(text)]
    if "=" in text or ":" in text or "：" in text:
        found += _given(text)
    return disjoint(found)


def _given(text: str) -> Iterator[Span]:
    """What is given to a name that says that it is secret."""
    for match in GIVEN.finditer(text):
        if not NAME.search(text[max(0, match.start() - NAME_LENGTH) : match.start()]):
            continue
        value = match[1].rstrip(".!")
        code = text[match.start(1) + len(value) : match.start(1) + len(value) + 1] in ("(", "[") or NONE_REALLY.search(value)
        if (
            len(value) >= 16
            and not code
            and any(map(str.isdigit, value))
            and any(map(str.isalpha, value))
            and bits(value) >= BITS
        ):
            yield match.start(1), match.start(1) + len(value)


def bits(text: str) -> float:
    """Shannon entropy of its characters."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
