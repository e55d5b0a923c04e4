"""Personal data taken out: what comes instead, counts, nothing else changed, the same when done again, in linear time."""

from __future__ import annotations

import pickle
import random
import time
from collections import Counter

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.fakes import fake
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Instead, Personal, Redact
from llmfactory.data.clean.redact import FINDERS, RedactPersonal
from llmfactory.data.clean.step import Drop, Kept, Outcome

ALL = list(Personal)
EXAMPLES: dict[Personal, list[str]] = {
    Personal.credential: ["ghp_" + "a1B2c3" * 6, "sk-" + "a1B2c3D4" * 6],
    Personal.email: ["jane.doe@host.org", "zhang3@qq.com"],
    Personal.iban: ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32"],
    Personal.resident: ["11010519491231002X"],
    Personal.card: ["4111 1111 1111 1111", "378282246310005"],
    Personal.ip: ["93.184.216.34", "2606:4700:4700::1111"],
    Personal.mac: ["52:54:00:9d:0e:67"],
    Personal.ssn: ["123-45-6789"],
    Personal.phone: ["+49 30 12345678", "13812345678", "212-555-7890"],
}
EVERY = [(kind, text) for kind, texts in EXAMPLES.items() for text in texts]


def built(**options: object) -> RedactPersonal:
    step = Redact(**options).build(None)  # type: ignore[arg-type]
    assert isinstance(step, RedactPersonal)
    return step


def apply(text: str, **options: object) -> Outcome:
    return built(**options).apply(Page("a", text))


def kept(text: str, **options: object) -> Kept:
    outcome = apply(text, **options)
    assert isinstance(outcome, Kept)
    return outcome


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_each_kind_by_itself_and_not_without_it(kind: Personal, text: str) -> None:
    name = f"<{kind.name.upper()}>"
    assert kept(f"（{text}）和 {text}, x", kinds=[kind]) == Kept(f"（{name}）和 {name}, x", {kind.name: 2})
    assert kept(f"see {text}", kinds=[other for other in ALL if other is not kind]).text.count(name) == 0


def test_a_url_keeps_its_host() -> None:
    assert kept("git clone https://joe:s3cr3t@host.org/x").text == "git clone https://<LOGIN>@host.org/x"


def test_of_two_over_one_place_the_one_further_up_counts() -> None:
    text = "123456789012345678@qq.com 身份证 11010519491231002X"
    assert kept(text).text == "<EMAIL> 身份证 <RESIDENT>"
    assert kept(text, kinds=[Personal.phone, Personal.card]).text == text
    assert [kind for kind in ALL if kind in built(kinds=[*reversed(ALL)]).kinds] == built(kinds=[*reversed(ALL)]).kinds


def test_the_document_is_dropped_by_option() -> None:
    outcome = apply("a@b.com, c@d.com or 13812345678", style=Instead.drop)
    assert outcome == Drop("email", "2 × email, 1 × phone")
    assert apply("nothing", style=Instead.drop) == Kept("nothing")


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_a_fake_is_the_same_for_the_same_one_and_nobody_s(kind: Personal, text: str) -> None:
    options = {"kinds": ALL, "style": Instead.fake, "fake_key": "k", "private_ips": True}
    outcome = kept(f"{text} / {text}", **options)
    first, _, second = outcome.text.partition(" / ")
    assert first == second != text
    assert outcome.changes == {kind.name: 2}
    assert kept(outcome.text, **options) == Kept(outcome.text)
    assert kept(text, **{**options, "fake_key": "another"}).text != first
    for word in ("call", "ssn", "ip", "电话", "api_key="):
        assert kept(f"{word} {first}", **options).text == f"{word} {first}"


def test_fakes_do_not_depend_on_how_a_number_is_written() -> None:
    for kind, one, other in (
        (Personal.phone, "+49 30 12345678", "+49-30-1234-5678"),
        (Personal.card, "4111 1111 1111 1111", "4111111111111111"),
        (Personal.email, "Jane@Host.org", "jane@host.org"),
        (Personal.iban, "GB82 WEST 1234 5698 7654 32", "GB82WEST12345698765432"),
        (Personal.mac, "52:54:00:9D:0E:67", "52-54-00-9d-0e-67"),
    ):
        assert fake(kind, one, b"k") == fake(kind, other, b"k")
    assert len({fake(Personal.email, f"{n}@host.org", b"k") for n in range(1000)}) == 1000
    assert fake(Personal.phone, "13812345678", b"k") != fake(Personal.card, "13812345678", b"k")


