from __future__ import annotations

from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.inference.text import TextStream


def stream(text, stops=()):
    """What is shown after each byte, and what is left at the end."""
    made = TextStream(ByteTokenizer(), stops)
    shown = []
    for byte in text if isinstance(text, bytes) else text.encode():
        shown.append(made.push(byte))
        if made.stopped:
            break
    return made, shown, made.finish()


def test_a_character_is_shown_when_its_bytes_are_all_there():
    made, shown, rest = stream("aü€b".encode() + b"\xc3")
    assert shown == ["a", "", "ü", "", "", "€", "b", ""]
    assert rest == "\ufffd"
    assert made.text == "aü€b\ufffd"


def test_a_stop_string_ends_the_text_before_it():
    made, shown, rest = stream("one\n\ntwo", ["\n\n"])
    assert made.stopped
    assert made.text == "one"
    assert "".join(shown) == "one"
    assert rest == ""


def test_what_may_become_a_stop_string_is_held_back():
    made, shown, rest = stream("a STO STOP b", ["STOP", "zzz"])
    assert shown == ["a", " ", "", "", "", "STO ", "", "", "", ""]
    assert made.text == "a STO "
    made, shown, rest = stream("a ST", ["STOP"])
    assert "".join(shown) == "a "
    assert rest == "ST"
    assert not made.stopped


def test_a_stop_string_within_one_token():
    class Words:
        def decode(self, ids):
            return "".join(["yes. And so", " on"][i] for i in ids)

    made = TextStream(Words(), [". A", "so on"])
    assert made.push(0) == "yes"
    assert made.stopped
    assert made.text == "yes"


def test_several_stops_the_first_in_the_text_counts():
    made, _, _ = stream("xxbyya", ["a", "b"])
    assert made.text == "xx"
