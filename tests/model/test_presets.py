"""The presets of published families have exactly the published sizes, counted without allocating a weight."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import FAMILIES
from llmfactory.config.compose import compose_job
from llmfactory.config.toy import small_model
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.spec import Spec, walk
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.count import parameters
from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Learned2d, Rope2d
from llmfactory.model.spec import ModelSpec

TWO = (Learned2d, Rope2d)
"""Positions that ask for two numbers a token."""

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "mixtral_8x7b": 46_702_792_704,
    "deepseek_v2_lite": 15_706_484_224,
    "qwen15_moe_a2_7b": 14_315_784_192,
    # transformers 5.23, the class of each family on the meta device
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt1": 116_534_784,
    "gpt_neox_20b": 20_554_567_680,
    "gpt_j_6b": 6_050_882_784,
    "moss_16b": 16_717_980_160,
    "opt_125m": 125_239_296,
    "opt_1_3b": 1_315_758_080,
    "opt_2_7b": 2_651_596_800,
    "opt_6_7b": 6_658_473_984,
    "opt_13b": 12_853_473_280,
    "opt_30b": 29_974_540_288,
    "opt_66b": 65_719_701_504,
    "opt_175b": 174_604_468_224,
    "opt_350m": 331_196_416,
    "bloom_560m": 559_214_592,
    "bloom_1_1b": 1_065_314_304,
    "bloom_1_7b": 1_722_408_960,
    "bloom_3b": 3_002_557_440,
    "bloom_7_1b": 7_069_016_064,
    "bloom_176b": 176_247_271_424,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_30b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_13b": 13_015_864_320,
    "llama3_1_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_405b": 405_853_388_800,
    "mistral_7b": 7_241_732_096,
    "phi_2": 2_779_683_840,
    "qwen2_0_5b": 494_032_768,
    "qwen2_1_5b": 1_543_714_304,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "falcon_7b": 6_921_720_704,
    "falcon_40b": 41_303_293_952,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "baichuan_7b": 7_000_559_616,
    "baichuan_13b": 13_264_901_120,
    "baichuan2_7b": 7_505_973_248,
    "baichuan2_13b": 13_896_668_160,
    "internlm_20b": 20_088_714_240,
    "internlm_7b": 7_321_948_160,
    "chatglm2_6b": 6_243_584_000,
    # the published weights, counted by their authors
    "chatglm_6b": 6_173_286_400,
    # tests/parity/test_transformer_xl.py: the layers of the published weights, all words at the full width
    "transfo_xl_wt103": 519_997_911,
}


PAPERS: dict[str, tuple[float, float]] = {
    # Brown et al. 2020, table D.1
    "gpt3_125m": (125e6, 0.01),
    "gpt3_350m": (356e6, 0.01),
    "gpt3_760m": (760e6, 0.01),
    "gpt3_1_3b": (1320e6, 0.01),
    "gpt3_2_7b": (2650e6, 0.01),
    "gpt3_6_7b": (6660e6, 0.01),
    "gpt3_13b": (12850e6, 0.01),
    "gpt3_175b": (174600e6, 0.01),
    # Chowdhery et al. 2022, table 1
    "palm_8b": (8.63e9, 0.001),
    "palm_62b": (62.50e9, 0.001),
    "palm_540b": (540.35e9, 0.001),
    # Rae et al. 2021, table 1; Hoffmann et al. 2022, table 4
    "gopher_280b": (280e9, 0.01),
    "chinchilla_70b": (70e9, 0.01),
    # Smith et al. 2022, section 2.3
    "mt_nlg_530b": (530e9, 0.01),
    "pangu_alpha": (207e9, 0.01),  # Zeng et al. 2021, table 1
    "jurassic1_178b": (178e9, 0.01),
    "lamda_137b": (137e9, 0.01),
    # Taylor et al. 2022, table 5, whose numbers are names: 12 n_layers dim^2 alone is 1.208e9 and 120.8e9
    "galactica_125m": (125e6, 0.01),
    "galactica_1_3b": (1.3e9, 0.012),
    "galactica_6_7b": (6.7e9, 0.01),
    "galactica_30b": (30e9, 0.01),
    "galactica_120b": (120e9, 0.012),
    # names, too, of what the published configs say: Du et al. 2022; Zeng et al. 2022; OpenBMB 2023
    "glm_10b": (10e9, 0.013),
    "glm_130b": (130e9, 0.011),
    "cpm_bee_10b": (10e9, 0.04),
}
"""Number of parameters that the paper says, and how near ours is to it."""


SAID_BY = {
    "gpt1": "openai-gpt",
    "gpt2": "gpt2",
    "gpt3": "gpt2",
    "gpt_neox": "gpt_neox",
    "gpt_j": "gptj",
    "moss": "codegen",
    "opt": "opt",
    "bloom": "bloom",
    "llama": "llama",
    "llama2": "llama",
    "llama3": "llama",
    "llama3_1": "llama",
    "smollm2": "llama",
    "mistral": "mistral",
    "phi_2": "phi",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "falcon": "falcon",
    "baichuan": "baichuan",
    "baichuan2": "baichuan",
    "internlm": "internlm",
    "chatglm": "chatglm",
    "chatglm2": "chatglm",
    "mixtral": "mixtral",
    "qwen15_moe": "qwen2_moe",
    "deepseek_v2": "deepseek_v2",
}
"""Families that have words for the presets whose names begin so; the longest beginning counts."""


def family_named(preset: str) -> str | None:
    starts = [start for start in SAID_BY if preset == start or preset.startswith(f"{start}_")]
    return SAID_BY[max(starts, key=len)] if starts else None


@functools.cache
def spec_of(preset: str) -> ModelSpec:
    return compose_job([f"model={preset}", "stage=describe"]).job.model


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes(preset):
    spec = spec_of(preset)
    with torch.device("meta"):
        assert parameters(spec.build()) == PUBLISHED[preset]


@pytest.mark.parametrize("preset", PAPERS)
def test_sizes_in_papers(preset):
    spec = spec_of(preset)
    said, tolerance = PAPERS[preset]
    with torch.device("meta"):
        assert parameters(spec.build()) == pytest.approx(said, rel=tolerance)


def with_widths(spec):
    """With the width of the heads said where it is the usual one."""
    attention = spec.attention
    if not isinstance(attention, Gqa):
        return spec
    return dataclasses.replace(spec, attention=dataclasses.replace(attention, head_dim=attention.head_width(spec.dim)))


@pytest.mark.parametrize("preset", [name for name in sorted({**PUBLISHED, **PAPERS}) if family_named(name)])
def test_a_preset_is_the_model_of_its_config(preset):
    """What a family writes of it and reads again is the preset, but for how it is trained."""
    spec, family = spec_of(preset), next(family for family in FAMILIES if family_named(preset) in family.types)
    back = family.spec(family.config(spec))
    training = {name: getattr(spec, name) for name in ("init_std", "dropout", "depth_scaled_init")}
    assert with_widths(dataclasses.replace(back, **training)) == with_widths(spec)


SIZES = {"vocab_size", "dim", "n_layers", "max_positions", "n_heads", "n_kv_heads", "head_dim", "hidden", "width", "window"}
SIZES |= {"clamp", "memory"}
SIZES |= {"n_experts", "shared_hidden", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}
"""Fields that laptop size changes."""


@pytest.mark.parametrize("preset", sorted({**PUBLISHED, **PAPERS}))
def test_laptop_size_keeps_the_architecture_and_runs(preset):
    """The same kinds of parts, ratios, patterns and ties; a forward and a backward that reach every weight."""
    spec = spec_of(preset)
    small = small_model(spec)
    assert small == small_model(small)
    for (path, part), (other_path, other) in zip(walk(spec), walk(small), strict=True):
        assert (path, type(part)) == (other_path, type(other))
        for field in dataclasses.fields(part):
            before, after = getattr(part, field.name), getattr(other, field.name)
            if field.name in SIZES:
                assert (before is None) == (after is None), f"{path}.{field.name}"
            elif not isinstance(before, (Spec, dict)):
                assert before == after, f"{path}.{field.name}"
        if isinstance(part, Gqa) and part.n_kv_heads:
            assert part.n_heads // part.n_kv_heads == other.n_heads // other.n_kv_heads
    model = small.build()
    assert parameters(model) < 3e6
    if small.graph != "decoder":
        return
    initialize(model, 0)
    tokens = torch.randint(0, small.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    place = torch.arange(24).expand(2, 24)
    positions = torch.stack((place.clamp_max(9), (place - 9).clamp_min(0)), 1) if isinstance(small.position, TWO) else place
    logits = model.head(
        model(tokens, model.context({"tokens": tokens, "positions": positions, "segments": torch.ones_like(tokens)}))
    )
    assert logits.shape == (2, 24, small.vocab_size)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    unmoved = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()]
    assert unmoved == []


@pytest.mark.parametrize(
    ("preset", "overrides", "kinds"),
    [
        ("llama_tiny", ["model/position=alibi"], ("LinearBias", "PreNormBlock")),
        ("llama3_8b", ["model/position=alibi"], ("LinearBias", "PreNormBlock")),
        ("gpt2", ["model/position=rope"], ("RotaryPosition", "PreNormBlock")),
        ("gpt2", ["model/block=parallel_shared", "model/norm=rms_norm"], ("LearnedPosition", "ParallelBlock")),
        ("bloom_560m", ["model/position=rope_llama3_1", "model/block=sandwich"], ("RotaryPosition", "SandwichBlock")),
        ("falcon_7b", ["model/block=deep_norm", "model/ffn=swiglu"], ("RotaryPosition", "DeepNormBlock")),
        ("mistral_7b", ["model/position=t5_bias", "model/block=post_norm"], ("BucketBias", "PostNormBlock")),
        ("gemma2_2b", ["model/position=alibi", "model/ffn=moe", "model/head=lm"], ("LinearBias", "SandwichBlock")),
    ],
)
def test_parts_of_another_family_compose_and_run(preset, overrides, kinds):
    """LLaMA with ALiBi, GPT-2 with RoPE: parts are chosen by an override, and the model learns."""
    spec = compose_job([f"model={preset}", *overrides, "toy=true", "stage=describe"]).job.model
    model = spec.build()
    assert (type(model.position).__name__, type(model.blocks[0]).__name__) == kinds
    initialize(model, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    tokens = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(0))
    context = Context(torch.arange(16).expand(4, 16), CausalMask(16))
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model.head(model(tokens[:, :-1], context)).flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
