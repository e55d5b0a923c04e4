"""stage=generate: what is printed, what comes back, and the same seed giving the same texts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import gguf_file

from llmfactory.checkpoint.names.published import open_published
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.tokenizer import Usage
from llmfactory.inference.sampler import Sampling
from llmfactory.stage import generate as generate_module
from llmfactory.stage.generate import printable, prompt_ids
from llmfactory.stage.initial import load_tokenizer
from llmfactory.stage.spec import Generate


def run(job, **options):
    stage = Generate(**{"prompt": "The", "max_tokens": 12, **options})
    return stage.build().run(replace(job, stage=stage), None)


def test_prints_prompt_and_continuations(job, capsys):
    result = run(job, samples=3)
    out = capsys.readouterr().out
    first, second, third = result["texts"]
    first, second, third = map(printable, result["texts"])
    assert out == (f"The{first}\n\n--- sample 2 of 3\nThe{second}\n\n--- sample 3 of 3\nThe{third}\n")
    assert len({first, second, third}) == 3


def test_the_seed_decides(job, capsys):
    once, again = run(job), run(job)
    other = run(replace(job, seed=1))
    assert once == again
    assert once["texts"] != other["texts"]
    assert run(replace(job, seed=1), temperature=0.0)["texts"] == run(job, temperature=0.0)["texts"]


def test_the_options_reach_the_sampler(job, monkeypatch):
    asked = {}

    def fake(model, prompts, **options):
        asked.update(options, prompts=prompts)
        return [[65] for _ in prompts]

    monkeypatch.setattr(generate_module, "generate", fake)
    run(job, max_tokens=7, temperature=0.25, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5, samples=2)
    sampling = Sampling(temperature=0.25, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5)
    assert {name: asked[name] for name in ("max_tokens", "sampling", "seed")} == {
        "max_tokens": 7,
        "sampling": sampling,
        "seed": job.seed,
    }
    assert len(asked["prompts"]) == 2


def test_a_question_goes_through_the_chat_template(job, tmp_path, monkeypatch, capsys):
    """And ends at any of the ids at which the model stops, wherever it came from."""
    path = gguf_file(tmp_path / "m.gguf")
    tokenizer = load_tokenizer(path, 320)
    job = replace(job, init=str(path), model=open_published(path).spec)
    asked = []

    def fake(model, prompts, on_token, **options):
        asked.append(tokenizer.decode(prompts[0]))
        for token in [*tokenizer.encode("some words"), tokenizer.usage.stop_ids[0], *tokenizer.encode("more")]:
            if on_token(0, token):
                break
        return [[]]

    monkeypatch.setattr(generate_module, "generate", fake)
    assert run(job, prompt="Which words? ", chat=True)["texts"] == ["some words"]
    assert capsys.readouterr().out == "Which words? \nsome words\n"
    run(job, prompt="Which?", chat=True, system="Be brief.")
    run(job, prompt="Which?")
    assert asked == ["user: Which words?\nassistant:", "system: Be brief.\nuser: Which?\nassistant:", "Which?"]
    with pytest.raises(ConfigError, match=r"system = 'x': a text that is continued has no system message"):
        Generate(prompt="x", system="x")


@pytest.mark.parametrize(("begin", "text", "expected"), [((7, 8), "a", [7, 8, 65]), ((), "a", [65]), ((), "", [256])])
def test_a_text_begins_as_the_model_was_taught(begin, text, expected):
    tokenizer = ByteTokenizer()
    tokenizer.usage = Usage(begin, (256,))
    assert prompt_ids("decoder", tokenizer, Generate(prompt=text.upper())) == expected


def test_what_is_missing_is_named(job, tmp_path):
    with pytest.raises(ConfigError, match="init = None: generating needs a trained model"):
        run(replace(job, init=None))
    shard = next((tmp_path / "run").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        run(job)


def test_a_terminal_obeys_nothing_that_a_model_writes():
    assert printable("a\x1b[2Jb\n\tü\r") == "a\ufffd[2Jb\n\tü\ufffd"


def test_stop_strings_end_a_continuation(job, capsys):
    whole = run(job, max_tokens=40)["texts"][0]
    stop = whole[5:7]
    text = run(job, max_tokens=40, stop=[stop])["texts"][0]
    assert text == whole[: whole.index(stop)]
    assert capsys.readouterr().out.endswith(f"The{printable(text)}\n")


def test_beams(job, capsys):
    greedy = {"temperature": 0.0, "top_k": None}
    best = [run(job, beams=3, length_penalty=penalty, **greedy)["texts"] for penalty in (1.0, 1.0)]
    assert best[0] == best[1]
    assert capsys.readouterr().out == 2 * f"The{printable(best[0][0])}\n"
    with pytest.raises(ConfigError, match="beam search"):
        run(job, beams=3)
    with pytest.raises(ConfigError, match="beams=1 has none"):
        run(job, length_penalty=2.0)


def test_the_length_penalty_reaches_the_search(job, monkeypatch):
    asked = {}
    monkeypatch.setattr(generate_module, "beam_search", lambda model, prompts, **options: asked.update(options) or [[65]])
    run(job, beams=3, length_penalty=0.5, temperature=0.0, top_k=None)
    assert (asked["beams"], asked["length_penalty"]) == (3, 0.5)


def test_what_was_cut_is_told_in_words(job, capsys):
    run(job, prompt="The " * 30, max_tokens=50)
    assert capsys.readouterr().err == (
        "note: the model was made for rows of 64 tokens: prompts keep their last 32 tokens and all new tokens end there\n"
    )


def test_weights_that_are_no_numbers_are_named(job, monkeypatch):
    from llmfactory.stage import initial

    def broken(path, model, *others):
        model.norm.weight.data[3] = float("nan")

    monkeypatch.setattr(initial.io, "load_weights", broken)
    with pytest.raises(UserError, match=r"the tensor norm\.weight holds numbers that are infinite or none"):
        run(job)


def test_an_empty_stop_string_is_refused(job):
    with pytest.raises(ConfigError, match="cannot end one"):
        run(job, stop=[""])
