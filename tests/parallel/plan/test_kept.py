"""What forward passes keep (`kept.py`, `mixers.py`), and how many parameters there are: reckoned against counted ones of real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.config.spec import Job
from llmfactory.core.spec import stem
from llmfactory.model.count import parameters
from llmfactory.model.initialize import initialize
from llmfactory.objective.spec import answers_of, natural
from llmfactory.parallel.plan.arrangement import arrange, pace
from llmfactory.parallel.plan.memory import memory_of
from llmfactory.parallel.plan.pieces import bundled
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.training import Root
from llmfactory.stage.workload import work_of

ROWS = 2
SMALL = ["model.vocab_size=300", "model.dim=48", "model.n_layers=3", "model.max_positions=64", "data.seq_len=32"]
HEADS, FFN = ["model.attention.n_heads=4"], ["model.ffn.hidden=100"]
LLAMA, GPT = ["model=llama_tiny", *SMALL, *HEADS, *FFN], ["model=gpt2_tiny", *SMALL, *HEADS, *FFN]
TOY = ["toy=true", "data.seq_len=32"]
CASES = {
    "llama": ["model=llama_tiny", "data.seq_len=64"],
    "gqa": [*LLAMA, "model.attention.n_kv_heads=2"],
    "gpt2": GPT,
    "dropout": [*GPT, "model.dropout=0.1", "model.attention.dropout=0.1"],
    "alibi": [*LLAMA, "model/position=alibi"],
    "softcap": [*LLAMA, "model.attention.softcap=30"],
    "window": [*LLAMA, "model.attention.window=16"],
    "moe": ["model=llama_tiny", *SMALL, *HEADS, "model/ffn=moe", *FFN, "model.ffn.n_experts=4", "model.ffn.k=2"],
    "switch": ["model=llama_tiny", *SMALL, *HEADS, "model/ffn=switch", *FFN, "model.ffn.n_experts=4"],
    "relu2": [*LLAMA, "model.ffn.activation=relu2"],
    "parallel": [*LLAMA, "model/block=parallel"],
    "sandwich": [*LLAMA, "model/block=sandwich"],
    "transformer_xl": [*LLAMA, "model/attention=relative", "model/position=relative"],
    "bert": ["model=bert_base", *TOY, "stage/objective=masked"],
    "t5": ["model=t5_small", *TOY, "stage/objective=span_corruption"],
    "xlnet": ["model=xlnet_base", *TOY, "stage/objective=permutation"],
    "gemma2": ["model=gemma2_2b", *TOY],
    "falcon": ["model=falcon_7b", *TOY],
    "qwen3": ["model=qwen3_0_6b", *TOY],
    "deepseek": ["model=deepseek_v2_lite", *TOY],
    "gpt_j": ["model=gpt_j_6b", *TOY],
    "glm": ["model=glm_130b", *TOY],
    "lstm": ["model=lstm_tiny", *TOY],
    "gru": ["model=gru_tiny", *TOY],
    "mamba": ["model=mamba_tiny", *TOY],
    "linear": ["model=linear_transformer_tiny", *TOY],
}


def some_batch(job: Job) -> dict[str, Tensor]:
    """Rows of one text each."""
    length, vocab = job.data.seq_len, job.model.vocab_size
    tokens_BT = torch.randint(5, vocab, (ROWS, length), generator=torch.Generator().manual_seed(0))
    places_BT = torch.arange(length).expand(ROWS, length)
    batch = {"tokens": tokens_BT, "labels": tokens_BT.clone(), "positions": places_BT, "segments": torch.ones_like(tokens_BT)}
    if job.model.graph == "encoder_decoder":
        batch |= {"source": tokens_BT.clone(), "source_positions": places_BT, "source_segments": torch.ones_like(tokens_BT)}
    if job.model.graph == "two_stream":
        batch["order"] = places_BT.contiguous()
    return batch


def counted(job: Job) -> int:
    """Bytes of the storages that autograd holds on to after a forward pass; weights and the batch are held anyway."""
    model = job.model.build()
    initialize(model, 0)
    assert hasattr(job.stage, "objective")
    objective = job.stage.objective.build()
    objective.equip(model)
    root, batch = Root(model, objective, isolated=False), some_batch(job)
    anyway = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *batch.values()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # holds it, so that no other takes its place
        return tensor

    low = stem(type(job.precision)) == "bf16_mixed"
    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=low):
        outputs: Any = root(batch)
    assert outputs
    return sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in anyway)


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
@pytest.mark.parametrize("case", CASES)
def test_activations_are_within_five_percent_of_counted_ones(case: str, precision: str) -> None:
    """The loss's own gradients, which it makes in the forward pass, are among what autograd holds; the plan has them as logits."""
    job = compose_job([*CASES[case], f"precision={precision}", f"trainer.batch_size={ROWS}"]).job
    work = work_of(job, is_cpu=True)
    memory = memory_of(bundled(work.pieces), 0, arrange(Mesh(), 1), pace(ROWS, 1, None), work)
    head = work.pieces[-1]
    of_the_loss = work.vocab * head.width * work.formats.wide + ROWS * work.seq_len * head.width * work.formats.low
    assert memory.activations + of_the_loss == pytest.approx(counted(job), rel=0.05)


def test_the_residual_stream_is_exact_where_nothing_is_rounded() -> None:
    """A LLaMA block keeps, of each token, 2 inputs of norms, twice normalized, 3 hidden tensors, q, k, v, the output and a number a head."""
    job = compose_job([*LLAMA, f"trainer.batch_size={ROWS}"]).job
    layer = next(piece for piece in work_of(job, is_cpu=True).pieces if piece.kind)
    assert layer.kept.stream == 4 * (2 * (48 + 1) + 2 * 48)
    assert layer.kept.inner == 4 * (4 * 48 + 4 + 3 * 100)


def test_every_preset_has_as_many_parameters_as_its_pieces() -> None:
    for preset in options("model"):
        job = compose_job([f"model={preset}", "stage=describe"]).job
        if job.model.graph == "counts":
            continue
        work = work_of(job, is_cpu=False)
        with torch.device("meta"):
            model = job.model.build()
            usual = natural(job.model.graph, answers_of(job.model))
            if usual is not None:
                usual().build().equip(model)
        assert work.parameters == parameters(model), preset
        assert sum(piece.where.name == "head" for piece in work.pieces) == 1, preset


def test_floating_point_operations_are_those_of_the_model() -> None:
    """Two independent counts: per piece for plans, per model for the report of a run."""
    for line in (["model=llama3_8b"], ["model=gpt2"], ["model=bert_base"], ["model=mixtral_8x7b"], ["model=deepseek_v2_lite"]):
        job = compose_job([*line, "stage=describe", "data.seq_len=256"]).job
        with torch.device("meta"):
            model = job.model.build()
        work = work_of(job, is_cpu=False)
        assert work.flops / work.tokens == pytest.approx(model.train_flops_per_token(256), rel=1e-3), line
