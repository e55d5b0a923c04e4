"""docs/architectures.md is what the command prints. `pytest --update-golden` rewrites it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.stage.architectures import COLUMNS, PAGE, bias, heads, line, position
from llmfactory.stage.describe import describe

FILE = Path(__file__).resolve().parents[2] / "docs/architectures.md"
HINT = "accept with pytest --update-golden tests/stage/test_architectures.py"
AS_TABLE = ["stage=describe", "stage.presets=true"]


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest) -> str:
    """The committed page; with --update-golden it is written first."""
    if request.config.getoption("--update-golden"):
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(describe(compose_job(AS_TABLE).job, {}) + "\n", encoding="utf-8")
    return FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("preset", options("model"))
def test_the_page_is_the_generated_one(preset: str, page: str) -> None:
    """Line by line, so that a change names its preset."""
    row = f"| {' | '.join(line(preset, model(preset)))} |"
    assert row in page.splitlines(), f"{HINT}: {row}"


def test_every_preset_has_one_line_and_nothing_else_has(page: str) -> None:
    head, _, rows = page.removesuffix("\n").partition("\n| ")
    assert head + "\n" == PAGE
    first = [row.split(" | ")[0].removeprefix("| ") for row in rows.splitlines()]
    assert first == [next(iter(COLUMNS)), ":--", *options("model")], HINT


def test_the_command_prints_the_page(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfactory.stage.architectures.options", lambda group: ["gpt2", "t5_small"])
    printed = describe(compose_job(AS_TABLE).job, {})
    kept = [text for text in page.splitlines() if not text.startswith("| ") or text.startswith(("| preset", "| :--"))]
    assert printed.splitlines() == kept + [text for text in page.splitlines() if text.startswith(("| gpt2 |", "| t5_small |"))]


def model(preset: str, *overrides: str):
    return compose_job([f"model={preset}", "stage=describe", *overrides]).job.model


def test_cells_of_known_models() -> None:
    """As the papers have them."""
    assert line("llama2_70b", model("llama2_70b"))[1:] == [
        "decoder",
        "rms_norm",
        "pre_norm",
        "rope 10000",
        "silu, gated",
        "no",
        "80",
        "64 (8)",
        "8192",
        "28672",
        "4,096",
        "68,976,648,192",
    ]
    gpt2 = line("gpt2", model("gpt2"))
    assert gpt2[2:7] == ["layer_norm", "pre_norm", "learned", "gelu_tanh", "yes"]
    mixtral = line("mixtral_8x7b", model("mixtral_8x7b"))
    assert mixtral[5] == "silu, gated, 2 of 8"
    assert line("qwen15_moe_a2_7b", model("qwen15_moe_a2_7b"))[5:7] == ["silu, gated, 4 of 60 + shared", "qkv"]


def test_parts_that_differ() -> None:
    t5 = line("t5_small", model("t5_small"))
    assert t5[1] == "encoder-decoder"
    assert t5[4] == "t5_bias"
    lstm = line("lstm_medium", model("lstm_medium"))
    assert lstm[1:9] == ["recurrent", "none", "lstm", "-", "-", "yes", "2", "-"]
    linear = line("linear_transformer_tiny", model("linear_transformer_tiny"))
    assert linear[5:9] == ["gelu_tanh", "feed-forward", "4", "4"]
    assert line("llava_1_5_7b", model("llava_1_5_7b"))[7:10] == ["32 / 24", "32 / 16", "4096 / 1024"]
    changed = model("gpt2_tiny", "model.attention.qkv_bias=false")
    assert bias(changed.attention, changed.ffn) == "output, feed-forward"
    assert heads(changed.attention) == "4"
    assert position(model("llama_tiny", "model.position.share=0.25").position) == "rope 10000 of 25%"
