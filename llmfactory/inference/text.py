"""Text that comes token by token: characters whose bytes are not all there wait, and stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.data.tokenizer.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""What a character decodes to while some of its bytes are still missing."""


class TextStream:
    """What one row of a generation says.

    Some tokenizers write a token differently at the start of a text, so a token is decoded behind those before it: always
    from the last place at which the text was whole.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.stopped = False
        """A stop string was reached; `text` ends before it."""
        self.text = ""
        """Everything so far, as far as it is whole."""
        self._before: list[int] = []
        self._pending: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Take a token; what can be shown now. A beginning of a stop string is held back until it is none."""
        self._pending.append(token)
        new = self._decoded()
        if new.endswith(UNFINISHED):
            return ""
        self._before, self._pending = self._pending, []
        return self._take(new)

    def finish(self) -> str:
        """What is left: held back, or never whole, which is shown as it is."""
        if self.stopped:
            return ""
        self.text += self._decoded() if self._pending else ""
        self._pending = []
        rest, self._shown = self.text[self._shown :], len(self.text)
        return rest

    def _take(self, new: str) -> str:
        start = max(0, len(self.text) - max(map(len, self.stops), default=0))
        self.text += new
        places = [place for stop in self.stops if (place := self.text.find(stop, start)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
        held = 0 if self.stopped else max(map(self._overlap, self.stops), default=0)
        until = max(self._shown, len(self.text) - held)
        shown, self._shown = self.text[self._shown : until], until
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of the stop string that the text ends with."""
        return next((size for size in range(min(len(stop) - 1, len(self.text)), 0, -1) if self.text.endswith(stop[:size])), 0)

    def _decoded(self) -> str:
        return self.tokenizer.decode(self._before + self._pending)[len(self.tokenizer.decode(self._before)) :]
