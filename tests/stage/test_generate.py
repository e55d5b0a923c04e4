"""stage=generate: what is printed, what comes back, and the same seed giving the same texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.stage import generate as generate_module
from llmfactory.stage.generate import Writer, printable
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
    run(job, max_tokens=7, temperature=0.25, top_k=3, top_p=0.5, samples=2)
    assert {name: asked[name] for name in ("max_tokens", "temperature", "top_k", "top_p", "seed")} == {
        "max_tokens": 7,
        "temperature": 0.25,
        "top_k": 3,
        "top_p": 0.5,
        "seed": job.seed,
    }
    assert len(asked["prompts"]) == 2


def test_what_is_missing_is_named(job, tmp_path):
    with pytest.raises(ConfigError, match="init = None: generating needs a trained model"):
        run(replace(job, init=None))
    shard = next((tmp_path / "run").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        run(job)


def test_a_character_is_written_when_its_bytes_are_all_there(capsys):
    writer = Writer(ByteTokenizer(), shown=True)
    shown = []
    for byte in "aü€b".encode() + b"\xc3":
        writer.token(0, byte)
        writer.token(1, 65)
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "ü", "", "", "€", "b", ""]
    writer.finish()
    assert capsys.readouterr().out == "\ufffd\n"


def test_a_terminal_obeys_nothing_that_a_model_writes():
    assert printable("a\x1b[2Jb\n\tü\r") == "a\ufffd[2Jb\n\tü\ufffd"
