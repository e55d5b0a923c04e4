from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Classifier, Pooling


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, Activation.tanh, Activation.gelu])
def test_logits(gpt, build, activation, bias, pooling):
    head = build(gpt(head=Classifier(n_classes=3, activation=activation, bias=bias, pooling=pooling))).head
    hidden, segments = torch.randn(1, 6, 24, dtype=torch.float64), torch.tensor([[1, 1, 1, 2, 2, 0]])
    documents = (hidden[0, :3], hidden[0, 3:5])
    vectors = torch.stack([{"first": x[0], "last": x[-1], "mean": x.mean(0)}[pooling.name] for x in documents])
    if activation is not None:
        functions = {Activation.tanh: torch.tanh, Activation.gelu: torch.nn.functional.gelu}
        vectors = functions[activation](vectors @ head.dense.weight.T + head.dense.bias)
    want = vectors @ head.weight.T + (head.bias if bias else 0.0)
    torch.testing.assert_close(head(head.pool(hidden, segments, 2))[0], want, rtol=1e-12, atol=1e-12)
    assert (head.bias is not None) is bias
    assert (head.dense is not None) is (activation is not None)


@pytest.mark.parametrize("where", ["input_dropout", "dropout"])
def test_dropout_in_training_only(gpt, where):
    """Before the dense layer it reaches every feature; after it, half of them are zero."""
    spec = gpt(head=Classifier(n_classes=3, activation=Activation.relu, **{where: 0.5}))
    head = spec.build().head
    with torch.no_grad():
        head.dense.weight.copy_(torch.eye(24))
        head.dense.bias.zero_()
    hidden = torch.ones(1000, 24)
    assert torch.equal(head.eval().features(hidden), hidden)
    dropped = head.train().features(hidden)
    assert 0.45 < (dropped == 0).float().mean() < 0.55
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_which_dropout_is_which(gpt):
    """A bias of the dense layer hides what was dropped before it, and nothing of what is dropped after it."""
    for where, zeros in (("input_dropout", 0.0), ("dropout", 0.5)):
        head = gpt(head=Classifier(n_classes=3, activation=Activation.relu, **{where: 0.5})).build().head.train()
        with torch.no_grad():
            head.dense.weight.copy_(torch.eye(24))
            head.dense.bias.fill_(1.0)
        assert abs(float((head.features(torch.ones(1000, 24)) == 0).float().mean()) - zeros) < 0.05


def test_bad_values():
    with pytest.raises(ConfigError) as error:
        Classifier(n_classes=0, dropout=1.5, input_dropout=-1.0)
    assert [problem.path for problem in error.value.problems] == ["n_classes", "input_dropout", "dropout"]
