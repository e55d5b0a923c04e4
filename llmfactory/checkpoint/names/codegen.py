"""CodeGen (Nijkamp et al. 2022) and MOSS (Sun et al. 2023), which started from it: GPT-J with q, v and k in one matrix.

The matrix is cut into four parts, as it lay on the cores that CodeGen was trained on, and each part into q, v and k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, same
from llmfactory.checkpoint.names.gptj import ends, gptj_config, gptj_spec, norm_and_ffn
from llmfactory.checkpoint.names.reading import decoder, refuse
from llmfactory.core.errors import UserError
from llmfactory.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

CORES = 4
"""Parts of the fused matrix."""


class Codegen(Family):
    types = ("codegen", "moss")
    ignored = (r"(transformer\.)?h\.\d+\.attn\.(causal_mask|embed_positions)",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, tie_word_embeddings=False, scale_attn_weights=True, wbits=32, quantized=False)
        spec = gptj_spec(config)
        if spec.attention.n_heads % CORES:
            raise UserError(f"n_head={spec.attention.n_heads} in config.json is no multiple of {CORES}")
        return spec

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        if model.attention.n_heads % CORES:
            raise Inexpressible(f"its heads are no multiple of {CORES}")
        return gptj_config(model, "codegen", "CodeGenForCausalLM")

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        yield from ends(model)
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            qkv = tuple(f"{ours}.attention.{name}.weight" for name in "qkv")
            yield Entry(qkv, (f"{theirs}.attn.qkv_proj.weight",), cut, join)
            yield same(f"{ours}.attention.o.weight", f"{theirs}.attn.out_proj.weight")
            yield from norm_and_ffn(ours, theirs)


def cut(tensors: list[Tensor]) -> list[Tensor]:
    """Theirs [4, (q, v, k), D / 4, D], flat -> q, k, v [D, D]."""
    q, v, k = tensors[0].unflatten(0, (CORES, 3, -1)).unbind(1)  # type: ignore[no-untyped-call]
    return [piece.flatten(0, 1).contiguous() for piece in (q, k, v)]


def join(tensors: list[Tensor]) -> list[Tensor]:
    import torch

    q, k, v = (tensor.unflatten(0, (CORES, -1)) for tensor in tensors)  # type: ignore[no-untyped-call]
    return [torch.stack((q, v, k), 1).flatten(0, 2)]
