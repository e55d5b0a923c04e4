from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, DocumentMask


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
