from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmfactory.core.context import CausalMask, Context
from llmfactory.model.count import by_part, parameters, train_flops_per_token
from llmfactory.model.head.spec import Lm
from llmfactory.model.position.spec import Rope


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
