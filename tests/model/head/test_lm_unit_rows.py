from __future__ import annotations

import torch

from llmfactory.core.sharding import Layout
from llmfactory.model.declarations import declarations
from llmfactory.model.head.spec import LmUnitRows


def head(dtype=torch.float64):
    made = LmUnitRows().build(7, 5, None, 0.02, None)
    with torch.no_grad():
        made.rows.normal_(generator=torch.Generator().manual_seed(0))
    return made.to(dtype)


def test_logits_are_those_of_rows_of_length_one():
    made, hidden = head(), torch.randn(2, 3, 5, dtype=torch.float64)
    for token in range(7):
        row = made.rows[token] / made.rows[token].square().sum().sqrt()
        torch.testing.assert_close(made(hidden)[..., token], hidden @ row)
    with torch.no_grad():
        before = made(hidden)
        made.rows *= torch.arange(1.0, 8.0)[:, None]
        torch.testing.assert_close(made(hidden), before)


def test_half_precision_is_divided_in_float32():
    made = head().bfloat16()
    want = torch.nn.functional.normalize(made.rows.float(), dim=-1).bfloat16()
    assert torch.equal(made.weight, want)


def test_gradients():
    made = head()
    hidden = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    logits = lambda rows: torch.func.functional_call(made, {"rows": rows}, (hidden,))  # noqa: E731
    assert torch.autograd.gradcheck(logits, made.rows.detach().requires_grad_())


def test_a_loss_that_fuses_the_product_sees_the_divided_rows(build, llama):
    model = build(llama(head=LmUnitRows()))
    assert declarations(model)["head.rows"].layout is Layout.vocab
    assert "head.weight" not in dict(model.named_parameters())
    hidden = torch.randn(6, 24, dtype=torch.float64)
    labels = torch.tensor([0, 5, 9, -100, 96, 3])
    want = torch.nn.functional.cross_entropy(model.head(hidden), labels, reduction="sum", ignore_index=-100)
    got = model.head.cross_entropy(hidden, labels)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad(loss, model.head.rows)[0] for loss in (got, want)]
    torch.testing.assert_close(*gradients)
