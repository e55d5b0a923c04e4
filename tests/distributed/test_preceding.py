"""Prompts, prefixes and adapters: the same optimizer steps in micro-batches and under layouts that cut them in different ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pool
import proof
import pytest
import torch
from cases import LAYOUTS, Case, make
from proof import EXACT, check_reference, insist, train_job

from llmfactory.config import rules
from llmfactory.peft.adapter_spec import Placement
from llmfactory.peft.prompt_spec import PromptEncoder, PromptStart
from llmfactory.peft.spec import Adapter, AdapterSpec, Prefix, Prompt, PTuning, PTuningV2

pytestmark = pytest.mark.dist

METHODS: dict[str, tuple[str, str, AdapterSpec]] = {
    "prompt": ("tp x ddp", "llama, causal", Prompt(tokens=3, start=PromptStart.vocabulary)),
    "p_tuning": ("zero3", "gpt2, prefix", PTuning(tokens=2, hidden=6, encoder=PromptEncoder.lstm)),
    "p_tuning, encoder": ("hsdp", "bart, denoising", PTuning(tokens=2, hidden=6)),
    "prefix": ("tp_sp x zero3", "llama, causal", Prefix(tokens=3, hidden=6)),
    "prefix, one head for two": ("tp of four", "llama, causal", Prefix(tokens=3, hidden=6)),
    "p_tuning_v2, one head for two": ("tp of four", "llama, causal", PTuningV2(tokens=3)),
    "p_tuning_v2, both sides": ("tp x ddp", "t5, spans", PTuningV2(tokens=2, encoder=True, cross=True)),
    "prefix beside experts": ("ep_tp", "mixture, causal", Prefix(tokens=2, hidden=6)),
    "houlsby": ("tp_sp x zero3", "mixture, causal", Adapter(width=4)),
    "pfeiffer": ("pp x tp", "gpt2, prefix", Adapter(width=4, placement=Placement.pfeiffer)),
    "pfeiffer, split backward": ("pp_zero_bubble", "gpt2, prefix", Adapter(width=4, placement=Placement.pfeiffer)),
    "parallel": ("cp x tp_sp", "llama, causal", Adapter(width=4, placement=Placement.parallel)),
}
AGAIN = {"prefix, both sides": ("zero3", "t5, spans", Prefix(tokens=2, hidden=6, encoder=True, cross=True))}
"""With blocks computed again in the backward pass."""


SOON = ("prompt", "prefix, one head for two", "p_tuning_v2, both sides", "houlsby", *AGAIN)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in SOON else pytest.mark.slow) for name in (*METHODS, *AGAIN)]
)
def test_a_layout_makes_the_same_steps(method: str, tmp_path: Path) -> None:
    layout, workload, spec = (METHODS | AGAIN)[method]
    case = Case(layout, workload, "packed", "recompute" if method in AGAIN else "plain")
    job = dataclasses.replace(make(case, tmp_path), peft=spec)
    assert not rules.check(job)
    alone = dataclasses.replace(make(case.reference, tmp_path), peft=spec)
    numbers = train_job(alone, tmp_path / "alone")
    check_reference(numbers, case)
    known = tmp_path / "known.pt"
    torch.save(dataclasses.asdict(numbers), known)
    for found in pool.run(LAYOUTS[layout].world, proof.prove, case, tmp_path, "fp64", job, known):
        insist(found, EXACT)
