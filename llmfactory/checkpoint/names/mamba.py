"""Mamba (Gu and Dao 2023): the two halves of the projection into a block stand in one matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, joined, linear, same
from llmfactory.checkpoint.names.reading import defaults, expect, refuse, said, wanted
from llmfactory.core.errors import UserError
from llmfactory.model.embedding.spec import Token
from llmfactory.model.head.spec import Lm
from llmfactory.model.mixer.spec import Mamba as Mixer
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.spec import ModelSpec, Recurrent

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 2048
"""Tokens of the published models' training rows: no key says it, and none limits it."""


class Mamba(Family):
    types = ("mamba",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, hidden_act="silu", time_step_init_scheme="random", time_step_scale=1.0)
        dim, expand = config["hidden_size"], config.get("expand", 2)
        inner = config.get("intermediate_size", int(expand * dim))
        if inner % dim:
            raise UserError(f"intermediate_size={inner} in config.json has no counterpart here (only multiples of {dim})")
        rank = config.get("time_step_rank", "auto")
        if rank == math.ceil(dim / 16):  # the library writes the number even where it is the usual one
            rank = "auto"
        mixer = Mixer(
            expand=inner // dim,
            state=config.get("state_size", 16),
            conv=config.get("conv_kernel", 4),
            rank=None if rank == "auto" else rank,
            bias=config.get("use_bias", False),
            conv_bias=config.get("use_conv_bias", True),
            step_min=config.get("time_step_min", 0.001),
            step_max=config.get("time_step_max", 0.1),
            step_floor=config.get("time_step_floor", 1e-4),
        )
        return Recurrent(
            vocab_size=config["vocab_size"],
            dim=dim,
            max_positions=LENGTH,
            n_layers=config["num_hidden_layers"],
            init_std=config.get("initializer_range", 0.1),
            depth_scaled_init=config.get("rescale_prenorm_residual", False),
            embedding=Token(),
            mixer=mixer,
            norm=RmsNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
            head=Lm(tied=config.get("tie_word_embeddings", True)),
            residual=True,
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = expect(spec, Recurrent, residual=True)
        defaults(model, "init_std", "dropout", "depth_scaled_init")
        said(model.embedding, Token)
        mixer, norm, head = expect(model.mixer, Mixer), said(model.norm, RmsNorm, "eps"), said(model.head, Lm)
        return {
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "intermediate_size": mixer.expand * model.dim,
            "num_hidden_layers": model.n_layers,
            "state_size": mixer.state,
            "expand": mixer.expand,
            "conv_kernel": mixer.conv,
            "time_step_rank": mixer.rank_at(model.dim),
            "use_bias": mixer.bias,
            "use_conv_bias": mixer.conv_bias,
            "time_step_min": mixer.step_min,
            "time_step_max": mixer.step_max,
            "time_step_floor": mixer.step_floor,
            "layer_norm_epsilon": norm.eps,
            "initializer_range": model.init_std,
            # Of the start only; where it is true, `from_pretrained` of transformers 5 scales the weights that it has read.
            "rescale_prenorm_residual": False,
            "tie_word_embeddings": head.tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, Recurrent)
        mixer, head = expect(model.mixer, Mixer), expect(model.head, Lm)
        inner = mixer.expand * model.dim
        yield same("embedding.weight", "backbone.embeddings.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"layers.{layer}.mixer", f"backbone.layers.{layer}.mixer"
            yield same(f"layers.{layer}.norm.weight", f"backbone.layers.{layer}.norm.weight")
            for kind in ("weight", "bias") if mixer.bias else ("weight",):
                yield joined([f"{ours}.up.{kind}", f"{ours}.gate.{kind}"], f"{theirs}.in_proj.{kind}", [inner, inner])
            yield _kernels(f"{ours}.conv.weight", f"{theirs}.conv1d.weight")
            if mixer.conv_bias:
                yield same(f"{ours}.conv.bias", f"{theirs}.conv1d.bias")
            yield same(f"{ours}.select.weight", f"{theirs}.x_proj.weight")
            yield from linear(f"{ours}.step", f"{theirs}.dt_proj", bias=True)
            yield same(f"{ours}.log_rate", f"{theirs}.A_log")
            yield same(f"{ours}.skip", f"{theirs}.D")
            yield from linear(f"{ours}.down", f"{theirs}.out_proj", mixer.bias)
        yield same("norm.weight", "backbone.norm_f.weight")
        if not head.tied:
            yield same("head.weight", "lm_head.weight")


def _kernels(ours: str, theirs: str) -> Entry:
    """[D, K] here, [D, 1, K] there."""

    def squeezed(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].squeeze(1)]

    def unsqueezed(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].unsqueeze(1)]

    return Entry((ours,), (theirs,), squeezed, unsqueezed)
