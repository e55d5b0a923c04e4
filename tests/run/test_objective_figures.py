"""What a job reports whose model does not give the likelihood of a text: its own loss, and nothing that would be another number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_job import prepared, toy_job

from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.count import train_flops_per_token
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Mlm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import EncoderOnly
from llmfactory.objective.spec import Causal, Masked, Prefix
from llmfactory.parallel.mesh import World
from llmfactory.run.figures import figures
from llmfactory.run.fit import Fitted
from llmfactory.run.train import figures_of, labelled_share
from llmfactory.stage.evaluate import measure
from llmfactory.stage.rows import task_rows
from llmfactory.stage.spec import Pretrain

WORLD = World(torch.device("cpu"))
ENCODER = EncoderOnly(
    vocab_size=260,
    dim=16,
    max_positions=64,
    n_layers=1,
    norm=LayerNorm(),
    position=Rope(),
    attention=Gqa(n_heads=4),
    ffn=Mlp(hidden=24, activation=Activation.gelu),
    block=PreNorm(),
    embedding=Token(),
    head=Mlm(tied=True, activation=Activation.gelu),
)


def parts(tmp_path, objective, **changes):
    job = toy_job(tmp_path, stage=Pretrain(objective=objective), **changes)
    model = job.model.build()
    initialize(model, 0)
    return job, model.eval(), prepared(job)


@pytest.mark.parametrize(
    ("objective", "changes", "unit", "sampled"),
    [
        (Causal(), {}, "nats per token", True),
        (Prefix(), {}, "nats per token after the prefix", True),
        (Masked(), {"model": ENCODER}, "nats per masked token", False),
    ],
)
def test_only_a_likelihood_has_perplexity_and_bits(tmp_path, objective, changes, unit, sampled):
    job, model, data = parts(tmp_path, objective, **changes)
    found = figures_of(job, Fitted(model, 1, None, None, "finished", 1.0, 1.0, 0, None), data, WORLD)
    text_figures = {"perplexity", "bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte"}
    assert text_figures & set(found) == (text_figures if objective == Causal() else set())
    assert found["loss_unit"] == unit
    assert ("sample" in found) == sampled
    table = {what: remark for what, _, remark in figures(found)}
    assert table["held-out loss"] == unit
    assert ("perplexity" in table) == (objective == Causal())
    assert ("bits per byte" in table) == (objective == Causal())


def test_the_held_out_number_of_a_model_is_the_same_in_every_run(tmp_path):
    job, model, data = parts(tmp_path, Masked(), model=ENCODER)
    numbers = set()
    for seed in (0, 1):
        for batch_size in (1, 5, 100):
            rows = task_rows(replace(job, seed=seed), Masked().build(), data, "held_out")
            precision = job.precision.build("cpu")
            numbers.add(round(measure(model, Masked().build(), rows, precision, WORLD, batch_size).loss, 5))
    assert len(numbers) == 1
    static = task_rows(job, Masked(static=True).build(), data, "held_out")
    assert round(measure(model, Masked().build(), static, precision, WORLD, 5).loss, 5) in numbers


@pytest.mark.parametrize(("objective", "changes"), [(Causal(), {}), (Masked(rate=0.3), {"model": ENCODER})])
def test_only_the_head_s_own_work_counts(tmp_path, objective, changes):
    """Where few tokens have a label, the head's matrix is multiplied by these alone."""
    job, _, data = parts(tmp_path, objective, **changes)
    with torch.device("meta"):
        model = job.model.build()
    whole, head = model.train_flops_per_token(32), 6 * model.head.visited()
    share = labelled_share(task_rows(job, objective.build(), data, "train"))
    assert share == pytest.approx(1.0 if objective == Causal() else 0.3, abs=0.03)
    assert train_flops_per_token(job.model, 32) == whole
    assert train_flops_per_token(job.model, 32, 0.25) == pytest.approx(whole - 0.75 * head)
