"""Operations by part, counted by hand."""

from __future__ import annotations

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.stage.part_flops import flops_by_part
from llmfactory.stage.workload import train_flops_of

PAIRS = ["toy=true", "stage=preference", "data=preference", "data.source.files=[x.jsonl]", "data.form.max_tokens=32"]


@pytest.mark.parametrize(("line", "passes"), [(["toy=true"], 3), ([*PAIRS, "stage.reference=precomputed"], 3), (PAIRS, 4)])
def test_a_model_counted_by_hand(line: list[str], passes: int) -> None:
    """Forward and twice as much backward; a reference makes one forward more, in the parts that it goes through."""
    job = compose_job(line).job
    layers, dim, hidden, vocab, pairs = 2, 32, 96, 384, 64 / 2
    products = 4 * dim * dim  # to queries, keys and values, and from them
    scores = 2 * pairs * dim  # with keys, and of values: half of all pairs
    found = {part: flops for part, flops in flops_by_part(job).items() if flops}
    assert found == {
        "attention": pytest.approx(passes * 2 * layers * (products + scores)),
        "ffn": pytest.approx(passes * 2 * layers * 3 * dim * hidden),
        "head": pytest.approx(passes * 2 * dim * vocab),
    }


def test_the_model_without_its_adapters_is_a_reference() -> None:
    """One forward more, in which adapters multiply nothing; not where its answers are known."""
    asked, known = (compose_job([*PAIRS, "peft=lora", *more]).job for more in ([], ["stage.reference=precomputed"]))
    plain = {part: flops / 3 for part, flops in flops_by_part(compose_job(["toy=true"]).job).items()}
    both, once = flops_by_part(asked), flops_by_part(known)
    assert {part: both[part] - once[part] for part in both} == pytest.approx(plain)
    assert sum(once.values()) == pytest.approx(train_flops_of(known)) == pytest.approx(train_flops_of(asked))
