"""The presets of published families have exactly the published sizes, counted without allocating a weight."""

from __future__ import annotations

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.model.count import parameters

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "mixtral_8x7b": 46_702_792_704,
    "qwen15_moe_a2_7b": 14_315_784_192,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes(preset):
    spec = compose_job([f"model={preset}", "stage=describe"]).job.model
    with torch.device("meta"):
        assert parameters(spec.build()) == PUBLISHED[preset]
