"""The bar, the lines, silence, and what of it reaches the log."""

from __future__ import annotations

import io
import sys

import pytest

from llmfactory.run.display import Bar, Lines, Silent, duration, make_display, number
from llmfactory.run.log import TwoStreams, logged_to


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drive(display):
    display.preparing("reading", 1, 10)
    display.preparing("reading", 10, 10)
    display.preparing("tokenizing", 5, None)
    display.stop()
    display.start(100, 0)
    display.update(10, {"loss": 3.25, "tokens_per_second": 12345.6})
    display.update(10, {"held_out_loss": 3.5})
    display.note("a note [with brackets]")
    display.stop()
    display.stop()


def test_lines_on_a_pipe(capsys):
    display = make_display(progress=True, rank=0)
    assert isinstance(display, Lines)
    drive(display)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "preparing data: reading"
    assert out[1] == "preparing data: tokenizing"
    assert out[2].startswith("step 10/100  loss 3.25  tokens_per_second 12,346  left 0:0")
    assert out[3].startswith("step 10/100  held_out_loss 3.5  left ")
    assert out[4:] == ["a note [with brackets]"]


def test_silence(capsys):
    drive(make_display(progress=False, rank=0))
    assert capsys.readouterr().out == "a note [with brackets]\n"
    drive(make_display(progress=True, rank=1))
    assert capsys.readouterr().out == ""


def test_bar_on_a_terminal_and_whole_lines_in_the_log(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with logged_to(tmp_path / "log.txt"):
        display = make_display(progress=True, rank=0)
        assert isinstance(display, Bar)
        drive(display)
        assert isinstance(sys.stdout, TwoStreams)
        assert sys.stdout.screen is terminal
    shown, log = terminal.getvalue(), (tmp_path / "log.txt").read_text()
    assert "\x1b[" in shown
    assert "3.2500" in shown
    assert "12,346 tokens/s" in shown
    assert "a note [with brackets]" in shown
    assert "\x1b" not in log
    assert "\r" not in log
    assert log.splitlines()[:2] == ["preparing data: reading", "preparing data: tokenizing"]
    assert "step 10/100  loss 3.25" in log
    assert log.count("a note [with brackets]\n") == 1


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (0.00012345, "0.00012345"), (3.14159265, "3.1416")])
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3661, "1:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_notes_of_other_ranks_are_dropped(capsys):
    Silent(notes=False).note("x")
    assert capsys.readouterr().out == ""
