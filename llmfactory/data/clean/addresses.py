"""Addresses of people and machines in running text: e-mail, IPv4 and IPv6, MAC, and what logs somebody in within a URL.

Each finder looks for the one character that its kind cannot do without (`@`, a digit before a point, a colon) and reads only a few
characters around it, so that its time is linear. Letters are ASCII at the borders: in Chinese an address needs no space around it.

Addresses that are set aside for examples are nobody's, and are not found: example.com and the like (RFC 2606), 192.0.2.0/24,
198.51.100.0/24, 203.0.113.0/24 (RFC 5737), 2001:db8::/32 (RFC 3849), 00-00-5E-00-53-xx (RFC 7042).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from llmfactory.data.clean.spans import Finder, Span, disjoint

# ---- e-mail

WORD = r"A-Za-z0-9_\u00c0-\u024f\u0370-\u052f"
"""Letters of alphabets; what is written without spaces between words is none."""
LONGEST_LOCAL = 64
"""RFC 5321, section 4.5.3.1."""
AT = re.compile("@")
SPELLED_AT = re.compile(r"＠|[\[(](?:at|AT)[\])]")
LOCAL = re.compile(rf"[{WORD}.%+'\-]*")
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"(?:{LABEL}\.){{1,8}}[A-Za-z]{{2,24}}(?![A-Za-z0-9])(?!\.[A-Za-z0-9])")
SPELLED = re.compile(rf" ?(?:{LABEL}(?: ?[\[(](?:dot|DOT)[\])] ?|\.)){{1,8}}[A-Za-z]{{2,24}}(?![A-Za-z0-9])")
RESERVED = re.compile(r"(?i)(?:^|\.)(?:example\.(?:com|net|org)|example|invalid|test|localhost)$")
FILE = re.compile(r"(?i)\.(?:png|jpe?g|gif|svg|webp|bmp|css|js|json|html?|xml|txt|pdf|zip)$")
"""Ends of names of files, not of domains (logo@2x.png)."""


def emails(text: str) -> list[Span]:
    found = [*_emails(text, AT, DOMAIN)] if "@" in text else []
    if any(at in text for at in ("＠", "(at)", "[at]", "(AT)", "[AT]")):
        found += _emails(text, SPELLED_AT, SPELLED)
    return disjoint(found)


def _emails(text: str, sign: re.Pattern[str], names: re.Pattern[str]) -> Iterator[Span]:
    for at in sign.finditer(text):
        domain = names.match(text, at.end())
        if domain is None:
            continue
        end = at.start() - (len(at[0]) > 1 and text[at.start() - 1 : at.start()] == " ")
        before = text[max(0, end - LONGEST_LOCAL - 1) : end]
        local = _last(LOCAL, before).lstrip(".%+'-")
        if not local or len(local) > LONGEST_LOCAL or local[-1] in ".'":
            continue
        start, name = end - len(local), domain[0]
        if RESERVED.search(name) or FILE.search(name) or text.endswith(("//", "@"), 0, start):
            continue
        if local == "git" and text[domain.end() : domain.end() + 1] == ":":  # a repository, git@host.org:path
            continue
        yield start, domain.end()


def _last(characters: re.Pattern[str], text: str) -> str:
    """The end of a text that consists of such characters alone."""
    match = characters.match(text[::-1])
    assert match is not None
    return text[len(text) - match.end() :]


# ---- user and password of a URL

LOGIN = re.compile(r"://(?=[^\s/?#@:<>]{1,256}:)([^\s/?#@<>]{1,256})@")


def logins(text: str) -> list[Span]:
    """`user:password` of `scheme://user:password@host`."""
    if "://" not in text or "@" not in text:
        return []
    return [match.span(1) for match in LOGIN.finditer(text)]


# ---- IP

FOUR = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
"""From the last digit of the first number on."""
SIX = re.compile(r":[0-9A-Fa-f]{0,4}:")
AROUND = re.compile(r"[0-9A-Fa-f:]*")
LONGEST_SIX = 39
VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|vers|version|release|rev|revision|build|firmware|update|upgrade[ds]?(?: to)?|section|chapter|clause"
    r"|figure|table|rule|oid)s?[.:]?[ ]?[\"'(]?|[A-Za-z]/|[§№#]\s?|(?:版本|版|章|节|節|第|表|图|圖)[号號：: ]?)$"
)
"""Behind it stands the number of a version or of a section."""
SPOKEN_OF = re.compile(r"(?i)(?:(?<!<)\bips?\b|\baddress\b|\bhosts?\b|\bserver\b|\bdns\b|://|@|地址|主机|服务器)[^\w\n]{0,4}$")
"""Behind it stands an address."""
SMALL = 20
"""A version's numbers are all below it, an address's hardly ever."""
EXAMPLES = [ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")]


def ips(private: bool) -> Finder:
    """`private`: those of local networks, too."""

    def find(text: str) -> list[Span]:
        found = [span for span in _fours(text) if _counts(text[slice(*span)], private)]
        if ":" in text:
            found += [span for span in _sixes(text) if _counts(text[slice(*span)], private)]
        return disjoint(found)

    return find


def _counts(text: str, private: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if any(address in network for network in EXAMPLES if network.version == address.version):
        return False
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return False
    return address.is_global or (private and address.is_private and (address.version == 6 or not _is_mask(text)))


def _is_mask(text: str) -> bool:
    return text.startswith(("255.", "0."))


def _fours(text: str) -> Iterator[Span]:
    for match in FOUR.finditer(text):
        start, end = match.span()
        while start and match.start() - start < 3 and "0" <= text[start - 1] <= "9":
            start -= 1
        if _joins(text[start - 1 : start]) or (start and text[start - 1] in ".-") or _joins(text[end : end + 1]):
            continue
        if text[end : end + 1] == "." and text[end + 1 : end + 2].isdigit():
            continue
        before = text[max(0, start - 24) : start]
        if VERSION.search(before) and not before.endswith("//"):
            continue
        small = all(int(number) < SMALL for number in text[start:end].split("."))
        if small and not SPOKEN_OF.search(before):
            continue
        yield start, end


def _sixes(text: str) -> Iterator[Span]:
    done = 0
    for match in SIX.finditer(text):
        if match.start() < done:
            continue
        before = text[max(done, match.start() - 5) : match.start()]
        start = match.start() - len(_last(AROUND, before))
        around = AROUND.match(text, match.start())
        assert around is not None
        done = around.end()
        end = done - (text[done - 1] == ":" and text[done - 2] != ":")
        if (
            end - start > LONGEST_SIX
            or (start and (_joins(text[start - 1]) or text[start - 1] in ".-"))
            or _joins(text[end : end + 1])
        ):
            continue
        groups = [group for group in text[start:end].split(":") if group]
        # `a::b` is an address, and code; one of a machine in a network has more to it, or a digit at its head.
        if not any(c.isdigit() for c in text[start:end]) or all(len(group) == 2 for group in groups):  # times, network cards
            continue
        if len(groups) < 2 or (len(groups) < 3 and not re.fullmatch(r"(?i)[23f][0-9a-f]{3}", groups[0])):
            continue
        yield start, end


def _joins(character: str) -> bool:
    """Whether it goes on what stands beside it."""
    return character.isascii() and (character.isalnum() or character == "_")


# ---- MAC

MAC = re.compile(r"([:\-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}(?![0-9A-Za-z]|[:\-][0-9A-Fa-f]{2})")


def macs(text: str) -> list[Span]:
    found = []
    for match in MAC.finditer(text):
        start = match.start() - 2
        first = text[max(0, start) : match.start()]
        if len(first) < 2 or not all(c in "0123456789abcdefABCDEF" for c in first):
            continue
        before = text[max(0, start - 1) : start]
        if _joins(before) or (before and before in ":-"):
            continue
        if re.sub(r"[:\-]", "", text[start : match.end()]).lower().startswith("00005e0053"):
            continue
        found.append((start, match.end()))
    return found
