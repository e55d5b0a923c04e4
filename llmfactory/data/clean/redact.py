"""Personal data out of running text: each kind is found by its own finder, and what was found is replaced in one go.

A text that went through is not changed when it goes through again: what stands beside a placeholder was looked at together with what
the placeholder stands for.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from llmfactory.data.clean.addresses import emails, ips, logins, macs
from llmfactory.data.clean.credentials import credentials
from llmfactory.data.clean.fakes import fake
from llmfactory.data.clean.identifiers import cards, ibans, residents, ssns
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.phones import phones
from llmfactory.data.clean.privacy_spec import Instead, Personal, Redact
from llmfactory.data.clean.spans import Finder, Span, added
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

VERSION = 1
FINDERS: Mapping[Personal, Finder] = {
    Personal.credential: credentials,
    Personal.login: logins,
    Personal.email: emails,
    Personal.iban: ibans,
    Personal.resident: residents,
    Personal.card: cards,
    Personal.ip: ips(private=False),
    Personal.mac: macs,
    Personal.ssn: ssns,
    Personal.phone: phones,
}
NAMES = "|".join(kind.name.upper() for kind in Personal)
REPLACED_BEFORE = re.compile(rf"<(?:{NAMES})>.{{0,3}}$", re.DOTALL)
REPLACED_BEHIND = re.compile(rf".{{0,3}}<(?:{NAMES})>", re.DOTALL)
"""What a finder looks at beside a number is no further away."""
LONGEST = max(len(kind.name) for kind in Personal) + 5


MOST_ROUNDS = 8
"""A fake may make an address of what stood beside it, once or twice."""


class RedactPersonal(Step):
    def __init__(self, spec: Redact) -> None:
        self.spec = spec
        self.kinds = [kind for kind in Personal if kind in spec.kinds]

    def fingerprint(self) -> str:
        spec, key = self.spec, hashlib.sha256((self.spec.fake_key or "").encode()).hexdigest()
        return f"redact {VERSION} {[kind.name for kind in self.kinds]} {spec.style.name} {key} {spec.private_ips}"

    def apply(self, page: Page) -> Outcome:
        text, found = page.text, self.find(page.text)
        if self.spec.style is Instead.drop and found:
            counts = Counter(kind.name for _, kind in found)
            return Drop(found[0][1].name, ", ".join(f"{number} × {name}" for name, number in counts.items()))
        changes: Counter[str] = Counter()
        rounds = 0
        while found and rounds < MOST_ROUNDS:
            changes.update(kind.name for _, kind in found)
            text = self._replaced(text, found)
            found, rounds = self.find(text) if self.spec.style is Instead.fake else [], rounds + 1
        return Kept(text, dict(changes))

    def _replaced(self, text: str, found: Sequence[tuple[Span, Personal]]) -> str:
        pieces, done = [], 0
        for (start, end), kind in found:
            pieces += [text[done:start], self._instead(kind, text[start:end])]
            done = end
        return "".join([*pieces, text[done:]])

    def find(self, text: str) -> list[tuple[Span, Personal]]:
        """Places and kinds, in order."""
        spans: list[Span] = []
        kinds: dict[Span, Personal] = {}
        for kind in self.kinds:
            found = added(spans, self._finder(kind)(text))
            if found:
                kinds |= dict.fromkeys(found, kind)
                spans = sorted([*spans, *found])
        if "<" in text:
            spans = [span for span in spans if not _beside_placeholder(text, *span)]
        return [(span, kinds[span]) for span in spans]

    def _finder(self, kind: Personal) -> Finder:
        return ips(private=True) if kind is Personal.ip and self.spec.private_ips else FINDERS[kind]

    def _instead(self, kind: Personal, found: str) -> str:
        if self.spec.style is Instead.placeholder:
            return f"<{kind.name.upper()}>"
        assert self.spec.fake_key is not None
        return fake(kind, found, self.spec.fake_key.encode())


def _beside_placeholder(text: str, start: int, end: int) -> bool:
    return bool(REPLACED_BEFORE.search(text[max(0, start - LONGEST) : start]) or REPLACED_BEHIND.match(text, end))
