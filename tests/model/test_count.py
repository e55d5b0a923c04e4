from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmfactory.core.context import CausalMask, Context
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.count import by_part, parameters, train_flops_per_token
from llmfactory.model.ffn.spec import Activation, Glu, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.position.spec import Rope

GPT2 = {"vocab_size": 50257, "max_positions": 1024}
PUBLISHED = {
    "gpt2": (124_439_808, dict(**GPT2, dim=768, n_layers=12), 12, None, 3072),
    "gpt2_xl": (1_557_611_200, dict(**GPT2, dim=1600, n_layers=48), 25, None, 6400),
    "llama2_7b": (6_738_415_616, {"vocab_size": 32000, "dim": 4096, "n_layers": 32, "max_positions": 4096}, 32, None, 11008),
    "llama2_70b": (68_976_648_192, {"vocab_size": 32000, "dim": 8192, "n_layers": 80, "max_positions": 4096}, 64, 8, 28672),
    "llama3_8b": (8_030_261_248, {"vocab_size": 128256, "dim": 4096, "n_layers": 32, "max_positions": 8192}, 32, 8, 14336),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name, gpt, llama):
    want, sizes, n_heads, n_kv_heads, hidden = PUBLISHED[name]
    if name.startswith("gpt2"):
        ffn = Mlp(hidden=hidden, activation=Activation.gelu_tanh)
        spec = gpt(**sizes, attention=Gqa(n_heads=n_heads, bias=True), ffn=ffn, head=Lm(tied=True))
    else:
        ffn = Glu(hidden=hidden, activation=Activation.silu)
        spec = llama(**sizes, attention=Gqa(n_heads=n_heads, n_kv_heads=n_kv_heads), ffn=ffn, head=Lm(tied=False))
    with torch.device("meta"):
        assert parameters(spec.build()) == want


def test_rows_add_up(family):
    model = family().build()
    rows = by_part(model)
    assert sum(row.parameters for row in rows) == parameters(model)
    attention = next(row for row in rows if row.part == "blocks.*.attention")
    assert (attention.kind, attention.copies) == ("GroupedQueryAttention", 3)
    assert attention.parameters == 3 * sum(p.numel() for p in model.blocks[0].attention.parameters())
    assert [row.part for row in rows][-1] == ("norm" if family().head.tied else "head")


@pytest.mark.parametrize("tied", [True, False])
def test_flops_equal_those_that_pytorch_counts(family, tied):
    """Its counter takes attention as full; ours halves it. Two lengths tell the two kinds apart."""
    spec = family(head=Lm(tied=tied))
    model = spec.build()
    for length in (8, 32):
        tokens = torch.zeros(2, length, dtype=torch.long)
        # The counter does not know the CPU's fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            hidden = model(tokens, Context(torch.arange(length).expand(2, length), CausalMask(length)))
            model.head(hidden)
        full_attention = spec.n_layers * 2 * 2 * 24 * length
        want = 3 * (counter.get_total_flops() / (2 * length) - full_attention / 2)
        assert train_flops_per_token(spec, length) == pytest.approx(want, rel=1e-12)


def test_flops_count_no_table(gpt):
    """Neither the vocabulary's rows as a table nor learned positions cost anything; the head's product does."""
    base = train_flops_per_token(gpt(), 16)
    assert train_flops_per_token(gpt(position=Rope()), 16) == base
    assert train_flops_per_token(gpt(max_positions=999), 16) == base
    assert train_flops_per_token(gpt(vocab_size=98), 16) - base == 6 * 24
