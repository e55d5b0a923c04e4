"""log.txt keeps what was printed, in all attempts, without control sequences."""

from __future__ import annotations

import io
import sys

import pytest

from llmfactory.core.errors import UserError
from llmfactory.run.log import log_only, logged_to, outliving_reader


def test_everything_printed_is_kept_and_later_attempts_are_appended(tmp_path, capsys):
    path = tmp_path / "log.txt"
    before = sys.stdout, sys.stderr
    with logged_to(path):
        print("one")
        print("\x1b[1mbold\x1b[0m\rdone", file=sys.stderr)
        log_only("for the log")
        with logged_to(path):
            print("inside once")
    with logged_to(path):
        print("again")
    assert (sys.stdout, sys.stderr) == before
    text = path.read_text()
    assert text.startswith("one\nbolddone\n")
    assert text.endswith("for the log\ninside once\nagain\n")
    captured = capsys.readouterr()
    assert captured.out == "one\ninside once\nagain\n"
    assert "\x1b[1mbold" in captured.err


def test_streams_come_back_after_an_error(tmp_path):
    before = sys.stdout
    with pytest.raises(ZeroDivisionError), logged_to(tmp_path / "log.txt"):
        raise ZeroDivisionError
    assert sys.stdout is before


def test_an_unwritable_log_is_named(tmp_path):
    with pytest.raises(UserError, match=r"log\.txt cannot be written"), logged_to(tmp_path / "nowhere" / "log.txt"):
        pass
    with logged_to(None):
        pass


class Left(io.StringIO):
    """A screen whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError


def test_a_reader_that_goes_away_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Left())
    with outliving_reader():
        print("before", flush=True)
        with logged_to(tmp_path / "log.txt"):
            print("one", flush=True)
            print("two", flush=True)
        print("after", flush=True)
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"


def test_a_screen_that_cannot_show_a_character(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with logged_to(tmp_path / "log.txt"):
        print("caf\u00e9", flush=True)
    assert raw.getvalue() == b"caf?\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "caf\u00e9\n"
