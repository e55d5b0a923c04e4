from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, DocumentMask
from llmfactory.model.embedding.spec import TokenSegment


def test_the_context_of_a_batch(llama):
    model = llama().build()
    batch = {
        "tokens": torch.ones(1, 5, dtype=torch.long),
        "positions": torch.tensor([[0, 1, 0, 1, 2]]),
        "segments": torch.tensor([[1, 1, 2, 2, 2]]),
    }
    packed = model.context(batch)
    assert isinstance(packed.mask, DocumentMask)
    assert torch.equal(packed.segments, batch["segments"])
    plain = model.context(batch, isolated=False)
    assert isinstance(plain.mask, CausalMask)
    assert plain.segments is None
    assert torch.equal(plain.positions, batch["positions"])


def test_kinds_of_text_reach_a_decoder_s_embedding(gpt, build):
    model = build(gpt(embedding=TokenSegment(n_types=2)))
    batch = {
        "tokens": torch.ones(1, 3, dtype=torch.long),
        "positions": torch.tensor([[0, 1, 2]]),
        "segments": torch.ones(1, 3, dtype=torch.long),
    }
    typed = {**batch, "types": torch.tensor([[0, 0, 1]])}
    one, other = model(batch["tokens"], model.context(batch)), model(batch["tokens"], model.context(typed))
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=0, atol=1e-12)
    assert not torch.allclose(one[:, 2], other[:, 2])
