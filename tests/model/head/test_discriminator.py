from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Discriminator


@pytest.mark.parametrize(("activation", "function"), [(Activation.gelu, F.gelu), (Activation.relu, F.relu)])
def test_one_logit_a_token(gpt, build, activation, function):
    head = build(gpt(head=Discriminator(activation=activation))).head
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    want = function(hidden @ head.dense.weight.T + head.dense.bias) @ head.weight.T + head.bias
    torch.testing.assert_close(head(hidden), want, rtol=1e-12, atol=1e-12)
    assert want.shape == (2, 3, 1)
