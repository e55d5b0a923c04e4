"""A tokenizer that is taught a template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import TURNS, source_of, trained

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.form.template.equip import equip, template_of
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.form.template.spec import PLAIN, Jinja, JinjaFile, Own, TemplateSpec
from llmfactory.data.tokenizer.bytes import END, ByteTokenizer
from llmfactory.data.tokenizer.tokenizer import load


def test_missing_tokens_are_added_and_an_end_of_turn_stops_the_model(tmp_path: Path) -> None:
    plain = trained()
    source, specials = source_of("chatml")
    made = equip(plain, source, specials, plain.vocab_size + 2)
    assert made.vocab_size == plain.vocab_size + 2
    end = made.specials()["<|im_end|>"]
    assert end >= plain.vocab_size
    assert made.usage.stop_ids == (plain.end_id, end)
    assert plain.usage.chat_template is None, "the one that was given is as it was"
    assert "<|im_end|>" not in plain.specials()
    assert plain.encode("<|im_end|> words") == made.encode("<|im_end|> words"), "text spells no special token"
    made.save(tmp_path / "kept")
    kept = load(tmp_path / "kept")
    assert kept.usage == made.usage
    assert chat_ids(kept, TURNS[:1]) == chat_ids(made, TURNS[:1])
    again = equip(kept, source, specials, made.vocab_size)
    assert (again.vocab_size, again.usage) == (made.vocab_size, made.usage), "nothing is added twice"


def test_no_room_is_told() -> None:
    plain = trained()
    source, specials = source_of("chatml")
    with pytest.raises(UserError, match=rf"<\|im_start\|> <\|im_end\|>.*has {plain.vocab_size + 2} ids.*template=plain"):
        equip(plain, source, specials, plain.vocab_size + 1)
    with pytest.raises(UserError, match=r"can have no more.*template=plain"):
        equip(ByteTokenizer(), source, specials, 1000)


def test_bytes_are_taught_plain_words() -> None:
    made = equip(ByteTokenizer(), None, (), 257)
    assert made.usage.chat_template == PLAIN
    assert made.usage.stop_ids == (END,)
    begin, *said = chat_ids(made, [{"role": "user", "content": "a"}])
    assert (begin, bytes(said)) == (END, b"User: a\n\nAssistant:")


def test_the_tokenizer_s_own_template_is_used_where_it_has_one() -> None:
    plain = trained()
    own = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{% if add_generation_prompt %}assistant={% endif %}"
    plain.usage = replace(plain.usage, chat_template=own)
    assert equip(plain, None, (), 1000).usage.chat_template == own
    assert template_of(plain, None).source == own
    assert template_of(trained(), None).source == PLAIN
    assert equip(plain, PLAIN, (), 1000).usage.chat_template == PLAIN
    plain.usage = replace(plain.usage, chat_template="{{ raise_exception('never') }}")
    with pytest.raises(UserError, match="never"):
        equip(plain, None, (), 1000)


def test_templates_by_option(tmp_path: Path) -> None:
    assert Own().read() == (None, ())
    assert Jinja(source="x", specials=["<a>"]).read() == ("x", ("<a>",))
    assert Jinja().read()[0] == PLAIN
    path = tmp_path / "chat_template.jinja"
    path.write_text("{{ messages }}é", encoding="utf-8")
    assert JinjaFile(file=str(path), specials=["<b>"]).read() == ("{{ messages }}é", ("<b>",))
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template.jinja is no chat template: not UTF-8"):
        JinjaFile(file=str(path)).read()
    with pytest.raises(UserError, match=r"cannot read the chat template .*missing"):
        JinjaFile(file=str(tmp_path / "missing")).read()
    for build in (lambda: Jinja(specials=[""]), lambda: JinjaFile(file="x", specials=[""])):
        with pytest.raises(ConfigError, match="a special token has no letters"):
            build()
    with pytest.raises(TypeError, match="is a base"):
        TemplateSpec().read()
