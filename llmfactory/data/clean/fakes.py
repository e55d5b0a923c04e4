"""Stand-ins for personal data: of the same kind, nobody's, and the same for the same one.

Which it is follows from a keyed hash (BLAKE2b, RFC 7693) of what it stands for, written in one way. Each is of a form or a range
that is given to nobody, and that the finders therefore leave alone: a text with fakes is not changed again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from llmfactory.data.clean.privacy_spec import Personal

Draw = Callable[[int], int]
"""n -> a number below n; each call gives the next one."""


def fake(kind: Personal, found: str, key: bytes) -> str:
    return _FAKES[kind](_draw(kind, _plain(kind, found), key), found)


def _plain(kind: Personal, found: str) -> str:
    """The same however it is written."""
    if kind is Personal.credential:
        return found
    if kind in (Personal.card, Personal.ssn, Personal.phone):
        return re.sub("[^0-9]", "", found)
    return re.sub(r"[\s\-:]" if kind is Personal.mac else r"[\s]", "", found).lower()


def _draw(kind: Personal, plain: str, key: bytes) -> Draw:
    hashed = hashlib.blake2b(plain.encode(errors="surrogatepass"), key=hashlib.sha256(key).digest(), person=kind.name.encode())
    number = int.from_bytes(hashed.digest(), "big")

    def draw(below: int) -> int:
        nonlocal number
        number, drawn = divmod(number, below)
        return drawn

    return draw


def _email(draw: Draw, found: str) -> str:
    return f"user{draw(10**8):08d}@example.com"


def _phone(draw: Draw, found: str) -> str:
    digits = re.sub("[^0-9]", "", found)
    if re.fullmatch("(?:86)?1[3-9][0-9]{9}", digits):
        return f"1200{draw(10**7):07d}"
    return f"{200 + draw(800)}-555-01{draw(100):02d}"


def _ip(draw: Draw, found: str) -> str:
    if ":" in found:
        return ":".join(["2001", "db8", *(f"{1 + draw(65535):x}" for _ in range(6))])
    return f"{('192.0.2', '198.51.100', '203.0.113')[draw(3)]}.{1 + draw(254)}"


def _iban(draw: Draw, found: str) -> str:
    return f"{found[:2]}00{draw(10**10):010d}"  # no number has the check digits 00


def _card(draw: Draw, found: str) -> str:
    return f"0000{draw(10**12):012d}"  # no issuer's


_FAKES: dict[Personal, Callable[[Draw, str], str]] = {
    Personal.credential: lambda draw, found: f"key{draw(16**8):08x}",  # shorter than any
    Personal.login: lambda draw, found: f"user{draw(10**8):08d}",
    Personal.email: _email,
    Personal.iban: _iban,
    Personal.resident: lambda draw, found: f"000000{1900 + draw(120)}{1 + draw(12):02d}{1 + draw(28):02d}{draw(10**4):04d}",
    Personal.card: _card,
    Personal.ip: _ip,
    Personal.mac: lambda draw, found: f"00-00-5E-00-53-{draw(256):02X}",
    Personal.ssn: lambda draw, found: f"000-{draw(100):02d}-{draw(10**4):04d}",
    Personal.phone: _phone,
}
