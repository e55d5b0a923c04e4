"""Held-out figures against a plain sum over documents, and their independence of batches and packing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llmfactory.checkpoint.names.published import open_published
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.pack.spec import Document
from llmfactory.data.prepare import prepare
from llmfactory.objective.spec import Causal, Denoising, SpanCorruption
from llmfactory.parallel.mesh import World
from llmfactory.stage.evaluate import measure, objective_of
from llmfactory.stage.initial import checkpoint_of, load_model
from llmfactory.stage.spec import Evaluate

WORLD = World(torch.device("cpu"))
CAUSAL = Causal().build()


def parts(job):
    precision = job.precision.build("cpu")
    data = prepare(job.data, job.model.vocab_size)
    return load_model(job, checkpoint_of(job, "x"), precision, WORLD), data, precision


def test_likelihood_is_the_plain_sum_over_documents(job):
    job = replace(job, data=replace(job.data, pack=Document(), seq_len=64))
    model, data, precision = parts(job)
    nll, targets = 0.0, 0
    with torch.no_grad():
        for index in range(data.counts["held_out"]["documents"]):
            ids = [data.tokenizer.end_id, *data.held_out.document(index), data.tokenizer.end_id]
            for start in range(0, len(ids) - 1, 64):
                piece = torch.tensor([ids[start : start + 65]])
                size = piece.shape[1] - 1
                context = Context(torch.arange(size)[None], CausalMask(size))
                logits = model.head(model(piece[:, :-1], context))
                nll += torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum").item()
                targets += size
    rows = job.data.pack.build(data.held_out, 64)
    found = measure(model, CAUSAL, rows, precision, WORLD, batch_size=3)
    assert found.counts["loss"] == targets
    assert found.sums["loss"] == pytest.approx(nll, rel=1e-12)
    figures = found.figures(data.held_out_bytes)
    assert figures["held_out_loss"] == pytest.approx(nll / targets, rel=1e-12)
    assert figures["perplexity"] == pytest.approx(math.exp(nll / targets), rel=1e-12)
    assert figures["bits_per_byte"] == pytest.approx(nll / math.log(2) / data.held_out_bytes, rel=1e-12)
    # One byte a token here, and one end token a document: bytes and targets differ by the number of documents.
    assert data.held_out_bytes == targets - data.counts["held_out"]["documents"]


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_batch_size_changes_nothing_and_every_target_counts_once(job, batch_size):
    model, data, precision = parts(job)
    rows = job.data.pack.build(data.held_out, job.data.seq_len)
    found = measure(model, CAUSAL, rows, precision, WORLD, batch_size)
    assert found.counts["loss"] == rows.targets
    assert found.sums["loss"] == pytest.approx(measure(model, CAUSAL, rows, precision, WORLD, 5).sums["loss"], rel=1e-12)
    assert not model.training


def test_the_job(job, tmp_path):
    stage = Evaluate(batch_size=4)
    result = stage.build().run(replace(job, stage=stage), tmp_path)
    model, data, precision = parts(job)
    rows = job.data.pack.build(data.held_out, job.data.seq_len)
    assert result["held_out_loss"] == pytest.approx(measure(model, CAUSAL, rows, precision, WORLD, 4).loss, rel=1e-12)
    assert 0.1 < result["xz_bits_per_byte"] < 8
    assert 0.1 < result["gzip_bits_per_byte"] < 8
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert "gzip_bits_per_byte" not in replace(stage, compressors=False).build().run(replace(job, stage=stage), tmp_path)


def test_what_is_missing_is_named(job, tmp_path):
    stage = Evaluate()
    with pytest.raises(ConfigError, match=r"init = None: evaluating needs a trained model\n  try: init=outputs/<run>"):
        stage.build().run(replace(job, init=None), None)
    with pytest.raises(UserError, match="nowhere holds no complete checkpoint"):
        stage.build().run(replace(job, init=str(tmp_path / "nowhere")), None)
    with pytest.raises(ConfigError, match=r"data\.held_out = 0\.0: no document is held out"):
        stage.build().run(replace(job, data=replace(job.data, held_out=0.0)), None)


def test_a_published_model_is_measured_on_what_it_was_trained_on(tmp_path):
    """BART on denoising, though encoder-decoders are usually trained on span corruption."""
    from tiny_published import hf_folder
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(BartConfig(**sizes, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=320))
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=320))
    for name, theirs, kind in (("bart", bart, Denoising), ("t5", t5, SpanCorruption)):
        folder = hf_folder(tmp_path / name, theirs)
        assert type(objective_of(folder, open_published(folder).spec)) is kind
