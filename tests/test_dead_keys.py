"""No key is accepted and does nothing.

Every field of every spec stands in one of three tables. `CHANGES` holds overrides that must change the job's fingerprint:
weights, loss, optimizer steps, learning rates, rows of data, number formats. `EFFECTS` names, for fields that act outside
of these numbers (files, processes, text), the test that shows it. A field that stands nowhere fails, and so does an entry
for a field that is gone.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.register import classes, groups
from llmfactory.config.spec import Job
from llmfactory.core.context import CausalMask, Context, Record
from llmfactory.core.spec import Spec, stem
from llmfactory.data.prepare import prepare
from llmfactory.data.spec import Corpus
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.objective.objective import Outputs
from llmfactory.optim.groups import set_lr
from llmfactory.optim.schedule.spec import DecaySpec
from llmfactory.parallel.clip import bound_, clip_factor, global_norm, scale_
from llmfactory.stage.rates import rates

TESTS = Path(__file__).resolve().parent
SMALL = ["model.vocab_size=300", "model.dim=16", "model.n_layers=2", "model.attention.n_heads=2", "model.ffn.hidden=24"]
SMALL += ["model.max_positions=64", "data.seq_len=16", "trainer.max_steps=500", "optim.schedule.warmup_steps=2"]
LLAMA, GPT = ["model=llama_tiny", *SMALL], ["model=gpt2_tiny", *SMALL]
MOE, SWITCH = [*LLAMA, "model/ffn=moe", "model.ffn.balance=1"], [*GPT, "model/ffn=switch"]
RECURRENT = ["model.vocab_size=300", "model.dim=16", "model.n_layers=2", "model.max_positions=64", "data.seq_len=16"]
RECURRENT += ["trainer.max_steps=500", "optim.schedule.warmup_steps=2"]
LSTM, MAMBA = ["model=lstm_tiny", *RECURRENT], ["model=mamba_tiny", *RECURRENT]
BERT = ["model=bert_tiny", *SMALL, "stage/objective=masked"]
LINEAR = ["model=linear_transformer_tiny", *RECURRENT, "model.ffn.hidden=24"]
NGRAM = ["model=neural_ngram_tiny", "model.vocab_size=300", "model.dim=16", "model.hidden=24", *RECURRENT[3:]]
XL = [*LLAMA, "model/attention=relative", "model/position=relative"]
COSINE = ["optim/schedule=cosine"]
OPTIMIZERS = {name: name for name in ("adafactor", "adam", "adamw", "lamb", "lion", "muon", "sgd", "soap")} | {
    "adamw8bit": "adamw_8bit",
    "schedule_free": "schedule_free",
}
TEXT = ["data=text", "data.source.files=[corpus.txt]", "data.source.split_on='---'"]
WORD_LEVEL, CAPITALS = "data/tokenizer=word_level", ["data=text", "data.source.files=[capitals.txt]", "data.held_out=0.3"]
LINES = ["data=jsonl", "data.source.files=[corpus.jsonl]"]
STRETCHED = [*LLAMA, "model.position.theta=20", "model.position.scaling.factor=2"]
TRAINED = {
    "dynamic_ntk": ["model.position.scaling.trained_positions=4"],
    "yarn": ["model.position.scaling.trained_positions=30", "model.position.scaling.fast=2"],
    "llama3": ["model.position.scaling.trained_positions=30"],
}

# field -> (overrides of both sides, override of one side)
CHANGES: dict[str, tuple[list[str], str]] = {
    "job.seed": (LLAMA, "seed=1"),
    "job.toy": (["model=llama_tiny"], "toy=true"),
    "model/decoder_only.vocab_size": (LLAMA, "model.vocab_size=301"),
    "model/decoder_only.dim": (LLAMA, "model.dim=24"),
    "model/decoder_only.max_positions": (GPT, "model.max_positions=65"),
    "model/decoder_only.init_std": (LLAMA, "model.init_std=0.03"),
    "model/decoder_only.n_layers": (LLAMA, "model.n_layers=3"),
    "model/decoder_only.norm": (LLAMA, "model/norm=layer_norm"),
    "model/decoder_only.position": (LLAMA, "model/position=none"),
    "model/decoder_only.attention": (LLAMA, "model/attention=gqa_biased"),
    "model/decoder_only.ffn": (LLAMA, "model/ffn=geglu"),
    "model/decoder_only.head": (LLAMA, "model/head=lm_tied"),
    "model/decoder_only.dropout": (LLAMA, "model.dropout=0.2"),
    "model/decoder_only.depth_scaled_init": (LLAMA, "model.depth_scaled_init=false"),
    "model/decoder_only.embedding_norm": (LLAMA, "model.embedding_norm=true"),
    "model/norm/rms_norm.eps": (LLAMA, "model.norm.eps=0.01"),
    "model/norm/layer_norm.eps": (GPT, "model.norm.eps=0.01"),
    "model/norm/layer_norm.bias": (GPT, "model.norm.bias=false"),
    "model/norm/layer_norm.gain": (GPT, "model.norm.gain=false"),
    "model/norm/rms_norm.offset": (LLAMA, "model.norm.offset=1.0"),
    "model/position/rope.theta": (LLAMA, "model.position.theta=100.0"),
    "model/position/rope.share": (LLAMA, "model.position.share=0.5"),
    "model/position/rope.interleaved": (LLAMA, "model.position.interleaved=true"),
    "model/position/rope2d.theta": ([*LLAMA, "model/position=rope_2d"], "model.position.theta=100.0"),
    "model/position/sinusoidal.theta": ([*LLAMA, "model/position=sinusoidal"], "model.position.theta=100.0"),
    "model/position/sinusoidal.interleaved": ([*LLAMA, "model/position=sinusoidal"], "model.position.interleaved=false"),
    **{
        f"model/attention/mla.{field}": ([*LLAMA, "model/attention=mla"], f"model.attention.{field}={value}")
        for field, value in (
            ("n_heads", 4),
            ("kv_lora_rank", 32),
            ("q_lora_rank", 16),
            ("qk_nope_head_dim", 8),
            ("qk_rope_head_dim", 8),
            ("v_head_dim", 8),
            ("eps", 0.1),
            ("bias", "true"),
            ("scale", 1.0),
            ("dropout", 0.2),
        )
    },
    "model/position/relative.clamp": (XL, "model.position.clamp=2"),
    "model/position/relative.dropout": (XL, "model.position.dropout=0.2"),
    "model/attention/relative.n_heads": (XL, "model.attention.n_heads=4"),
    "model/attention/relative.head_dim": (XL, "model.attention.head_dim=4"),
    "model/attention/relative.dropout": (XL, "model.attention.dropout=0.2"),
    "model/position/t5_bias.n_buckets": ([*LLAMA, "model/position=t5_bias"], "model.position.n_buckets=8"),
    "model/position/t5_bias.max_distance": (
        [*LLAMA, "model/position=t5_bias", "model.position.n_buckets=8"],
        "model.position.max_distance=6",
    ),
    **{
        f"model/position/scaling/{name}.{field}": (
            [*STRETCHED, f"model/position/scaling={name}", *TRAINED.get(name, [])],
            f"model.position.scaling.{field}={value}",
        )
        for name, field, value in (
            ("linear", "factor", 3),
            ("ntk", "factor", 3),
            ("dynamic_ntk", "factor", 3),
            ("dynamic_ntk", "trained_positions", 6),
            ("yarn", "factor", 3),
            ("yarn", "trained_positions", 60),
            ("yarn", "fast", 4.0),
            ("yarn", "slow", 1.9),
            ("yarn", "attention_factor", 2.0),
            ("yarn", "whole_pairs", "false"),
            ("llama3", "factor", 3),
            ("llama3", "trained_positions", 60),
            ("llama3", "low", 2.0),
            ("llama3", "high", 8.0),
        )
    },
    "model/position/learned.offset": (GPT, "model.position.offset=2"),
    "model/attention/gqa.n_heads": (LLAMA, "model.attention.n_heads=4"),
    "model/attention/gqa.n_kv_heads": (LLAMA, "model.attention.n_kv_heads=1"),
    "model/attention/gqa.bias": (LLAMA, "model.attention.bias=true"),
    "model/attention/gqa.head_dim": (LLAMA, "model.attention.head_dim=4"),
    "model/attention/gqa.qkv_bias": (LLAMA, "model.attention.qkv_bias=true"),
    "model/attention/gqa.qk_norm": (LLAMA, "model/attention=gqa_qk_norm"),
    "model/attention/gqa.scale": (LLAMA, "model.attention.scale=1.0"),
    "model/attention/gqa.window": (LLAMA, "model.attention.window=3"),
    "model/attention/gqa.softcap": (LLAMA, "model.attention.softcap=0.1"),
    "model/attention/gqa.dropout": (LLAMA, "model.attention.dropout=0.3"),
    "model/ffn/glu.hidden": (LLAMA, "model.ffn.hidden=32"),
    "model/ffn/glu.activation": (LLAMA, "model.ffn.activation=relu"),
    "model/ffn/glu.bias": (LLAMA, "model.ffn.bias=true"),
    "model/ffn/mlp.hidden": (GPT, "model.ffn.hidden=32"),
    "model/ffn/mlp.activation": (GPT, "model.ffn.activation=relu2"),
    "model/ffn/mlp.bias": (GPT, "model.ffn.bias=false"),
    "model/ffn/moe.hidden": (MOE, "model.ffn.hidden=32"),
    "model/ffn/moe.n_experts": (MOE, "model.ffn.n_experts=4"),
    "model/ffn/moe.activation": (MOE, "model.ffn.activation=relu"),
    "model/ffn/moe.gated": (MOE, "model.ffn.gated=false"),
    "model/ffn/moe.balance": (MOE, "model.ffn.balance=0"),
    "model/ffn/moe.balance_over": (MOE, "model.ffn.balance_over=batch"),
    "model/ffn/moe.z": (MOE, "model.ffn.z=1"),
    "model/ffn/moe.jitter": (MOE, "model.ffn.jitter=0.2"),
    "model/ffn/moe.k": (MOE, "model.ffn.k=3"),
    "model/ffn/moe.score": (MOE, "model.ffn.score=sigmoid"),
    "model/ffn/moe.normalize": (MOE, "model.ffn.normalize=false"),
    "model/ffn/moe.scale": (MOE, "model.ffn.scale=2"),
    "model/ffn/moe.shared_hidden": (MOE, "model.ffn.shared_hidden=8"),
    "model/ffn/moe.shared_gate": ([*MOE, "model.ffn.shared_hidden=8"], "model.ffn.shared_gate=true"),
    "model/ffn/switch.hidden": (SWITCH, "model.ffn.hidden=32"),
    "model/ffn/switch.n_experts": (SWITCH, "model.ffn.n_experts=4"),
    "model/ffn/switch.activation": (SWITCH, "model.ffn.activation=gelu"),
    "model/ffn/switch.gated": (SWITCH, "model.ffn.gated=true"),
    "model/ffn/switch.balance": (SWITCH, "model.ffn.balance=1"),
    "model/ffn/switch.balance_over": (SWITCH, "model.ffn.balance_over=batch"),
    "model/ffn/switch.z": (SWITCH, "model.ffn.z=1"),
    "model/ffn/switch.jitter": (SWITCH, "model.ffn.jitter=0.2"),
    "model/ffn/switch.capacity_factor": (SWITCH, "model.ffn.capacity_factor=0.5"),
    "model/ffn/switch.capacity": (SWITCH, "model.ffn.capacity=1"),
    "model/block/parallel.shared_norm": ([*LLAMA, "model/block=parallel"], "model.block.shared_norm=true"),
    "model/block/deep_norm.power": ([*LLAMA, "model/block=deep_norm"], "model.block.power=0.5"),
    "model/block/deep_norm.beta_layers": ([*LLAMA, "model/block=deep_norm"], "model.block.beta_layers=2.0"),
    "model/head/lm.tied": (LLAMA, "model.head.tied=true"),
    "model/head/lm.bias": (LLAMA, "model.head.bias=true"),
    "model/head/lm.width": (LLAMA, "model.head.width=8"),
    "model/head/lm.scale": (LLAMA, "model.head.scale=2.0"),
    "model/head/lm.dim_power": (LLAMA, "model.head.dim_power=-0.5"),
    "model/head/lm.softcap": (LLAMA, "model.head.softcap=0.05"),
    "model/embedding/token.scale": (GPT, "model.embedding.scale=2.0"),
    "model/embedding/token.dim_power": (GPT, "model.embedding.dim_power=0.5"),
    "stage/objective/causal.label_smoothing": (LLAMA, "stage.objective.label_smoothing=0.1"),
    "stage/objective/causal.z_loss": (LLAMA, "stage.objective.z_loss=0.1"),
    "model/encoder_only.vocab_size": (BERT, "model.vocab_size=301"),
    "model/encoder_only.dim": (BERT, "model.dim=24"),
    "model/encoder_only.max_positions": (BERT, "model.max_positions=65"),
    "model/encoder_only.init_std": (BERT, "model.init_std=0.03"),
    "model/encoder_only.n_layers": (BERT, "model.n_layers=3"),
    "model/encoder_only.norm": (BERT, "model/norm=rms_norm"),
    "model/encoder_only.position": (BERT, "model/position=none"),
    "model/encoder_only.attention": (BERT, "model/attention=gqa"),
    "model/encoder_only.ffn": (BERT, "model/ffn=geglu"),
    "model/encoder_only.block": (BERT, "model/block=pre_norm"),
    "model/encoder_only.embedding": (BERT, "model/embedding=token"),
    "model/encoder_only.head": (BERT, "model/head=lm"),
    "model/encoder_only.dropout": (BERT, "model.dropout=0.2"),
    "model/encoder_only.depth_scaled_init": (BERT, "model.depth_scaled_init=false"),
    "model/encoder_only.embedding_norm": (BERT, "model.embedding_norm=false"),
    "model/encoder_only.embedding_dim": ([*BERT, "model/head=lm"], "model.embedding_dim=8"),
    "model/encoder_only.unique_layers": (BERT, "model.unique_layers=1"),
    "model/recurrent.vocab_size": (LSTM, "model.vocab_size=301"),
    "model/recurrent.dim": (LSTM, "model.dim=24"),
    "model/recurrent.init_std": (LSTM, "model.init_std=0.03"),
    "model/recurrent.n_layers": (LSTM, "model.n_layers=3"),
    "model/recurrent.embedding": (LSTM, "model/embedding=token_sqrt_dim"),
    "model/recurrent.mixer": (LSTM, "model/mixer=gru"),
    "model/recurrent.norm": (LSTM, "model/norm=rms_norm"),
    "model/recurrent.head": (LSTM, "model/head=lm_tied"),
    "model/recurrent.ffn": (LINEAR, "model/ffn=swiglu"),
    "model/recurrent.residual": (LSTM, "model.residual=true"),
    "model/recurrent.dropout": (LSTM, "model.dropout=0.2"),
    "model/recurrent.depth_scaled_init": (MAMBA, "model.depth_scaled_init=false"),
    "model/mixer/lstm.bias": ([*LSTM, "model/mixer=lstm"], "model.mixer.bias=false"),
    "model/mixer/lstm.forget_bias": (LSTM, "model.mixer.forget_bias=0.5"),
    "model/mixer/gru.bias": ([*LSTM, "model/mixer=gru"], "model.mixer.bias=false"),
    "model/mixer/rnn.bias": ([*LSTM, "model/mixer=rnn"], "model.mixer.bias=false"),
    "model/mixer/rnn.activation": ([*LSTM, "model/mixer=rnn"], "model.mixer.activation=relu"),
    **{
        f"model/mixer/mamba.{field}": (MAMBA, f"model.mixer.{field}={value}")
        for field, value in {
            "expand": 3,
            "state": 5,
            "conv": 2,
            "rank": 3,
            "bias": "true",
            "conv_bias": "false",
            "step_min": 0.01,
            "step_max": 0.5,
            "step_floor": 0.05,
        }.items()
    },
    "model/mixer/linear_attention.n_heads": (LINEAR, "model.mixer.n_heads=2"),
    "model/mixer/linear_attention.bias": (LINEAR, "model.mixer.bias=true"),
    "model/mixer/linear_attention.eps": (LINEAR, "model.mixer.eps=0.1"),
    "model/neural_ngram.vocab_size": (NGRAM, "model.vocab_size=301"),
    "model/neural_ngram.dim": (NGRAM, "model.dim=8"),
    "model/neural_ngram.init_std": (NGRAM, "model.init_std=0.03"),
    "model/neural_ngram.order": (NGRAM, "model.order=3"),
    "model/neural_ngram.hidden": (NGRAM, "model.hidden=8"),
    "model/neural_ngram.direct": (NGRAM, "model.direct=true"),
    "model/neural_ngram.embedding": (NGRAM, "model/embedding=token_sqrt_dim"),
    "model/neural_ngram.head": (NGRAM, "model/head=lm"),
    "model/neural_ngram.dropout": (NGRAM, "model.dropout=0.2"),
    "optim/adamw.lr": (LLAMA, "optim.lr=2e-3"),
    "optim/adamw.schedule": (LLAMA, "optim/schedule=constant"),
    "optim/adamw.weight_decay": (LLAMA, "optim.weight_decay=0.5"),
    "optim/adamw.clip_norm": (LLAMA, "optim.clip_norm=0.01"),
    "optim/adamw.betas": (LLAMA, "optim.betas=[0.5,0.95]"),
    "optim/adamw.eps": (LLAMA, "optim.eps=0.01"),
    "optim/sgd.lr": ([*LLAMA, "optim=sgd"], "optim.lr=0.2"),
    "optim/sgd.schedule": ([*LLAMA, "optim=sgd"], "optim/schedule=constant"),
    "optim/sgd.weight_decay": ([*LLAMA, "optim=sgd"], "optim.weight_decay=0.5"),
    "optim/sgd.clip_norm": ([*LLAMA, "optim=sgd"], "optim.clip_norm=0.01"),
    **{
        f"optim/{name}.{field}": ([*LLAMA, f"optim={name}", *extra], override)
        for name, extra in (
            ("adam", ["optim.weight_decay=0.1"]),
            *((name, []) for name in ("lion", "lamb", "muon", "adafactor", "soap")),
        )
        for field, override in (
            ("lr", "optim.lr=0.02"),
            ("schedule", "optim/schedule=constant"),
            ("weight_decay", "optim.weight_decay=0.5"),
            ("clip_norm", "optim.clip_norm=0.01"),
            ("betas", "optim.betas=[0.5,0.95]"),
        )
        if (name, field) not in {("lion", "clip_norm"), ("adafactor", "clip_norm"), ("adafactor", "betas")}
    },
    **{
        f"optim/{name}.eps": ([*LLAMA, f"optim={name}"], "optim.eps=0.01")
        for name in ("adam", "lamb", "muon", "adafactor", "soap")
    },
    **{
        f"optim/soap.{field}": ([*LLAMA, "optim=soap"], f"optim.{field}={value}")
        for field, value in (("basis_beta", 0.5), ("refresh_every", 1), ("largest_side", 4))
    },
    **{
        f"optim/muon.{field}": ([*LLAMA, "optim=muon"], f"optim.{field}={value}")
        for field, value in (
            ("momentum", 0.5),
            ("nesterov", "false"),
            ("iterations", 2),
            ("scale", "spectral"),
            ("rest_factor", 0.5),
        )
    },
    **{
        f"optim/adafactor.{field}": ([*LLAMA, "optim=adafactor"], f"optim.{field}={value}")
        for field, value in (("momentum", 0.5), ("update_clip", 0.1), ("scale_by_weights", "false"), ("least_scale", 0.9))
    },
    **{
        f"optim/{name}.{field}": ([*LLAMA, f"optim={option}"], f"optim.{field}={value}")
        for name, option in OPTIMIZERS.items()
        for field, value in (
            ("clip_value", "1e-3"),
            ("layer_decay", "0.5"),
            ("lr_factors", "{embedding:0.1}"),
            ("weight_decays", "{norm:20}"),
        )
    },
    **{
        f"optim/schedule_free.{field}": ([*LLAMA, "optim=schedule_free"], f"optim.{field}={value}")
        for field, value in (
            ("lr", 0.02),
            ("weight_decay", 0.5),
            ("clip_norm", 0.01),
            ("betas", "[0.5,0.95]"),
            ("eps", 0.01),
        )
    },
    **{
        f"optim/adamw8bit.{field}": ([*LLAMA, "optim=adamw_8bit"], f"optim{value}")
        for field, value in (
            ("lr", ".lr=0.02"),
            ("schedule", "/schedule=constant"),
            ("weight_decay", ".weight_decay=0.5"),
            ("clip_norm", ".clip_norm=0.01"),
            ("betas", ".betas=[0.5,0.95]"),
            ("eps", ".eps=0.01"),
            ("block_size", ".block_size=4"),
            ("least_size", ".least_size=10"),
        )
    },
    "optim/sgd.momentum": ([*LLAMA, "optim=sgd"], "optim.momentum=0.1"),
    "optim/sgd.nesterov": ([*LLAMA, "optim=sgd"], "optim.nesterov=true"),
    **{
        f"optim/schedule/{name}.warmup_steps": ([*LLAMA, f"optim/schedule={name}"], "optim.schedule.warmup_steps=40")
        for name in ("constant", "linear", "cosine", "wsd", "inverse_sqrt", "polynomial", "cosine_restarts", "one_cycle")
    },
    **{
        f"optim/schedule/{name}.warmup_share": (
            [*LLAMA, f"optim/schedule={name}", "optim.schedule.warmup_steps=0", "optim.schedule.warmup_share=0.01"],
            "optim.schedule.warmup_share=0.1",
        )
        for name in classes("optim/schedule")
        if not name.endswith("_spec")
    },
    **{
        f"optim/schedule/{name}.{field}": (
            [*LLAMA, f"optim/schedule={name}", "trainer.max_steps=300"],
            f"optim.schedule.{field}={value}",
        )
        for name in ("linear", "cosine", "wsd", "polynomial", "cosine_restarts", "one_cycle")
        for field, value in (("horizon", 400), ("floor", 0.3))
    },
    "optim/schedule/inverse_sqrt.flat": (
        [*LLAMA, "optim/schedule=inverse_sqrt", "optim.schedule.warmup_steps=40"],
        "optim.schedule.flat=true",
    ),
    "optim/schedule/wsd.decay": ([*LLAMA, "optim/schedule=wsd"], "optim.schedule.decay=cosine"),
    "optim/schedule/polynomial.power": ([*LLAMA, "optim/schedule=polynomial"], "optim.schedule.power=3"),
    "optim/schedule/cosine_restarts.periods": ([*LLAMA, "optim/schedule=cosine_restarts"], "optim.schedule.periods=3"),
    "optim/schedule/cosine_restarts.factor": ([*LLAMA, "optim/schedule=cosine_restarts"], "optim.schedule.factor=2"),
    "optim/schedule/one_cycle.start": ([*LLAMA, "optim/schedule=one_cycle"], "optim.schedule.start=0.5"),
    "optim/schedule/wsd.decay_share": ([*LLAMA, "optim/schedule=wsd"], "optim.schedule.decay_share=0.5"),
    "trainer.max_steps": ([*LLAMA, *COSINE], "trainer.max_steps=300"),
    "data.seq_len": ([*LLAMA, *TEXT], "data.seq_len=20"),
    "data.held_out": ([*LLAMA, *TEXT], "data.held_out=0.3"),
    "data.source": ([*LLAMA, "data=text", "data.source.files=[corpus.jsonl]"], "data/source=jsonl"),
    "data.held_out_bytes": ([*LLAMA, *TEXT, "data.held_out=0.3"], "data.held_out_bytes=40"),
    "data.tokenizer": ([*LLAMA, *TEXT], "data/tokenizer=bytes"),
    "data.pack": ([*LLAMA, *TEXT], "data/pack=document"),
    "data/pack/concat.isolate": ([*LLAMA, *TEXT], "data.pack.isolate=false"),
    "data/source/files.files": ([*LLAMA, *TEXT], "data.source.files=[other.txt]"),
    "data/source/files.encoding": ([*LLAMA, *TEXT], "data.source.encoding=latin-1"),
    "data/source/files.split_on": ([*LLAMA, *TEXT], "data.source.split_on=null"),
    "data/source/files.field": ([*LLAMA, *LINES], "data.source.field=title"),
    "data/tokenizer/byte_bpe.vocab_size": ([*LLAMA, *TEXT], "data.tokenizer.vocab_size=280"),
    "data/tokenizer/byte_bpe.train_bytes": ([*LLAMA, *TEXT], "data.tokenizer.train_bytes=500"),
    "data/tokenizer/byte_bpe.split": ([*LLAMA, *TEXT], "data.tokenizer.split=gpt2"),
    "data/tokenizer/word_level.vocab_size": ([*LLAMA, *TEXT, WORD_LEVEL], "data.tokenizer.vocab_size=8"),
    "data/tokenizer/word_level.min_count": ([*LLAMA, *TEXT, WORD_LEVEL], "data.tokenizer.min_count=150"),
    "data/tokenizer/word_level.lowercase": ([*LLAMA, *CAPITALS, WORD_LEVEL], "data.tokenizer.lowercase=true"),
    "data/tokenizer/word_level.train_bytes": ([*LLAMA, *TEXT, WORD_LEVEL], "data.tokenizer.train_bytes=100"),
    "precision/fp16_mixed.init_scale": ([*LLAMA, "precision=fp16_mixed"], "precision.init_scale=1024"),
    "precision/fp16_mixed.growth_interval": ([*LLAMA, "precision=fp16_mixed"], "precision.growth_interval=2"),
    "precision/fp16_mixed.growth": ([*LLAMA, "precision=fp16_mixed", "precision.growth_interval=2"], "precision.growth=3"),
    "precision/fp16_mixed.backoff_interval": ([*LLAMA, "precision=fp16_mixed"], "precision.backoff_interval=2"),
    "precision/fp16_mixed.backoff": ([*LLAMA, "precision=fp16_mixed"], "precision.backoff=0.25"),
    "job.model": (LLAMA, "model=gpt2_tiny"),
    "job.data": ([*LLAMA, *TEXT], "data.seq_len=20"),
    "job.optim": (LLAMA, "optim=sgd"),
    "job.precision": (LLAMA, "precision=bf16_mixed"),
    "job.trainer": ([*LLAMA, *COSINE], "trainer.max_steps=300"),
}

WORDS = "objective/test_negative_sampling.py"

EFFECTS: dict[str, str] = {
    "job.guard": "run/test_guarding.py::test_a_poisoned_run_ends_like_a_clean_one",
    **{
        f"guard/{name}.{field}": f"guard/test_detector.py::test_{what}"
        for name in ("report", "stop", "skip", "clip", "lower_lr", "rewind")
        for field, what in {
            "window": "center_and_unit_are_those_of_the_window",
            "statistic": "center_and_unit_are_those_of_the_window",
            "least": "nothing_is_a_spike_before_there_were_enough",
            "loss_z": "either_value_may_stand_out",
            "norm_z": "either_value_may_stand_out",
            "floor": "what_never_moved_has_a_smallest_unit",
        }.items()
    },
    **{
        f"guard/{name}.name_rows": "run/test_guarding.py::test_rows_are_named_if_asked_for"
        for name in ("report", "stop", "skip", "clip", "lower_lr", "rewind")
    },
    **{
        f"guard/{name}.limit": "run/test_guarding.py::test_a_guard_does_not_act_for_ever"
        for name in ("skip", "clip", "lower_lr", "rewind")
    },
    "guard/clip.factor": "run/test_guarding.py::test_a_clipped_spike_moves_weights_as_far_as_it_says",
    "guard/lower_lr.factor": "run/test_guarding.py::test_the_rate_is_lower_for_a_while",
    "guard/lower_lr.steps": "run/test_guarding.py::test_the_rate_is_lower_for_a_while",
    **{f"guard/rewind.{name}": "guard/test_remedies.py::test_where_a_rewind_goes" for name in ("back", "before", "after")},
    "optim/schedule_free.schedule": "optim/test_schedule_free.py::test_a_run_hands_on_the_mean_and_goes_on_from_where_it_trained",
    **{
        f"optim/{name}.average": "optim/average/test_average.py::test_it_is_what_its_definition_says_and_training_does_not_see_it"
        for name in classes("optim")
        if not name.endswith("_spec")
    },
    **{
        f"optim/{name}.width": "optim/width/test_mup.py::test_first_weights_rates_and_decays_follow_the_table"
        for name in classes("optim")
        if not name.endswith("_spec")
    },
    "optim/width/mup.base": "optim/width/test_mup.py::test_first_weights_rates_and_decays_follow_the_table",
    **{f"optim/average/ema.{name}": "optim/average/test_ema.py::test_equals_a_loop" for name in ("decay", "warmup", "every")},
    **{
        f"optim/average/swa.{name}": "optim/average/test_swa.py::test_the_mean_of_what_is_taken"
        for name in ("start_step", "start_share", "every")
    },
    **{f"optim/average/lawa.{name}": "optim/average/test_lawa.py::test_the_mean_of_the_last" for name in ("last", "every")},
    "trainer.log_parts": "stage/test_magnitudes.py::test_they_are_what_a_plain_step_says",
    "trainer.batch_ramp": "run/batch_ramp/test_linear.py::test_a_run_with_a_growing_batch",
    **{
        f"trainer/batch_ramp/linear.{name}": "run/batch_ramp/test_linear.py::test_sizes_are_those_of_megatron"
        for name in ("start", "increment", "rows", "tokens")
    },
    **{f"trainer/batch_ramp/staged.{name}": "run/batch_ramp/test_staged.py::test_parts_of_a_run" for name in ("rows", "until")},
    **{
        f"optim/schedule/{name}.goes_on": "config/test_published_settings.py::test_a_run_may_go_on_at_the_floor"
        for name, cls in classes("optim/schedule").items()
        if issubclass(cls, DecaySpec) and not name.endswith("_spec")
    },
    "job.init_trained": "optim/average/test_average.py::test_both_kinds_of_weights_can_be_taken",
    "precision/fp32.tf32": "precision/test_fp32.py::test_tf32_is_switched_on_where_it_is",
    "precision/bf16_true.keep": "optim/test_narrow.py::test_small_steps",
    "precision/fp8.recipe": "precision/test_fp8.py::test_recipes",
    "precision/fp8.emulate": "precision/test_fp8.py::test_hardware_without_float8_is_refused",
    "precision/fp8.skip": "precision/test_fp8.py::test_which_maps",
    "precision/int8_mixed.skip": "precision/test_int8_mixed.py::test_maps_that_are_skipped",
    "precision/int8_mixed.stochastic": "precision/test_int8_mixed.py::test_rounding_at_random",
    **{
        f"stage/{stage}.{name}": "run/test_answers.py::test_the_field_changes_the_run"
        for stage, names in {
            "grpo": ("answers", "baseline", "epochs", "group", "long_interval", "max_tokens", "skip_equal"),
            "ppo": (
                *("answers", "epochs", "gamma", "lam", "kl_target", "clip_reward", "whiten_rewards", "whiten_advantages"),
                "max_tokens",
            ),
        }.items()
        for name in names
    },
    **{
        f"stage/{stage}.{name}": f"run/test_answers.py::{test}"
        for stage in ("grpo", "ppo")
        for name, test in {
            "objective": "test_it_learns_to_sort",
            "graders": "test_answers_without_a_grade_are_counted",
            "max_kl": "test_an_exploding_divergence_ends_the_run",
            "stop_kl": "test_an_iteration_ends_early_where_the_policy_has_moved_far",
            "sample_prompt": "test_the_sample_is_an_answer_to_what_was_asked",
        }.items()
    },
    "stage/grpo.unended": "run/test_answers.py::test_answers_that_did_not_end_can_be_left_out",
    "stage/ppo.critic": "run/test_answers.py::test_a_critic_starts_from_the_policy_or_from_a_reward_model",
    **{
        f"stage/objective/{name}.{field}": "objective/test_policy.py::test_the_loss_is_the_papers"
        for name in ("policy", "actor_critic")
        for field in ("clip_low", "clip_high", "entropy_coef", "kl_coef", "temperature")
    },
    "stage/objective/policy.aggregation": "objective/test_policy.py::test_the_loss_is_the_papers",
    **{
        f"stage/objective/actor_critic.{name}": "objective/test_policy.py::test_the_critic_s_loss_stands_beside_the_policy_s"
        for name in ("value_coef", "value_clip")
    },
    **{
        f"data/clean/{name}.sources": "data/test_segment.py::test_a_step_may_be_for_some_sources_only"
        for name, cls in classes("data/clean").items()
        if not cls.__name__.endswith("Spec")
    },
    **dict.fromkeys(
        ("data.clean", "data/mixture.clean"), "data/test_segment.py::test_copies_are_found_over_shards_sources_and_partitions"
    ),
    "data.form": "data/form/test_chat.py::*",
    "data/source/pydoc_pairs.rejected": "data/source/test_pydoc_items.py::test_options_change_the_rows_and_the_fingerprint",
    **{
        f"data/source/pydoc_{kind}.items": "data/source/test_pydoc_items.py::test_options_change_the_rows_and_the_fingerprint"
        for kind in ("qa", "pairs", "choices")
    },
    **{
        f"data/source/pydoc_{kind}.packages": "data/source/test_pydoc_packages.py::test_items_are_called_from_the_last_part_of_their_module_on"
        for kind in ("qa", "pairs", "choices")
    },
    "stage/line.steps": "run/test_line.py::test_it_runs_in_order_and_nothing_twice",
    "stage/line.changes": "run/test_line.py::test_keys_follow_what_matters",
    "stage/line.seeds": "run/test_line.py::test_seeds_are_taken_together",
    "stage/examine.against": "stage/test_examine.py::test_a_judge_scores_what_models_write",
    "stage/examine.judge": "stage/test_examine.py::test_a_judge_scores_what_models_write",
    "stage/examine.samples": "stage/test_examine.py::test_a_judge_scores_what_models_write",
    "stage/examine.max_tokens": "stage/test_examine.py::test_options_of_what_is_written",
    "stage/examine.temperature": "stage/test_examine.py::test_options_of_what_is_written",
    "stage/examine.most": "stage/test_examine.py::test_options_of_what_is_written",
    "stage/examine.batch_size": "stage/test_examine.py::test_figures_are_those_of_plain_arithmetic",
    "data/source/pydocs.code": "data/source/test_pydocs.py::test_without_code_the_rest_is_the_same",
    "data/source/pydoc_choices.rankings": "data/source/test_pydoc_items.py::test_options_change_the_rows_and_the_fingerprint",
    "data/source/pydoc_choices.choices": "data/source/test_pydoc_items.py::test_options_change_the_rows_and_the_fingerprint",
    "optim/adafactor.clip_norm": "optim/test_adafactor.py::test_equals_the_paper",
    "optim/adafactor.decay_power": "optim/test_adafactor.py::test_equals_the_paper",
    "optim/lion.clip_norm": "optim/test_lion.py::test_clipping_weighs_later_steps",
    "stage/prepare.export": "run/test_preparing.py::test_documents_are_exported",
    **{
        f"data/mixture.{name}": f"data/test_prepare.py::{test}"
        for name, test in {
            "cache": "test_sources_are_prepared_together",
            "form": "test_sources_are_prepared_together",
            "held_out": "test_sources_are_prepared_together",
            "held_out_bytes": "test_only_what_matters_is_prepared_anew",
            "tokenizer": "test_only_what_matters_is_prepared_anew",
            "workers": "test_the_result_depends_on_neither_processes_nor_folder_nor_chunks",
            "sources": "test_sources_are_prepared_together",
        }.items()
    },
    **dict.fromkeys(("data/mixture.pack", "data/mixture.seq_len"), "data/mix/test_mixed_rows.py::*"),
    "job.name": "run/test_start.py::test_the_run_folder_holds_everything",
    "job.output_dir": "run/test_start.py::test_the_run_folder_holds_everything",
    "job.init": "run/test_fit.py::test_init_takes_the_weights_and_nothing_else",
    "job.resume": "run/test_folder.py::test_never_means_never",
    "job.plugins": "config/test_register.py::test_a_package_of_ones_own",
    "job.stage": "run/test_start.py::test_evaluate_agrees_with_training_and_generate_leaves_nothing",
    "job.parallel": "distributed/test_same_step.py::test_data_parallel",
    "job.peft": "peft/test_none.py::test_training_asks_the_method_what_to_train",
    **{
        f"peft/{method}.{field}": f"peft/test_lora.py::{test}"
        for method in ("lora", "dora", "qlora", "adalora")
        for field, test in {
            "rank": "test_it_is_the_sum_of_two_matrices",
            "alpha": "test_alpha_and_rank_stabilized_scale_it",
            "dropout": "test_dropout_in_training_only",
            "targets": "test_targets_are_patterns",
            "rank_stabilized": "test_alpha_and_rank_stabilized_scale_it",
        }.items()
    },
    "peft/qlora.base": "peft/test_qlora.py::test_the_blocks_maps_and_nothing_else",
    **dict.fromkeys(
        (f"peft/adalora.{name}" for name in ("target_rank", "total_steps", "first_steps", "last_steps", "interval", "smoothing")),
        "peft/test_adalora.py::test_what_is_kept_is_what_peft_keeps",
    ),
    "peft/adalora.orthogonality": "peft/test_adalora.py::test_the_term_is_that_of_peft",
    "stage/format/peft.base": "stage/format/test_peft.py::test_a_base_of_ours_is_written_first",
    "peft/qlora.start": "peft/test_lora.py::test_it_starts_at_the_base",
    "peft/qlora.b_lr_ratio": "peft/test_lora.py::test_b_may_learn_faster",
    "peft/lora.start": "peft/test_lora.py::test_it_starts_at_the_base",
    "peft/lora.b_lr_ratio": "peft/test_lora.py::test_b_may_learn_faster",
    "peft/ia3.outputs": "peft/test_ia3.py::test_outputs_with_their_bias_and_inputs",
    "peft/ia3.inputs": "peft/test_ia3.py::test_outputs_with_their_bias_and_inputs",
    "peft/freeze.last_layers": "peft/test_freeze.py::test_the_last_layers",
    **{
        f"peft/{method}.train": "peft/test_freeze.py::test_parameters_beside_adapters"
        for method in ("lora", "dora", "qlora", "adalora", "ia3", "bitfit", "freeze")
    },
    **{
        f"peft/{method}.train": "peft/test_preceding.py::test_parameters_may_be_trained_beside"
        for method in ("prompt", "p_tuning", "prefix", "p_tuning_v2", "adapter")
    },
    "peft/prompt.tokens": "peft/test_prompt.py::test_tokens_of_a_text_over_and_over",
    "peft/prompt.start": "peft/test_prompt.py::test_tokens_of_the_vocabulary",
    "peft/prompt.text": "peft/test_prompt.py::test_tokens_of_a_text_over_and_over",
    **{
        f"peft/p_tuning.{field}": "peft/test_prefix.py::test_every_setting_changes_the_network_of_virtual_tokens"
        for field in ("tokens", "encoder", "hidden", "layers")
    },
    "peft/p_tuning.dropout": "peft/test_prompt.py::test_an_lstm_drops_between_its_layers_in_training_only",
    **{
        f"peft/{field}": "peft/test_prefix.py::test_every_setting_changes_what_is_added"
        for field in ("prefix.tokens", "prefix.hidden", "prefix.encoder", "prefix.cross")
    },
    **{
        f"peft/{field}": "peft/test_prefix.py::test_every_setting_changes_what_is_added"
        for field in ("p_tuning_v2.tokens", "p_tuning_v2.encoder", "p_tuning_v2.cross")
    },
    **{
        f"peft/adapter.{field}": "peft/test_adapter.py::test_a_pre_norm_block"
        for field in ("placement", "width", "activation", "scale")
    },
    "peft/adapter.dropout": "peft/test_adapter.py::test_dropout_is_of_training",
    "job.tracking": "run/test_start.py::test_tracking_none_leaves_no_metrics",
    "job.hardware": "parallel/plan/test_hardware.py::test_a_number_changes_the_plan",
    **{
        f"hardware/accelerator.{name}": "parallel/plan/test_hardware.py::test_a_number_changes_the_plan"
        for name in ("memory_gib", "usable", "fp64_tflops", "fp32_tflops", "bf16_tflops", "fp16_tflops", "efficiency")
    },
    **{
        f"hardware/accelerator.{name}": "parallel/plan/test_hardware.py::test_a_number_changes_the_plan"
        for name in ("memory_gb_per_s", "devices_per_node", "host_gb_per_s", "price_per_hour", "link_gb_per_s", "link_latency_us")
    },
    **{
        f"hardware/accelerator.{name}": "parallel/plan/test_hardware.py::test_a_number_changes_the_plan"
        for name in ("network_gb_per_s", "network_latency_us")
    },
    "hardware/accelerator.names": "parallel/plan/test_hardware.py::test_names_and_price_per_hour_of_what_is_detected",
    "hardware/detected.price_per_hour": "parallel/plan/test_hardware.py::test_names_and_price_per_hour_of_what_is_detected",
    **{
        f"hardware/measured.{name}": "parallel/plan/test_hardware.py::test_file_device_and_price_per_hour_of_what_is_measured"
        for name in ("file", "device", "price_per_hour")
    },
    "parallel/auto.backend": "parallel/plan/test_hardware.py::test_backend_and_timeout_s_of_auto",
    "parallel/auto.timeout_s": "parallel/plan/test_hardware.py::test_backend_and_timeout_s_of_auto",
    "stage/profile.of": "run/test_profiling.py::test_it_wraps_whatever_the_rest_of_the_command_picks",
    "stage/profile.warm_up": "run/test_profiling.py::test_it_makes_as_many_steps_as_it_was_asked_for",
    "stage/profile.measured": "run/test_profiling.py::test_it_makes_as_many_steps_as_it_was_asked_for",
    "stage/profile.stacks": "run/test_profiling.py::test_the_command_leaves_a_report",
    "stage/plan.tokens": "parallel/plan/test_hardware.py::test_tokens_are_what_a_plan_costs",
    "job.launch": "run/test_start.py::test_two_processes_give_the_numbers_of_one",
    **{
        f"model/attention/cross.{field}": "model/attention/test_cross.py::test_equals_the_equation"
        for field in ("n_heads", "head_dim", "bias", "scale")
    },
    **{
        f"stage/bench_comm.{name}": "stage/test_bench_comm.py::test_every_field_does_what_it_says"
        for name in ("axis", "min_bytes", "max_bytes", "factor", "warm_up", "repeats")
    },
    **{
        f"parallel/deep_speed.{name}": "parallel/test_deepspeed.py::test_what_the_engine_is_told" for name in ("stage", "offload")
    },
    "parallel/deep_speed.backend": "parallel/test_deepspeed.py::test_processes_are_data_parallel",
    "parallel/deep_speed.timeout_s": "parallel/test_deepspeed.py::test_processes_are_data_parallel",
    "model/attention/relative.memory": "model/attention/test_relative.py::test_segments_see_the_memory_of_those_before",
    "model/attention/two_stream.n_heads": "model/attention/test_two_stream.py::test_both_streams",
    "model/attention/two_stream.head_dim": "model/attention/test_two_stream.py::test_declarations",
    "model/attention/two_stream.dropout": "model/attention/test_two_stream.py::test_dropout_in_training_only",
    "model/attention/cross.qkv_bias": "model/attention/test_cross.py::test_which_projections_have_a_bias",
    "model/attention/cross.dropout": "model/attention/test_cross.py::test_dropout_in_training_only",
    "model/position/rope.scaling": "model/position/scaling/test_scaling.py::test_tables_carry_scaling_and_factor",
    "model/decoder_only.others": "model/test_tower.py::test_a_pattern_repeats_over_the_depth",
    "model/decoder_only.pattern": "model/test_tower.py::test_a_pattern_repeats_over_the_depth",
    "model/decoder_only.cross": "model/test_tower.py::test_cross_attention_needs_an_encoder",
    "model/decoder_only.block": "model/block/test_pre_norm.py::*",
    **{
        f"model/encoder_decoder.{name}": "model/test_encoder_decoder.py::test_every_field_changes_the_model"
        for name in ("vocab_size", "dim", "max_positions", "init_std", "embedding", "encoder", "decoder", "head")
    },
    **{
        f"model/two_stream.{name}": "model/test_two_stream.py::test_every_field_changes_the_model"
        for name in ("vocab_size", "dim", "init_std", "n_layers", "norm", "position", "attention", "ffn", "block", "embedding")
    },
    "model/two_stream.head": "model/test_two_stream.py::test_every_field_changes_the_model",
    "model/two_stream.embedding_norm": "model/test_two_stream.py::test_every_field_changes_the_model",
    "model/two_stream.depth_scaled_init": "model/test_two_stream.py::test_every_field_changes_the_model",
    "model/two_stream.max_positions": "model/test_two_stream.py::test_rows_longer_than_it_is_made_for",
    "model/two_stream.others": "model/test_two_stream.py::test_kinds_of_layers_and_dropout",
    "model/two_stream.pattern": "model/test_two_stream.py::test_kinds_of_layers_and_dropout",
    "model/two_stream.dropout": "model/test_two_stream.py::test_kinds_of_layers_and_dropout",
    "model/two_stream.cross": "model/test_tower.py::test_cross_attention_needs_an_encoder",
    **{
        f"model/multimodal.{name}": "model/test_multimodal.py::test_every_field_changes_the_model"
        for name in ("vocab_size", "dim", "init_std", "n_layers", "norm", "position", "attention", "vision", "connector")
    },
    "model/multimodal.embedding_norm": "model/test_multimodal.py::test_every_field_changes_the_model",
    "model/multimodal.depth_scaled_init": "model/test_multimodal.py::test_every_field_changes_the_model",
    "model/multimodal.image_token": "model/test_multimodal.py::test_the_placeholder_is_the_token_that_the_spec_says",
    **{
        f"model/multimodal.{name}": "model/test_multimodal.py::test_the_decoder_is_what_its_fields_say"
        for name in ("max_positions", "ffn", "block", "embedding", "head", "dropout", "others", "pattern", "cross")
    },
    **{
        f"model/connector/projector.{name}": "model/connector/test_projector.py::test_linear_maps_with_a_nonlinearity_between"
        for name in ("n_layers", "activation", "bias")
    },
    **{
        f"model/connector/q_former.{name}": "model/connector/test_q_former.py::test_every_field_changes_the_part"
        for name in ("n_queries", "dim", "n_layers", "n_heads", "hidden", "norm", "cross_every")
    },
    "model/encoder_decoder.shared_embedding": "model/test_encoder_decoder.py::test_every_field_changes_the_model",
    "model/encoder_decoder.embedding_norm": "model/test_encoder_decoder.py::test_every_field_changes_the_model",
    "model/encoder_decoder.embedding_std": "model/test_encoder_decoder.py::test_every_field_changes_the_model",
    "model/decoder_only.embedding": "model/embedding/test_token.py::*",
    "model/head/mlm.tied": "model/head/test_mlm.py::test_logits",
    "model/head/mlm.activation": "model/head/test_mlm.py::test_activation",
    "model/head/mlm.bias": "model/head/test_mlm.py::test_logits",
    "model/head/mlm.width": "model/head/test_mlm.py::test_as_wide_as_the_vocabulary_s_vectors",
    "model/head/sentence.pooling": "model/head/test_sentence.py::test_vectors_of_documents",
    "model/head/sentence.normalize": "model/head/test_sentence.py::test_vectors_of_documents",
    "model/head/classifier.n_classes": "model/head/test_classifier.py::test_logits",
    "model/head/classifier.pooling": "model/head/test_classifier.py::test_logits",
    "model/head/classifier.activation": "model/head/test_classifier.py::test_logits",
    "model/head/classifier.bias": "model/head/test_classifier.py::test_logits",
    "model/head/classifier.input_dropout": "model/head/test_classifier.py::test_which_dropout_is_which",
    "model/head/classifier.dropout": "model/head/test_classifier.py::test_dropout_in_training_only",
    "model/head/token_classifier.n_classes": "model/head/test_token_classifier.py::test_logits_at_every_token",
    "model/head/token_classifier.dropout": "model/head/test_token_classifier.py::test_dropout",
    "model/head/scalar.pooling": "model/head/test_scalar.py::test_of_every_token_or_of_each_document",
    "model/head/scalar.bias": "model/head/test_scalar.py::test_of_every_token_or_of_each_document",
    "model/head/discriminator.activation": "model/head/test_discriminator.py::test_one_logit_a_token",
    "model/embedding/token_segment.n_types": "model/embedding/test_token_segment.py::test_a_type_that_there_is_not",
    "model/embedding/factorized.width": "model/embedding/test_factorized.py::test_two_matrices",
    "model/embedding/factorized.bias": "model/embedding/test_factorized.py::test_two_matrices",
    "model/embedding/patch.image_size": "model/embedding/test_patch.py::test_pictures_of_another_size",
    "model/embedding/patch.patch_size": "model/embedding/test_patch.py::test_a_linear_map_of_each_square",
    "model/embedding/patch.channels": "model/embedding/test_patch.py::test_channels",
    "model/embedding/patch.class_token": "model/embedding/test_patch.py::test_a_linear_map_of_each_square",
    "model/embedding/patch.bias": "model/embedding/test_patch.py::test_a_linear_map_of_each_square",
    "model/encoder_only.others": "model/test_tower.py::test_a_pattern_repeats_over_the_depth",
    "model/encoder_only.pattern": "model/test_tower.py::test_a_pattern_repeats_over_the_depth",
    "model/encoder_only.cross": "model/test_tower.py::test_cross_attention_needs_an_encoder",
    "model/neural_ngram.max_positions": "model/test_neural_ngram.py::test_rows_longer_than_it_is_made_for",
    "model/kneser_ney.vocab_size": "model/test_kneser_ney.py::test_equals_the_reference",
    "model/kneser_ney.order": "model/test_kneser_ney.py::test_equals_the_reference",
    "model/kneser_ney.max_positions": "model/test_kneser_ney.py::test_rows_longer_than_it_is_made_for",
    "model/kneser_ney.dim": "model/test_kneser_ney.py::test_what_means_nothing_is_refused",
    "model/kneser_ney.init_std": "model/test_kneser_ney.py::test_what_means_nothing_is_refused",
    "model/embedding_model.vocab_size": "model/test_embedding_model.py::test_published_size",
    "model/embedding_model.dim": "model/test_embedding_model.py::test_published_size",
    "model/embedding_model.max_positions": "model/test_embedding_model.py::test_it_is_trained_by_its_own_objectives_alone",
    "model/embedding_model.init_std": "model/test_embedding_model.py::test_first_values",
    "model/embedding_model.output_std": "model/test_embedding_model.py::test_first_values",
    **{
        f"stage/objective/{name}.{field}": "objective/test_fields.py::test_the_field_changes_the_rows"
        for name, fields in {
            "masked": ("rate", "mask_share", "random_share", "whole_words"),
            "span_corruption": ("rate", "mean_span", "sentinels"),
            "ul2": ("sentinels",),
            "denoising": ("rate", "mean_span", "permute_sentences", "rotate"),
            "permutation": ("one_in",),
            "blank_infilling": ("rate", "mean_span", "sentence_share", "document_share"),
            "replaced_token": ("rate",),
        }.items()
        for field in fields
    },
    "stage/objective/masked.static": "objective/test_fields.py::test_static_masks_stay_in_the_next_epoch",
    "stage/objective/replaced_token.generator_scale": (
        "objective/test_replaced_token.py::test_the_generator_is_smaller_and_shares_the_vectors"
    ),
    **{
        f"stage/objective/{name}.{field}": "objective/test_pairs.py::test_the_loss_is_the_papers"
        for name, fields in {
            "dpo": ("beta", "label_smoothing", "robust"),
            "ipo": ("beta", "average"),
            "slic": ("beta", "margin", "nll"),
            "cpo": ("beta", "nll", "label_smoothing"),
            "simpo": ("beta", "gamma"),
            "orpo": ("beta",),
        }.items()
        for field in fields
    },
    "stage/objective/simpo.label_smoothing": "objective/test_pairs.py::test_a_measure_smooths_no_labels",
    **{
        f"stage/objective/rrhf.{field}": "objective/test_rrhf.py::test_the_loss_is_the_papers"
        for field in ("weight", "length_power")
    },
    **{
        f"stage/objective/kto.{field}": "objective/test_kto.py::test_the_loss_is_the_papers"
        for field in ("beta", "wanted", "unwanted")
    },
    "stage/preference.shared_prompt": "data/form/test_shared_prompt.py::test_rows_get_shorter",
    "stage/preference.reference": "stage/test_preference.py::test_references_agree",
    **dict.fromkeys(
        [f"stage/{name}.anchor" for name in ("pretrain", "sft", "reward", "preference", "grpo", "ppo")],
        "stage/anchor/test_l2_sp.py::test_a_run_stays_nearer",
    ),
    "stage/objective/tilted.tilt": "objective/test_tilted.py::test_the_gradient_is_that_of_the_tilted_loss",
    "stage/objective/tilted.label_smoothing": "objective/test_tilted.py::test_smoothing",
    "stage/anchor/l2_sp.strength": "stage/anchor/test_l2_sp.py::test_the_gradient_and_the_value_are_the_penalty_s",
    "stage/anchor/ewc.strength": "stage/anchor/test_ewc.py::test_the_old_task_is_kept",
    "stage/anchor/ewc.file": "stage/anchor/test_ewc.py::test_the_file_stands_with_the_run",
    "stage/fisher.path": "stage/anchor/test_ewc.py::test_the_file_stands_with_the_run",
    "stage/fisher.rows": "stage/anchor/test_ewc.py::test_fisher_is_the_mean_of_squares",
    "stage/sft.objective": "stage/test_sft.py::*",
    "stage/sft.sample_prompt": "run/test_sample.py::test_a_question_of_one_s_own",
    "stage/preference.objective": "stage/test_preference.py::test_answers_are_told_apart",
    "stage/preference.sample_prompt": "run/test_sample.py::test_a_question_of_one_s_own",
    "stage/reward.objective": "stage/test_reward.py::*",
    "stage/reward.shared_prompt": "data/form/test_shared_prompt.py::test_rewards_of_answers_that_share_their_prompt",
    "stage/reward.sample_prompt": "config/test_rules.py::test_it_fires_and_its_repair_works",
    **dict.fromkeys(
        ("stage/objective/bradley_terry.margin_scale", "stage/objective/bradley_terry.center"),
        "objective/test_bradley_terry.py::test_the_loss_is_the_papers",
    ),
    **dict.fromkeys(
        ("stage/objective/regression.offset", "stage/objective/regression.scale"),
        "objective/test_regression.py::test_one_answer_a_row",
    ),
    **dict.fromkeys(
        ("stage/objective/process.loss", "stage/objective/process.threshold"), "objective/test_process.py::test_squared"
    ),
    "stage/objective/replaced_token.weight": "objective/test_replaced_token.py::test_the_loss_is_the_paper_s",
    **{
        f"stage/objective/{name}.{field}": f"{WORDS}::test_its_rows_come_from_the_frequencies_of_the_training_text"
        for name in ("skip_gram", "cbow")
        for field in ("window", "negatives", "subsample", "noise_power")
    },
    "model/recurrent.max_positions": "model/test_recurrent.py::test_rows_longer_than_it_is_made_for",
    "data/form/chat.template": "data/form/test_chat.py::test_a_turn_that_ends_with_its_own_token",
    **{
        f"data/form/chat.{field}": "data/form/test_chat.py::test_fields_and_format_can_be_named" for field in ("format", "fields")
    },
    "data/form/chat.system": "data/form/test_chat.py::test_a_system_message_for_those_that_have_none",
    **{
        f"data/form/chat.{field}": "data/form/test_chat.py::test_what_is_too_long_is_dropped_or_cut_and_counted"
        for field in ("max_tokens", "too_long")
    },
    "data/form/chat.unwritable": (
        "data/form/test_bad_rows.py::test_what_the_template_cannot_write_is_named_or_left_out_and_counted"
    ),
    "data/form/chat.train_on": "data/form/test_chat.py::test_what_is_learned_can_be_chosen",
    **{
        f"data/form/{form}.{field}": "data/form/test_records.py::test_every_option_of_records_works_for_each_form"
        for form in ("preference", "kto", "ranking", "reward")
        for field in ("template", "format", "fields", "system", "max_tokens", "too_long", "unwritable")
    },
    "data/form/preference.keep_equal": "data/form/test_records.py::test_equal_answers_are_bad_unless_they_are_wanted",
    "data/form/ranking.most": "data/form/test_records.py::test_rankings_of_different_length",
    "data/form/template/jinja.source": "data/form/template/test_equip.py::test_templates_by_option",
    "data/form/template/jinja.specials": (
        "data/form/template/test_equip.py::test_missing_tokens_are_added_and_an_end_of_turn_stops_the_model"
    ),
    "data/form/template/jinja_file.file": "data/form/template/test_equip.py::test_templates_by_option",
    "data/form/template/jinja_file.specials": "data/form/template/test_equip.py::test_templates_by_option",
    "data/labelled.tokenizer": "data/test_examples.py::test_a_tokenizer_is_trained_on_the_texts_that_are_trained_on",
    "data/labelled.seq_len": "data/task/test_tasks.py::test_the_longer_text_is_cut",
    "data/labelled.held_out": "data/test_examples.py::test_every_example_is_on_one_side",
    "data/labelled.task": "run/test_finetuning.py::test_a_task_is_learned_and_measured",
    "data/labelled.files": "data/test_examples.py::test_every_example_is_on_one_side",
    "data/labelled.held_out_files": "data/test_examples.py::test_files_of_their_own_to_evaluate_on",
    "data/labelled.bad_share": "data/test_examples.py::test_a_bad_line_is_named_or_within_the_share_dropped",
    "data/task/classify.text": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/classify.label": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/classify.pair": "data/task/test_tasks.py::test_classify_one_text_and_two",
    "data/task/tag.words": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/tag.tags": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/answer.question": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/answer.context": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/answer.answers": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/answer.stride": "data/task/test_tasks.py::test_a_long_text_is_read_in_windows_that_overlap",
    "data/task/answer.longest": "stage/test_score.py::test_spans_over_windows",
    "data/task/rewrite.source": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/rewrite.target": "data/task/test_tasks.py::test_fields_go_by_the_names_that_are_given",
    "data/task/rewrite.prefix": "data/task/test_tasks.py::test_rewrite_reads_one_text_and_writes_the_other",
    "data/task/rewrite.figures": "stage/test_score.py::test_texts_are_written_and_compared",
    "data/task/rewrite.beams": "stage/test_score.py::test_texts_are_written_and_compared",
    "stage/objective/classify.label_smoothing": "objective/test_classes.py::test_smoothing",
    "stage/objective/seq2seq.label_smoothing": "objective/test_classes.py::test_smoothing_of_texts",
    "data/mixture.mix": "data/mix/test_mixed_rows.py::test_every_layout_sees_the_same_samples",
    **{
        f"data/mix/{name}.max_epochs": "data/mix/test_mixed_rows.py::test_a_source_is_read_no_oftener_than_it_may_be"
        for name in ("fixed", "by_tokens", "curriculum", "from_file")
    },
    "stage/reweight.step_size": "stage/test_reweight.py::test_one_update_is_that_of_the_paper",
    "stage/reweight.smoothing": "stage/test_reweight.py::test_one_update_is_that_of_the_paper",
    "data/mix/fixed.weights": "data/mix/test_fixed.py::test_weights_and_their_absence",
    "data/mix/by_tokens.temperature": "data/mix/test_by_tokens.py::test_a_temperature_favors_the_small",
    "data/mix/by_tokens.cap": "data/mix/test_by_tokens.py::test_a_cap_bounds_the_large",
    "data/mix/curriculum.at": "data/mix/test_curriculum.py::test_linear_and_step",
    "data/mix/curriculum.weights": "data/mix/test_curriculum.py::test_linear_and_step",
    "data/mix/curriculum.transition": "data/mix/test_curriculum.py::test_linear_and_step",
    "data/mix/curriculum.horizon": "data/mix/test_mixed_rows.py::test_a_curriculum_goes_by_steps",
    "data/mix/from_file.file": "data/mix/test_from_file.py::test_weights_are_read",
    "data/pack/grouped.group": "data/pack/test_grouped.py::test_each_epoch_takes_every_row_once_and_groups_stay_together",
    "data/pack/grouped.multiple": "data/pack/test_grouped.py::test_they_are_the_rows_of_single_documents_sorted",
    **{
        f"data/clean/{name}.{field}": f"data/clean/{test}"
        for names, fields_, test in (
            (
                ("exact", "lines", "paragraphs"),
                ("ignore_case", "ignore_space", "ignore_marks", "ignore_digits"),
                "test_exact.py::test_ignore_space_case_marks_and_digits",
            ),
            (("lines", "paragraphs"), ("documents",), "test_lines.py::test_it_equals_the_reference"),
            (("lines", "paragraphs"), ("min_characters",), "test_lines.py::test_short_lines_stay"),
            (("lines", "paragraphs"), ("min_left",), "test_lines.py::test_min_left"),
            (
                ("minhash",),
                ("ngram", "unit", "bands", "rows", "seed"),
                "test_minhash.py::test_ngram_unit_bands_rows_and_seed_change_the_keys",
            ),
            (("minhash",), ("verify", "threshold"), "test_minhash.py::test_verify_and_threshold_decide"),
            (
                ("simhash",),
                ("ngram", "unit", "blocks", "seed"),
                "test_simhash.py::test_ngram_unit_distance_blocks_and_seed_change_the_keys",
            ),
            (("simhash",), ("distance",), "test_simhash.py::test_distance_decides"),
            (("substring",), ("min_bytes", "min_left"), "test_substring.py::test_the_first_occurrence_stays"),
            (("substring",), ("block_mib",), "test_substring.py::test_block_mib_is_what_is_seen_at_once"),
        )
        for name in names
        for field in fields_
    },
    **{
        f"data/clean/{name}.{field}": f"data/clean/test_{name}.py::{test}"
        for name, fields_, test in (
            ("html", ("favor",), "test_favor_reaches_the_extraction"),
            ("html", ("comments", "tables"), "test_comments_and_tables"),
            ("html", ("detect",), "test_detect"),
            ("unicode", ("repair",), "test_repair"),
            ("unicode", ("normal",), "test_normal"),
            ("unicode", ("controls",), "test_controls"),
            ("unicode", ("line_ends",), "test_line_ends"),
            ("unicode", ("half_width",), "test_half_width"),
            ("unicode", ("trailing",), "test_trailing"),
            ("language", ("keep",), "test_keep"),
            ("language", ("min_confidence",), "test_min_confidence"),
            ("language", ("sample",), "test_sample"),
            ("gopher_quality", ("min_words", "max_words"), "test_min_words_and_max_words_are_allowed_themselves"),
            (
                "gopher_quality",
                ("min_mean_length", "max_mean_length"),
                "test_min_mean_length_and_max_mean_length_are_allowed_themselves",
            ),
            ("gopher_quality", ("max_symbols",), "test_max_symbols"),
            ("gopher_quality", ("max_bullets",), "test_max_bullets"),
            ("gopher_quality", ("max_ellipses",), "test_max_ellipses"),
            ("gopher_quality", ("min_alphabetic",), "test_min_alphabetic"),
            ("gopher_quality", ("min_stop_words", "stop_words"), "test_min_stop_words_and_stop_words"),
            (
                "gopher_repetition",
                ("duplicate_lines", "duplicate_line_characters"),
                "test_duplicate_lines_and_duplicate_line_characters",
            ),
            (
                "gopher_repetition",
                ("duplicate_paragraphs", "duplicate_paragraph_characters"),
                "test_duplicate_paragraphs_and_duplicate_paragraph_characters",
            ),
            ("gopher_repetition", ("top_ngrams",), "test_top_ngrams"),
            ("gopher_repetition", ("duplicate_ngrams",), "test_duplicate_ngrams"),
            ("c4", ("terminal",), "test_terminal"),
            ("c4", ("min_words", "max_word_length"), "test_min_words_and_max_word_length"),
            ("c4", ("min_sentences",), "test_min_sentences"),
            ("c4", ("citations", "boilerplate", "placeholder", "curly"), "test_citations_boilerplate_placeholder_and_curly"),
            ("fineweb", ("min_terminal",), "test_min_terminal"),
            ("fineweb", ("short_line", "max_short"), "test_short_line_and_max_short"),
            ("fineweb", ("max_duplicate",), "test_max_duplicate"),
            ("fineweb", ("max_line_ends",), "test_max_line_ends"),
            ("length", ("min_characters", "max_characters"), "test_min_characters_and_max_characters"),
            ("length", ("min_words", "max_words"), "test_min_words_and_max_words"),
            ("length", ("min_bytes", "max_bytes"), "test_min_bytes_and_max_bytes"),
            ("code", ("max_line", "max_mean_line"), "test_max_line_and_max_mean_line"),
            ("code", ("min_alphanumeric", "min_letters"), "test_min_alphanumeric_and_min_letters"),
            ("code", ("max_encoded",), "test_max_encoded"),
            ("code", ("generated",), "test_generated"),
            ("code", ("config",), "test_config"),
            ("code", ("data",), "test_data"),
        )
        for field in fields_
    },
    **{
        f"data/clean/{name}.{field}": f"data/clean/test_{name}.py::{test}"
        for name, fields_, test in (
            ("redact", ("kinds",), "test_each_kind_by_itself_and_not_without_it"),
            ("redact", ("style", "fake_key"), "test_a_fake_is_the_same_for_the_same_one_and_nobody_s"),
            ("redact", ("private_ips",), "test_local_networks_by_option"),
            ("toxicity", ("files",), "test_several_lists"),
            ("toxicity", ("measure", "threshold"), "test_the_threshold_is_reached_not_passed"),
            ("toxicity", ("action",), "test_words_are_masked"),
            ("toxicity", ("leetspeak",), "test_letters_spelled_as_digits_by_option"),
            ("decontaminate", ("files",), "test_a_document_with_an_item_is_dropped_and_the_file_is_named"),
            ("decontaminate", ("fields", "unit", "n"), "test_fields_and_units"),
            ("decontaminate", ("shortest",), "test_short_items_are_looked_for_as_a_whole"),
            ("decontaminate", ("frequent",), "test_frequent_sequences_do_not_count"),
            ("decontaminate", ("action", "around"), "test_it_is_cut_out_with_what_stands_around_it"),
            ("decontaminate", ("max_pieces",), "test_pieces_that_are_short_or_too_many"),
            ("perplexity", ("measure",), "test_perplexity_per_word"),
            ("perplexity", ("most", "least"), "test_bits_per_byte_of_utf8"),
            ("perplexity", ("bounds", "keep"), "test_head_middle_and_tail"),
            ("classifier", ("label", "threshold"), "test_the_class_is_kept_from_the_threshold_on"),
        )
        for field in fields_
    },
    "data/clean/perplexity.init": "stage/test_models.py::test_text_is_likelier_than_gibberish",
    **{
        f"data/form/prompts.{field}": f"data/form/test_prompts.py::{test}"
        for field, test in {
            "chat": "test_a_text_is_continued_without_a_template",
            "fields": "test_fields_and_format",
            "format": "test_fields_and_format",
            "max_tokens": "test_prompts_that_are_too_long",
            "too_long": "test_prompts_that_are_too_long",
            "unwritable": "test_prompts_that_the_template_cannot_write",
            "system": "test_template_and_system_message",
            "template": "test_template_and_system_message",
        }.items()
    },
    **{
        f"stage/grader/{name}.{field}": f"stage/grader/test_grader.py::{test}"
        for name in classes("stage/grader")
        for field, test in {
            "weight": "test_the_reward_is_the_weighted_sum",
            "failed_reward": "test_what_goes_wrong_is_counted_and_replaced",
            "seconds": "test_a_grader_that_hangs_costs_the_one_answer",
        }.items()
        if not name.endswith("_spec")
    },
    "stage/grader/function.seconds": "stage/grader/test_function.py::test_what_goes_wrong_costs_the_one_answer",
    "stage/grader/unit_tests.seconds": "stage/grader/test_unit_tests.py::test_options_reach_the_sandbox",
    **{
        f"stage/grader/{name}.{field}": f"stage/grader/test_{page or name}.py::{test}"
        for name, page, fields, test in (
            (
                "exact_match",
                "",
                ("ignore_articles", "ignore_case", "ignore_punctuation", "mark", "take"),
                "test_what_is_the_same",
            ),
            ("exact_match", "", ("field",), "test_one_of_several_right_answers_and_another_field"),
            ("number", "", ("field",), "test_the_number_is_the_right_one"),
            ("number", "", ("mark", "take"), "test_where_it_stands"),
            ("number", "", ("tolerance",), "test_how_far_off_it_may_be"),
            ("regex", "", ("pattern",), "test_it_is_found_anywhere"),
            ("contains", "", ("texts", "without", "ignore_case"), "test_the_share_that_is_met"),
            ("format", "", ("tags",), "test_tags_each_once_and_in_order"),
            ("format", "", ("pattern",), "test_a_pattern_fits_all_of_the_answer"),
            ("length", "", ("most", "soft"), "test_length_is_the_papers"),
            ("target_length", "length", ("target",), "test_target_length"),
            ("function", "", ("call",), "test_it_is_called_with_texts_and_the_record"),
            ("model", "", ("init", "batch_tokens"), "test_its_grade_is_the_number_of_the_last_token"),
            ("unit_tests", "", ("workers",), "test_the_share_of_tests"),
            (
                "unit_tests",
                "",
                ("tests", "cpu_seconds", "memory_mb", "processes", "file_mb"),
                "test_options_reach_the_sandbox",
            ),
        )
        for field in fields
    },
    **{
        f"stage/rejection.{field}": "stage/test_rejection.py::test_options"
        for field in (
            "max_tokens",
            "prompts",
            "samples",
            "share",
            "stop",
            "temperature",
            "threshold",
            "top_p",
            "unfinished",
            "most",
        )
    },
    "stage/rejection.graders": "stage/test_rejection.py::test_the_best_answers_are_kept",
    "stage/rejection.pairs": "stage/test_rejection.py::test_the_best_answers_are_kept",
    "stage/rejection.batch_size": "stage/test_rejection.py::test_prompts_of_similar_length_come_together",
    "stage/merge.method": "stage/test_merge.py::test_each_way_can_give_the_other_model",
    "stage/merge.models": "stage/test_merge.py::test_the_mean_of_runs_is_a_run",
    "stage/merge.weights": "stage/test_merge.py::test_each_way_can_give_the_other_model",
    "stage/merge.tokenizer": "stage/test_merge.py::test_it_keeps_a_chat_template",
    **{
        f"stage/method/{field}": f"stage/method/test_method.py::{test}"
        for field, test in {
            "linear.normalize": "test_linear_is_the_weighted_mean",
            "slerp.t": "test_slerp_is_on_the_arc",
            "task_arithmetic.scale": "test_task_arithmetic_adds_what_was_learned",
            "ties.density": "test_ties_is_the_papers_algorithm",
            "ties.scale": "test_ties_is_the_papers_algorithm",
            "dare.drop": "test_dare_joins_what_is_left",
            "dare.then": "test_dare_joins_what_is_left",
            "dare.scale": "test_dare_joins_what_is_left",
        }.items()
    },
    "data/clean/classifier.init": "stage/test_models.py::test_classes_are_told_apart",
    "data.cache": "data/test_prepare.py::test_a_cache_that_cannot_be_written_is_named",
    "data.workers": "data/test_prepare.py::test_the_result_depends_on_neither_processes_nor_folder_nor_chunks",
    "data/source/files.format": "data/source/test_files.py::test_the_format_goes_by_the_name_or_by_what_is_said",
    "data/source/files.max_record_bytes": "data/source/test_files.py::test_a_record_that_is_too_long_is_set_aside",
    "data/source/files.max_expansion": "data/source/test_files.py::test_a_bomb_is_stopped",
    "data/source/hf_disk.path": "data/source/test_hf_disk.py::test_it_holds_what_was_saved",
    "data/source/hf_disk.split": "data/source/test_hf_disk.py::test_a_split_is_chosen",
    "data/source/hf_disk.field": "data/source/test_hf_disk.py::test_it_holds_what_was_saved",
    "data/source/hf_disk.bad_share": "data/source/test_hf_disk.py::test_rows_that_cannot_be_read_are_set_aside",
    "data/source/hub.id": "data/source/test_hub.py::test_it_is_streamed_file_by_file",
    "data/source/hub.name": "data/source/test_hub.py::test_it_is_streamed_file_by_file",
    "data/source/hub.split": "data/source/test_hub.py::test_it_is_streamed_file_by_file",
    "data/source/hub.revision": "data/source/test_hub.py::test_of_the_hub_a_commit_is_the_version",
    "data/source/hub.data_files": "data/source/test_hub.py::test_files_and_columns_are_chosen",
    "data/source/hub.field": "data/source/test_hub.py::test_files_and_columns_are_chosen",
    "data/source/hub.path": "data/source/test_hub.py::test_a_copy_is_read_instead",
    "data/source/hub.bad_share": "data/source/test_hub.py::test_rows_without_text_are_set_aside",
    "data/source/files.bad_share": "data/source/test_text.py::test_undecodable_lines_within_the_share_are_dropped_and_counted",
    **{
        f"data/tokenizer/{kind}.{field}": "data/tokenizer/test_trained.py::test_every_field_is_in_the_fingerprint"
        for kind, fields in (
            ("byte_bpe", ("normalization", "special_tokens")),
            ("sentencepiece_bpe", ("vocab_size", "train_bytes", "normalization", "special_tokens")),
            ("unigram", ("vocab_size", "train_bytes", "normalization", "special_tokens")),
            ("wordpiece", ("vocab_size", "train_bytes", "normalization", "special_tokens", "lowercase")),
            ("characters", ("vocab_size", "train_bytes", "normalization", "special_tokens", "unknown")),
        )
        for field in fields
    },
    **{
        f"data/tokenizer/{kind}.{field}": "data/tokenizer/test_trained.py::"
        "test_digits_stand_alone_and_rare_characters_are_spelled_in_bytes"
        for kind in ("sentencepiece_bpe", "unigram")
        for field in ("coverage", "split_digits")
    },
    **{
        f"data/tokenizer/sentencepiece_file.{field}": "data/tokenizer/test_sentencepiece_file.py::"
        "test_end_and_begin_tokens_and_further_ones"
        for field in ("file", "end_token", "special_tokens", "begin_token")
    },
    **{
        f"data/tokenizer/tiktoken_file.{field}": "data/tokenizer/test_tiktoken_file.py::test_further_special_tokens_and_another_end"
        for field in ("file", "end_token", "special_tokens", "split")
    },
    **{
        f"data/tokenizer/wordpiece_file.{field}": "data/tokenizer/test_wordpiece_file.py::test_every_field_counts"
        for field in ("file", "end_token", "special_tokens", "lowercase", "split_chinese")
    },
    **{
        f"data/tokenizer/gpt2_files.{field}": "data/tokenizer/test_gpt2_files.py::test_other_names_and_further_tokens"
        for field in ("file", "end_token", "special_tokens", "merges")
    },
    **{
        f"data/tokenizer/extended.{field}": "data/tokenizer/test_extended.py::test_as_an_option"
        for field in ("base", "new_tokens", "train_bytes")
    },
    "data/tokenizer/hf_file.special_tokens": "data/tokenizer/test_hf_file.py::test_further_special_tokens_get_the_next_ids",
    "data/tokenizer/hf_file.file": "data/tokenizer/test_hf_file.py::test_it_is_used_as_it_is",
    "data/tokenizer/hf_file.end_token": "data/tokenizer/test_hf_file.py::test_the_end_token_can_be_named",
    "launch/local.processes": "run/test_start.py::test_two_processes_give_the_numbers_of_one",
    "launch/local.threads": "launch/test_local.py::test_returns_what_rank_0_returned_and_cleans_the_environment",
    "launch/local.max_restarts": "launch/test_local.py::test_restarts",
    **{
        f"launch/torchrun.{field}": "launch/test_torchrun.py::test_the_line_says_it_all"
        for field in ("nodes", "processes", "endpoint", "node_rank", "max_restarts", "join_timeout_s")
    },
    "launch/torchrun.start": "launch/test_torchrun.py::test_two_machines_are_one_job",
    **{
        f"launch/slurm.{field}": "launch/test_slurm.py::test_the_script_says_it_all"
        for field in ("nodes", "processes", "gpus", "cpus", "time", "partition", "account", "qos", "lines", "setup", "srun")
    },
    **{f"launch/slurm.{field}": "launch/test_slurm.py::test_the_script_says_it_all" for field in ("python", "max_restarts")},
    "launch/slurm.join_timeout_s": "launch/test_slurm.py::test_the_script_says_it_all",
    "launch/slurm.submit": "launch/test_slurm.py::test_sbatch_is_given_the_script",
    "launch/slurm.wait": "launch/test_slurm.py::test_sbatch_is_given_the_script",
    **{
        f"launch/ray.{field}": "launch/test_ray.py::test_what_ray_is_asked_for"
        for field in ("nodes", "processes", "gpus", "cpus", "address", "max_restarts", "join_timeout_s")
    },
    "parallel/mesh.dp_replicate": "parallel/test_mesh.py::test_a_layout_for_more_processes",
    **dict.fromkeys(
        [
            *("parallel/mesh.dp_shard", "parallel/mesh.zero", "parallel/mesh.tp", "parallel/mesh.ep"),
            *("parallel/mesh.sequence_parallel", "parallel/mesh.loss_parallel", "parallel/mesh.tensor_form"),
            "parallel/mesh.recompute",
        ],
        "distributed/test_layout_keys.py::test_it_does_something",
    ),
    "parallel/mesh.recompute_every": "parallel/test_recompute.py::test_how_many_blocks_are_computed_again",
    "parallel/mesh.recompute_keep": "parallel/test_recompute.py::test_what_is_kept_is_not_computed_again",
    "parallel/mesh.recompute_budget_mb": "parallel/test_recompute.py::test_a_budget_is_kept",
    "parallel/mesh.offload": "distributed/test_layout_keys.py::test_weights_live_on_the_host",
    "parallel/mesh.offload_dir": "distributed/test_tensor_parallel.py::test_state_in_files",
    "parallel/mesh.pp": "distributed/test_pipeline.py::test_four_processes",
    **dict.fromkeys(
        ("parallel/mesh.schedule", "parallel/mesh.virtual_stages"),
        "parallel/test_stages.py::test_where_layers_lie_follows_from_the_schedule",
    ),
    "parallel/mesh.cp": "distributed/test_context_parallel.py::test_the_same_steps",
    "parallel/mesh.context_method": "parallel/test_context.py::test_what_each_method_sends",
    "parallel/mesh.backend": "parallel/test_mesh.py::test_nccl_without_gpus",
    "parallel/mesh.timeout_s": "distributed/test_mesh.py::test_a_lost_process_ends_the_wait",
    "stage/pretrain.objective": "objective/test_causal.py::*",
    "stage/pretrain.sample_prompt": "run/test_train.py::test_the_prompt_is_the_start_of_a_held_out_document_or_what_was_given",
    "stage/evaluate.batch_size": "stage/test_evaluate.py::test_batch_size_changes_nothing_and_every_target_counts_once",
    "stage/evaluate.compressors": "stage/test_evaluate.py::test_the_job",
    "stage/describe.presets": "stage/test_architectures.py::test_the_page_is_the_generated_one",
    "stage/generate.adapters": "stage/test_adapters.py::test_they_answer_in_their_turn",
    "stage/generate.stacked": "stage/test_adapters.py::test_stacked_their_changes_are_added",
    "stage/generate.adapter_weights": "stage/test_adapters.py::test_stacked_their_changes_are_added",
    "stage/generate.prompt": "stage/test_generate.py::test_prints_prompt_and_continuations",
    "stage/generate.max_tokens": "stage/test_generate.py::test_the_options_reach_the_sampler",
    "stage/generate.temperature": "stage/test_generate.py::test_the_options_reach_the_sampler",
    "stage/generate.top_k": "stage/test_generate.py::test_the_options_reach_the_sampler",
    "stage/generate.top_p": "stage/test_generate.py::test_the_options_reach_the_sampler",
    "stage/generate.min_p": "stage/test_generate.py::test_the_options_reach_the_sampler",
    "stage/generate.repetition_penalty": "stage/test_generate.py::test_the_options_reach_the_sampler",
    "stage/generate.stop": "stage/test_generate.py::test_stop_strings_end_a_continuation",
    "stage/generate.beams": "stage/test_generate.py::test_beams",
    "stage/generate.length_penalty": "stage/test_generate.py::test_the_length_penalty_reaches_the_search",
    "stage/generate.samples": "stage/test_generate.py::test_prints_prompt_and_continuations",
    "stage/generate.chat": "stage/test_generate.py::test_a_question_goes_through_the_chat_template",
    "stage/generate.system": "stage/test_generate.py::test_a_question_goes_through_the_chat_template",
    "stage/embed.texts": "stage/test_embed.py::test_vectors_are_the_means_of_the_references",
    "stage/extend.path": "stage/test_extend.py::test_chinese_for_a_model_of_english",
    "stage/extend.begin": "stage/test_extend.py::test_new_rows_begin_as_they_were_told",
    "stage/pretrain.embeddings_only_steps": "stage/test_extend.py::test_the_first_phase_moves_the_tables_only",
    "stage/export.format": "stage/test_export.py::test_a_gguf_file_is_read_back_tensor_by_tensor",
    "stage/export.path": "stage/test_export.py::test_a_run_of_ours_in_transformers",
    "stage/export.family": "stage/test_export.py::test_numbers_can_be_rounded_and_the_family_forced",
    "stage/format/hf.numbers": "stage/test_export.py::test_numbers_can_be_rounded_and_the_family_forced",
    "stage/format/hf.shard_bytes": "stage/test_export.py::test_a_run_of_ours_in_transformers",
    "stage/format/gguf.numbers": "stage/test_export.py::test_a_gguf_file_is_read_back_tensor_by_tensor",
    "data/tokenizer/gguf_file.file": "data/tokenizer/test_gguf_file.py::test_as_an_option_it_must_fit_the_model_and_is_kept",
    "tracking/wandb.project": "tracking/test_wandb.py::test_offline_run_goes_on_under_the_same_id",
    "tracking/wandb.entity": "tracking/test_wandb.py::test_settings_reach_the_library",
    "tracking/wandb.mode": "tracking/test_wandb.py::test_settings_reach_the_library",
    "tracking/wandb.tags": "tracking/test_wandb.py::test_settings_reach_the_library",
    "trainer.batch_size": "distributed/test_same_step.py::test_micro_batches",
    "trainer.micro_batch_size": "distributed/test_same_step.py::test_micro_batches",
    "trainer.log_every": "run/test_watching.py::test_sparse_logging",
    "trainer.eval_every": "run/test_evaluating.py::test_looks_when_and_at_what_it_is_told",
    "trainer.eval_rows": "run/test_evaluating.py::test_looks_when_and_at_what_it_is_told",
    "trainer.save_every": "run/test_saving.py::test_what_is_kept",
    "trainer.keep_last": "run/test_saving.py::test_what_is_kept",
    "trainer.keep_best": "run/test_saving.py::test_what_is_kept",
    "trainer.save_async": "run/test_saving.py::test_written_in_the_background_they_are_the_same",
    "trainer.patience": "run/test_stopping.py::test_early_stopping",
    "trainer.deterministic": "run/test_determinism.py::test_deterministic",
    "trainer.compile": "run/test_fit.py::test_compiled",
    "trainer.kernel": "kernel/test_choice.py::test_the_key_reaches_all_parts",
    "optim/adamw.kernel": "kernel/test_adamw.py::test_the_optimizer_takes_it",
    "trainer.in_backward": "run/test_in_backward.py::test_the_same_run_with_fewer_gradients",
    "trainer.device": "run/test_determinism.py::test_devices",
    "trainer.threads": "run/test_determinism.py::test_the_process_is_left_as_it_was",
    "trainer.progress": "run/test_display.py::test_silence",
    "trainer.preflight": "distributed/test_preflight.py::test_a_wrong_sum_is_found",
    "trainer.sample": "run/test_train.py::test_a_sample_is_written_unless_it_is_not_wanted",
}


def fields() -> list[str]:
    """Every field of every concrete spec class, as `<group>/<stem>.<field>`."""
    found = []
    for group in ["", *groups()]:
        for cls in classes(group).values() if group != "experiment" else ():
            if not cls.__name__.endswith("Spec"):
                where = {"": "job", "trainer": "trainer"}.get(group, f"{group}/{stem(cls)}")
                where = "data" if cls is Corpus else where
                found += [f"{where}.{field.name}" for field in dataclasses.fields(cls)]
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    """A folder with small files of all kinds, as the working directory."""
    import json
    import os

    folder = tmp_path_factory.mktemp("corpus")
    words = [
        "def",
        "return",
        "the",
        "a",
        "value",
        "of",
        "read",
        "write",
        "file",
        "é",
        "naïve",
        "12",
        "345",
        "",
        "",
        "",
        "indented\n",
    ]
    numbers = random.Random(0)

    def text(length: int) -> str:
        return " ".join(numbers.choice(words) for _ in range(length))

    (folder / "corpus.txt").write_text("\n---\n".join(text(150) for _ in range(12)) + "\n", encoding="utf-8")
    (folder / "capitals.txt").write_text(f"{text(200)}\n\n{text(200)}".replace("the", "The") + text(100), encoding="utf-8")
    (folder / "other.txt").write_text(text(2000), encoding="utf-8")
    for name in ("corpus.jsonl", "other.jsonl"):
        lines = [json.dumps({"text": text(80), "title": text(60)}) for _ in range(20)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def numbers_of_training(job: Job) -> list[Any]:
    """Parameter names and shapes, losses and weights of three optimizer steps with dropout on, the learning rates."""
    model = job.model.build()
    initialize(model, job.seed)
    optimizer = job.optim.build(rates(model, job.optim, declarations(model)).groups(model.named_parameters()))
    schedule = job.optim.schedule.build(job.trainer.max_steps)
    objective, length = job.stage.objective.build(), 12  # type: ignore[attr-defined]
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (3, 2, length + 1))
    losses = []
    for step in range(3):
        record = Record()
        context = Context(torch.arange(length).expand(2, length), CausalMask(length), record=record)
        batch = {"tokens": tokens[step, :, :-1], "labels": tokens[step, :, 1:]}
        (total, count) = objective(Outputs(model(batch["tokens"], context), model.head), batch)["loss"]
        (total / count + sum(record.sums.values()) / (2 * length)).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        scale_(gradients, clip_factor(global_norm(gradients), job.optim.clip_norm))
        if job.optim.clip_value is not None:
            bound_(gradients, job.optim.clip_value)
        set_lr(optimizer, job.optim.lr * schedule(step))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    weights = [(name, tuple(weight.shape), weight.double().abs().sum().item()) for name, weight in model.named_parameters()]
    return [losses, weights, [schedule(step) for step in range(0, 500, 5)]]


def numbers_of_data(job: Job) -> list[Any]:
    import numpy as np

    data = prepare(job.data, job.model.vocab_size)
    found: list[Any] = [data.tokenizer.vocab_size]
    for tokens in (data.train, data.held_out):
        rows = job.data.pack.build(tokens, job.data.seq_len)
        batch = rows.read(np.arange(len(rows)))
        found.append({name: field.tolist() for name, field in sorted(batch.items())})
    return found


def numbers_of_precision(job: Job) -> list[Any]:
    formats = job.precision.build("cpu")
    scale = formats.loss_scale
    found: list[Any] = [str(formats.weights), str(formats.products)]
    if scale is not None:
        for overflow in (False, False, False, True, True):
            scale.update(torch.tensor(overflow))
            found.append(float(scale.value))
    return found


@functools.cache
def fingerprint(overrides: tuple[str, ...], part: str) -> str:
    job = compose_job(list(overrides)).job
    return repr({"data": numbers_of_data, "precision": numbers_of_precision}.get(part, numbers_of_training)(job))


def test_every_field_has_its_proof() -> None:
    proven = set(CHANGES) | set(EFFECTS)
    assert sorted(set(fields()) - proven) == [], "fields without a proof that they do something"
    assert sorted(proven - set(fields())) == [], "proofs of fields that are gone"
    assert not set(CHANGES) & set(EFFECTS)


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("field", list(CHANGES))
def test_the_field_changes_the_job(field: str) -> None:
    base, change = CHANGES[field]
    part = field.split("/")[0].split(".")[0]
    part = {"job.data": "data", "job.precision": "precision"}.get(field, part)
    assert fingerprint(tuple(base), part) == fingerprint(tuple(base), part), "the fingerprint itself must repeat"
    assert fingerprint(tuple(base), part) != fingerprint((*base, change), part)


@pytest.mark.parametrize("field", list(EFFECTS))
def test_the_field_s_own_test_exists_and_names_it(field: str) -> None:
    place, name = EFFECTS[field].split("::")
    source = (TESTS / place).read_text(encoding="utf-8")
    functions = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    found = name in functions or (name == "*" and any(function.startswith("test_") for function in functions))
    assert found, f"{EFFECTS[field]} does not exist"


def test_specs_themselves_do_not_hide_fields() -> None:
    """A catalogue page has no class that `fields` would miss."""
    for group in groups():
        for cls in classes(group).values() if group != "experiment" else ():
            assert issubclass(cls, Spec)
            assert dataclasses.is_dataclass(cls)
            assert not inspect.isabstract(cls)