def test_a_login_and_a_key_have_fakes_too() -> None:
    options = {"style": Instead.fake, "fake_key": "k"}
    outcome = kept('https://joe:s3cr3t@host.org api_key = "a8Fk29xLq01mZ7pQ"', **options)
    assert outcome.changes == {"login": 1, "credential": 1}
    assert "s3cr3t" not in outcome.text
    assert "a8Fk29" not in outcome.text
    assert kept(outcome.text, **options).changes == {}


PIECES = [
    *(text for _, text in EVERY), "a", "1", "12", "2021", "@", ".", ". ", " ", "-", "/", ":", "：", "，", "call ", "电话", "ssn ", "ip ", "v", "\n",
    "token=", "://", "+", "(", ")", "<EMAIL>", "<", ">", "中", "é", "_", "=", "x@", "4111", "1381234", "::", "é", "\ud800", "😀", "０", "0",
]  # fmt: skip


@pytest.mark.parametrize("style", [Instead.placeholder, Instead.fake])
def test_done_again_nothing_changes(style: Instead) -> None:
    step, draw = (
        built(kinds=ALL, style=style, fake_key="k" if style is Instead.fake else None, private_ips=True),
        random.Random(0),
    )
    seen: Counter[str] = Counter()
    for _ in range(4000):
        text = "".join(draw.choices(PIECES, k=draw.randrange(1, 12)))
        outcome = step.apply(Page("a", text))
        assert isinstance(outcome, Kept)
        seen.update(outcome.changes)
        again = step.apply(Page("a", outcome.text))
        assert again == Kept(outcome.text), text
    assert len(seen) == len(Personal)


def test_nothing_else_is_changed() -> None:
    draw = random.Random(1)
    step = built(kinds=ALL)
    for _ in range(1000):
        text = "".join(draw.choices(PIECES, k=draw.randrange(1, 12)))
        found = step.find(text)
        assert found == sorted(found, key=lambda it: it[0])
        left, done = [], 0
        for (start, end), kind in found:
            assert done <= start < end
            left += [text[done:start], f"<{kind.name.upper()}>"]
            done = end
        assert step.apply(Page("a", text)) == Kept("".join([*left, text[done:]]), Counter(kind.name for _, kind in found))


@pytest.mark.parametrize("text", ["", " ", "a", "\ud800", "中文没有", "no data\n" * 100, "<EMAIL> and <PHONE>"])
def test_what_has_none_stays(text: str) -> None:
    assert kept(text, kinds=ALL) == Kept(text)


LONG = 100_000
UNITS = [
    "a@", "@a.", "1", "-", "1-", "1 ", "1.", "+1", "(1", "a.", ":", "a:", "eyJ", "eyJaaaaaaaa.", "sk-", "=", "key=", "AKIA", "token=aB3",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nAAAAAAAAAAAAAAAA", "://a:", "://a:b@", "AB12", "tel 1", "电话1", "a(at)", "aa:",
    "0123 ", "4111 ", "1.2.3.4 ", "1.2.3.4.", "\n1234567", "phone 212 555 7890 ", "11010519491231 ", "GB82 1234567", "<EMAIL>1", " ", "\n", "x",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear(unit: str) -> None:
    """What reads every character once more for each of them would take minutes of this process's time."""
    start = time.process_time()
    built(kinds=ALL).apply(Page("a", unit * (LONG // len(unit))))
    assert time.process_time() - start < 5


def test_a_long_line_without_an_end() -> None:
    kinds: dict[Personal, object] = {kind: FINDERS[kind]("1" * 100_000 + "@" + "a" * 100_000) for kind in ALL}
    assert not any(kinds.values())


def test_it_goes_to_other_processes_and_says_what_it_depends_on() -> None:
    step = pickle.loads(pickle.dumps(built()))
    assert step.apply(Page("a", "a@b.com")).text == "<EMAIL>"
    prints = [
        built(), built(kinds=[Personal.email]), built(style=Instead.drop), built(private_ips=True),
        built(style=Instead.fake, fake_key="a"), built(style=Instead.fake, fake_key="b"),
    ]  # fmt: skip
    assert len({step.fingerprint() for step in prints}) == len(prints)
    assert built(kinds=[Personal.email, Personal.ip]).fingerprint() == built(kinds=[Personal.ip, Personal.email]).fingerprint()
    assert "secret" not in built(style=Instead.fake, fake_key="secret").fingerprint()


def test_local_networks_by_option() -> None:
    assert kept("host 10.1.200.3").text == "host 10.1.200.3"
    assert kept("host 10.1.200.3", private_ips=True).text == "host <IP>"


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"kinds": []}, "kinds"),
        ({"style": Instead.fake}, "fake_key"),
        ({"fake_key": "k"}, "fake_key"),
        ({"private_ips": True, "kinds": [Personal.email]}, "private_ips"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Redact(**options)  # type: ignore[arg-type]
    assert [problem.path for problem in caught.value.problems] == [path]
