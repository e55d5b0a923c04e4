"""Numbers with check digits: made by the rules, found, and not found with a digit changed."""

from __future__ import annotations

import datetime
import random

import pytest

from llmfactory.data.clean.identifiers import IBAN_LENGTHS, cards, ibans, luhn, mod97, resident_check, residents, ssns, zones

BORDERS = [("", ""), ("号", "。"), (" ", ","), ("（", "）"), ('"', '"'), ("的", "了"), ("\n", "\n"), (": ", ".")]


def luhn_reference(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def with_luhn(digits: str) -> str:
    return next(digits + str(last) for last in range(10) if luhn_reference(digits + str(last)))


def drawn(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("0123456789", k=count))


def grouped(digits: str, gap: str) -> str:
    return gap.join(digits[start : start + 4] for start in range(0, len(digits), 4))


def test_luhn() -> None:
    draw = random.Random(0)
    assert luhn("79927398713")  # the example of ISO/IEC 7812
    assert not luhn("79927398710")
    for _ in range(500):
        digits = drawn(draw, draw.randrange(1, 20))
        assert luhn(digits) == luhn_reference(digits)


ISSUED = {
    "4": 16,
    "51": 16,
    "55": 16,
    "2221": 16,
    "2720": 16,
    "34": 15,
    "37": 15,
    "6011": 16,
    "65": 16,
    "3528": 16,
    "62": 19,
    "36": 14,
}


@pytest.mark.parametrize("prefix", ISSUED)
def test_cards_are_found_wherever_they_stand(prefix: str) -> None:
    draw, length = random.Random(prefix), ISSUED[prefix]
    for before, behind in BORDERS:
        digits = with_luhn(prefix + drawn(draw, length - 1 - len(prefix)))
        shown = [digits] + ([grouped(digits, " "), grouped(digits, "-")] if length in (16, 19) else [])
        if length == 15:
            shown.append(f"{digits[:4]} {digits[4:10]} {digits[10:]}")
        for number in shown:
            text = f"卡{before}{number}{behind}"
            assert [text[slice(*span)] for span in cards(text)] == [number]
            wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
            assert not cards(f"{before}{wrong}{behind}")


@pytest.mark.parametrize(
    "text",
    [
        "41111111111111111",  # 17 digits
        "x4111111111111111",
        "4111111111111111a",
        "0.4111111111111111",
        "4111111111111111.5",
        "4111-1111 1111-1111",  # other gaps
        "1111 1111 1111 1117",  # no issuer
        with_luhn("9" + "1" * 14),
        "4111 1111 1111 111",
        "2026-01-02",
    ],
)
def test_what_is_no_card(text: str) -> None:
    assert not cards(text)


def test_a_number_behind_a_card_is_not_part_of_it() -> None:
    assert cards("4111 1111 1111 1111 123") == [(0, 19)]
    assert cards("4111111111111111 123") == [(0, 16)]
    assert cards("4111 1111 1111 1111 5500 0055 5555 5559") == [(0, 19), (20, 39)]


def made_iban(draw: random.Random, country: str) -> str:
    account = drawn(draw, IBAN_LENGTHS[country] - 4)
    return f"{country}{98 - mod97(f'{country}00{account}'):02d}{account}"


def test_ibans() -> None:
    draw = random.Random(0)
    for country in IBAN_LENGTHS:
        for before, behind in BORDERS:
            number = made_iban(draw, country)
            for shown in (number, grouped(number, " ")):
                text = f"{before}{shown}{behind}"
                assert ibans(text) == [(len(before), len(before) + len(shown))], text
                last = str((int(shown[-1]) + 1) % 10)
                assert not ibans(f"{before}{shown[:-1]}{last}{behind}")
    assert ibans("GB82 WEST 1234 5698 7654 32, or so") == [(0, 27)]
    assert [span[0] for span in ibans("DE89370400440532013000 GB82WEST12345698765432")] == [0, 23]
    for text in ("XX82WEST12345698765432", "gb82west12345698765432", "AGB82WEST12345698765432", "GB82WEST123456987654321"):
        assert not ibans(text), text


def test_social_security() -> None:
    for text in ("123-45-6789", "（123-45-6789）", "SSN 123456789", "ssn: 123 45 6789", "Social Security Number is 123456789"):
        assert len(ssns(text)) == 1, text
    for text in (
        "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "123456789", "123 45 6789", "123-45-67890",
        "1123-45-6789", "123-45-6789-1", "0-123-45-6789", "123-456-789", "<SSN> 123456789",
    ):  # fmt: skip
        assert not ssns(text), text


def resident(draw: random.Random, day: datetime.date) -> str:
    digits = f"{draw.choice(['110105', '440301', '820000', '654321', '310115'])}{day:%Y%m%d}{drawn(draw, 3)}"
    # ISO 7064 mod 11-2, in its recursive form: the value of all 18 is 1 modulo 11.
    value = 0
    for digit in digits:
        value = (value + int(digit)) * 2 % 11
    return digits + "0123456789X"[(12 - value) % 11]


def test_residents() -> None:
    draw = random.Random(0)
    assert resident_check("11010519491231002") == "X"  # the example of GB 11643
    for number in range(400):
        day = datetime.date(1900, 1, 1) + datetime.timedelta(days=draw.randrange(45000))
        before, behind = BORDERS[number % len(BORDERS)]
        found = resident(draw, day)
        text = f"证{before}{found if number % 2 else found.lower()}{behind}号"
        assert residents(text) == [(1 + len(before), 19 + len(before))], text
        wrong = found[:16] + str((int(found[16]) + 1) % 10) + found[17]
        assert not residents(f"{before}{wrong}{behind}")
        old = found[:6] + found[8:17]
        assert len(residents(f"旧证{before}{old}{behind}")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "11010519491331002X",  # month
        "110105194902300021",  # day
        "990105194912310021",  # province
        "11010519491231002x1",
        "a11010519491231002X",
        "110105491331002",
        "110105.491231002",
        "110105491231002.5",
    ],
)
def test_who_is_no_resident(text: str) -> None:
    assert not residents(text)


def test_zones_have_seven_digits() -> None:
    assert zones("123456 and 1-2-3-4-5-6 and 1 2 (3) 4.5/6–7 and 1234567") == ((27, 42), (47, 54))
    assert zones("") == ()
