from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.model.head.spec import TokenClassifier


def test_logits_at_every_token(gpt, build):
    head = build(gpt(head=TokenClassifier(n_classes=5))).head
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    assert head.pool(hidden, torch.ones(2, 3), 1) is hidden
    torch.testing.assert_close(head(hidden), hidden @ head.weight.T + head.bias, rtol=1e-12, atol=1e-12)
    assert head.weight.shape == (5, 24)


def test_dropout(gpt):
    head = gpt(head=TokenClassifier(n_classes=5, dropout=0.5)).build().head
    hidden = torch.ones(1000, 24)
    assert torch.equal(head.eval().features(hidden), hidden)
    assert 0.45 < (head.train().features(hidden) == 0).float().mean() < 0.55


def test_classes_are_at_least_one():
    with pytest.raises(ConfigError, match="at least 1"):
        TokenClassifier(n_classes=0)
