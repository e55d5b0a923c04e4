"""log.txt: everything a job prints, warnings included, in the run folder besides on the screen.

The streams are replaced by ones that write twice. Control sequences (colours, a progress bar's cursor movements) reach the
screen only: the bar writes to the stream below and hands whole lines to the log.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from llmfactory.core.errors import UserError

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r(?!\n)")


class Nowhere(io.TextIOBase):
    """Takes any text and keeps nothing."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


class TwoStreams(io.TextIOBase):
    """A text stream that passes everything on and keeps a copy, without control sequences, in a file if there is one."""

    def __init__(self, screen: TextIO, file: TextIO | None) -> None:
        self.screen, self.file = screen, file

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.screen.encoding

    def write(self, text: str) -> int:
        self.copy(text)
        try:
            try:
                self.screen.write(text)
            except UnicodeEncodeError:  # a screen that is set to ASCII
                name = self.screen.encoding
                self.screen.write(text.encode(name, "replace").decode(name))
        except (BrokenPipeError, ValueError):
            self.drop_screen()
        return len(text)

    def drop_screen(self) -> None:
        """Nobody reads on (`| head`): the job and its log go on, and what is still in a buffer goes nowhere."""
        try:
            discard(self.screen)
        except (OSError, ValueError):  # closed, or no file of the system
            self.screen = cast(TextIO, Nowhere())

    def copy(self, text: str) -> None:
        """To the log only."""
        if self.file is None:
            return
        try:
            self.file.write(CONTROL.sub("", text))
        except OSError:  # a full disk must not stop what a message is about; saving a checkpoint reports it
            return

    def flush(self) -> None:
        try:
            self.screen.flush()
        except (BrokenPipeError, ValueError):
            self.drop_screen()

    def isatty(self) -> bool:
        return not self.screen.closed and self.screen.isatty()

    def fileno(self) -> int:
        return self.screen.fileno()


def discard(stream: TextIO) -> None:
    """Let everything that is written to the stream from now on, its buffer included, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


@contextmanager
def outliving_reader() -> Iterator[None]:
    """Inside, a reader of the screen that goes away stops nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = TwoStreams(sys.stdout, None), TwoStreams(sys.stderr, None)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def logged_to(path: Path | None) -> Iterator[None]:
    """Append everything printed inside to the file. Inside another such block, or without a path, nothing more happens."""
    if path is None or (isinstance(sys.stdout, TwoStreams) and sys.stdout.file is not None):
        yield
        return
    try:
        file = open(path, "a", encoding="utf-8", errors="replace", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = TwoStreams(sys.stdout, file), TwoStreams(sys.stderr, file)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        with suppress(OSError):  # the same full disk
            file.close()


@contextmanager
def screen_through(wrap: Callable[[TextIO], TextIO]) -> Iterator[None]:
    """While a live display holds the bottom of the screen, let what is printed pass through it, so that it stands above."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TwoStreams)]
    before = [stream.screen for stream in streams]
    for stream in streams:
        stream.screen = wrap(stream.screen)
    try:
        yield
    finally:
        for stream, screen in zip(streams, before, strict=True):
            stream.screen.flush()
            stream.screen = screen


def screen() -> TextIO:
    """Standard output below the log: for what moves the cursor."""
    return sys.stdout.screen if isinstance(sys.stdout, TwoStreams) else sys.stdout


def log_only(text: str) -> None:
    """A line for the log of something that the screen shows in another form."""
    if isinstance(sys.stdout, TwoStreams):
        sys.stdout.copy(f"{text}\n")
