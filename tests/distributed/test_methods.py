"""Methods that train a part of a model, under layouts that cut what they add in different ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pool
import proof
import pytest
import torch
from cases import LAYOUTS, Case, make
from proof import BF16, EXACT, WHAT, check_reference, insist, train_job

from llmfactory.config import rules
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.qlora_spec import Bits
from llmfactory.peft.spec import Adalora, AdapterSpec, Bitfit, Dora, Freeze, Ia3, Lora, Qlora
from llmfactory.precision.spec import Bf16Mixed, Fp16Mixed, PrecisionSpec

pytestmark = pytest.mark.dist

METHODS: dict[str, tuple[str, str, AdapterSpec]] = {
    "lora beside experts": ("ep_tp", "mixture, causal", Lora(rank=2, alpha=20.0, start=Start.gaussian)),
    "pissa": ("tp_sp x zero3", "llama, causal", Lora(rank=2, start=Start.pissa)),
    "dora": ("pp x zero1", "gpt2, prefix", Dora(rank=2, alpha=8.0)),
    "ia3": ("tp_sp x zero3", "gpt2, prefix", Ia3(outputs=["k", "v", "o"], inputs=["down", "q"])),
    "qlora": ("pp x zero1", "gpt2, prefix", Qlora(rank=2, alpha=8.0)),
    "int8": ("zero3", "llama, causal", Qlora(rank=2, base=Bits.int8)),
    "adalora": ("cp x zero1", "llama, causal", Adalora(rank=3, target_rank=1, total_steps=3)),
    "bitfit": ("pp x tp", "gpt2, prefix", Bitfit()),
    "freeze": ("pp x zero1", "gpt2, prefix", Freeze(last_layers=1)),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_layout_makes_the_same_steps(method: str, tmp_path: Path) -> None:
    layout, workload, spec = METHODS[method]
    case = Case(layout, workload, "packed", "plain")
    job = dataclasses.replace(make(case, tmp_path), peft=spec)
    assert not rules.check(job)
    alone = dataclasses.replace(make(case.reference, tmp_path), peft=spec)
    numbers = train_job(alone, tmp_path / "alone")
    check_reference(numbers, case)
    known = tmp_path / "known.pt"
    torch.save(dataclasses.asdict(numbers), known)
    for found in pool.run(LAYOUTS[layout].world, proof.prove, case, tmp_path, "fp64", job, known):
        insist(found, EXACT)


FP16 = Fp16Mixed(init_scale=64.0)
"""Below what overflows here, so that no step is skipped."""
PRECISIONS: dict[str, tuple[str, PrecisionSpec]] = {
    "fp16 under tp": ("tp", FP16),
    "bf16 under zero3": ("zero3", Bf16Mixed()),
    "bf16 under tp": ("tp", Bf16Mixed()),
    "bf16 under ddp": ("ddp", Bf16Mixed()),
    "fp16 under ddp": ("ddp", FP16),
    "fp16 under zero3": ("zero3", FP16),
}
AT_ONCE = list(PRECISIONS)[:2]


@pytest.mark.parametrize("name", [pytest.param(one, marks=[] if one in AT_ONCE else pytest.mark.slow) for one in PRECISIONS])
def test_low_rank_products_in_few_bits(name: str, tmp_path: Path) -> None:
    """As near to a single process of the same precision as the order of sums allows; float16 has more digits than bfloat16."""
    layout, precision = PRECISIONS[name]
    case = Case(layout, "llama, causal", "packed", "lora")
    job, alone = (dataclasses.replace(make(one, tmp_path), precision=precision) for one in (case, case.reference))
    assert not rules.check(job)
    known = tmp_path / "known.pt"
    torch.save(dataclasses.asdict(train_job(alone, tmp_path / "alone")), known)
    for found in pool.run(LAYOUTS[layout].world, proof.prove, case, tmp_path, "fp64", job, known):
        insist(found, BF16, WHAT["bf16_mixed"])
