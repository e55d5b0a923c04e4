"""The fused head and loss against plain log-softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy, reference

N, D, V = 13, 6, 11

TORCH_ITSELF = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
"""torch.compile instantiates `torch.autograd.Function`, which warns that one should not."""


def inputs(
    dtype: torch.dtype = torch.float64, *, bias: bool = True, weighted: bool = False, seed: int = 0
) -> dict[str, Tensor | None]:
    make = torch.Generator().manual_seed(seed)
    labels = torch.randint(V, (N,), generator=make)
    labels[[1, 4, 12]] = IGNORE
    return {
        "hidden": torch.randn(N, D, generator=make, dtype=torch.float64).to(dtype).requires_grad_(),
        "weight_VD": torch.randn(V, D, generator=make, dtype=torch.float64).to(dtype).requires_grad_(),
        "labels": labels,
        "bias_V": torch.randn(V, generator=make, dtype=torch.float64).to(dtype).requires_grad_() if bias else None,
        "weights": torch.rand(N, generator=make) if weighted else None,
    }


def gradients(function, arguments: dict[str, Tensor | None], **options) -> list[Tensor]:
    leaves = [value for value in arguments.values() if value is not None and value.requires_grad]
    loss = function(**arguments, **options)
    # The factor stands for what follows the loss: it must reach the gradients.
    return [loss.detach(), *torch.autograd.grad(loss * 0.37, leaves)]


@pytest.mark.parametrize("chunk_rows", [1, 4, 5, 13, 512])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("bias", "weighted"), [(True, False), (False, True), (True, True)])
def test_equals_the_reference_in_float64(chunk_rows: int, label_smoothing: float, bias: bool, weighted: bool) -> None:
    arguments = inputs(bias=bias, weighted=weighted)
    ours = gradients(linear_cross_entropy, arguments, label_smoothing=label_smoothing, chunk_rows=chunk_rows)
    plain = gradients(reference, arguments, label_smoothing=label_smoothing)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_columns_of_the_gradient_at_once(monkeypatch) -> None:
    """The last ones are fewer."""
    whole = gradients(linear_cross_entropy, inputs(), chunk_rows=4)
    monkeypatch.setattr("llmfactory.kernel.linear_cross_entropy.COLUMNS", 4)
    for one, other in zip(gradients(linear_cross_entropy, inputs(), chunk_rows=4), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("softcap", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_capped_logits(softcap: float, label_smoothing: float) -> None:
    """Against autograd through c tanh(z / c), where the cap bends the logits much and hardly."""
    arguments = inputs(weighted=True)
    ours = gradients(linear_cross_entropy, arguments, label_smoothing=label_smoothing, softcap=softcap, chunk_rows=4)
    plain = gradients(reference, arguments, label_smoothing=label_smoothing, softcap=softcap)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    logits = torch.nn.functional.linear(arguments["hidden"], arguments["weight_VD"], arguments["bias_V"])
    capped = torch.nn.functional.cross_entropy(
        softcap * torch.tanh(logits / softcap),
        arguments["labels"].where(arguments["labels"] != IGNORE, 0),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    kept = arguments["weights"] * (arguments["labels"] != IGNORE)
    torch.testing.assert_close(ours[0], (capped * kept).sum().detach(), rtol=1e-12, atol=0)
    uncapped = linear_cross_entropy(**arguments, label_smoothing=label_smoothing).detach()
    assert not torch.isclose(ours[0], uncapped, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "softcap": 3.0}], ids=str)
def test_z_loss(options: dict[str, float]) -> None:
    """The reference's, and by hand; logits far from zero keep their digits."""
    arguments = inputs(weighted=True)
    ours = gradients(linear_cross_entropy, arguments, z=0.05, chunk_rows=4, **options)
    for one, other in zip(ours, gradients(reference, arguments, z=0.05, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    logits = torch.nn.functional.linear(arguments["hidden"], arguments["weight_VD"], arguments["bias_V"])
    if options:
        logits = 3.0 * torch.tanh(logits / 3.0)
    kept = arguments["weights"] * (arguments["labels"] != IGNORE)
    without = linear_cross_entropy(**arguments, **options).detach()
    torch.testing.assert_close(
        ours[0], without + 0.05 * (logits.logsumexp(-1).square() * kept).sum().detach(), rtol=1e-12, atol=0
    )
    far = {"hidden": torch.ones(1, 1), "weight_VD": torch.tensor([[-1e30], [2.0], [1.0]]), "labels": torch.tensor([1])}
    torch.testing.assert_close(linear_cross_entropy(**far, z=0.05), reference(**far, z=0.05))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_capped_logits_under_autocast(dtype: torch.dtype) -> None:
    arguments = inputs(torch.float32)
    plain = gradients(reference, arguments, softcap=2.0)
    with torch.autocast("cpu", dtype=dtype):
        ours = gradients(linear_cross_entropy, arguments, softcap=2.0, chunk_rows=4)
        usual = gradients(reference, arguments, softcap=2.0)
    for one, other, same_format in zip(ours, plain, usual, strict=True):
        assert (one - other).norm() <= 2 * (same_format - other).norm() + 1e-6 * other.norm()


def test_the_reference_is_torch_cross_entropy() -> None:
    arguments = inputs()
    logits = torch.nn.functional.linear(arguments["hidden"], arguments["weight_VD"], arguments["bias_V"])
    expected = torch.nn.functional.cross_entropy(
        logits, arguments["labels"], reduction="sum", label_smoothing=0.2, ignore_index=IGNORE
    )
    torch.testing.assert_close(reference(**arguments, label_smoothing=0.2), expected, rtol=1e-12, atol=0)


def test_gradcheck() -> None:
    arguments = inputs()
    labels = arguments["labels"]

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, bias_V=bias, label_smoothing=0.1, chunk_rows=4)

    assert torch.autograd.gradcheck(loss, (arguments["hidden"], arguments["weight_VD"], arguments["bias_V"]))


def test_leading_dimensions_are_free() -> None:
    arguments = inputs(bias=False)
    folded = {
        **arguments,
        "hidden": arguments["hidden"].detach()[:12].view(3, 4, D),
        "labels": arguments["labels"][:12].view(3, 4),
    }
    flat = {**arguments, "hidden": arguments["hidden"].detach()[:12], "labels": arguments["labels"][:12]}
    assert torch.equal(linear_cross_entropy(**folded), linear_cross_entropy(**flat))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(dtype: torch.dtype) -> None:
    arguments = inputs(torch.float32)
    plain = gradients(reference, arguments)
    with torch.autocast("cpu", dtype=dtype):
        ours = gradients(linear_cross_entropy, arguments, chunk_rows=4)
        usual = gradients(reference, arguments)
    assert ours[0].dtype == torch.float32
    for one, other, same_format in zip(ours, plain, usual, strict=True):
        assert one.dtype == torch.float32
        # No worse than the plain computation under the same autocast, up to a factor of two.
        assert (one - other).norm() <= 2 * (same_format - other).norm() + 1e-6 * other.norm()


def test_low_precision_weights_accumulate_in_float32() -> None:
    """300 equal rows in chunks of one: summed in bfloat16, the gradient would stop growing."""
    hidden = torch.ones(300, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(300, dtype=torch.int64), chunk_rows=1).backward()
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[-150.0], [150.0]]))


def test_without_gradients_nothing_is_kept() -> None:
    arguments = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(**arguments, chunk_rows=4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(**arguments).detach())


@pytest.mark.parametrize("frozen", ["hidden", "weight_VD", "bias_V"])
def test_frozen_inputs_get_no_gradient(frozen: str) -> None:
    arguments = inputs()
    arguments[frozen] = arguments[frozen].detach()
    for one, other in zip(gradients(linear_cross_entropy, arguments, chunk_rows=4), gradients(reference, arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_tied_weights_get_both_gradients() -> None:
    arguments = inputs(bias=False)
    table = arguments["weight_VD"]
    tokens = torch.arange(N) % V
    grads = []
    for function in (linear_cross_entropy, reference):
        (grad,) = torch.autograd.grad(function(table[tokens].tanh(), table, arguments["labels"]), table)
        grads.append(grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_only_ignored_labels_give_zero() -> None:
    arguments = inputs()
    arguments["labels"] = torch.full((N,), IGNORE)
    for value in gradients(linear_cross_entropy, arguments):
        assert torch.equal(value, torch.zeros_like(value))


def test_never_holds_all_logits() -> None:
    """The largest tensor made is a chunk of logits, or a weight."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight = torch.randn(256, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    with Watch():
        linear_cross_entropy(hidden, weight, torch.zeros(256, dtype=torch.int64), chunk_rows=32).backward()
    assert largest == 32 * 64


@TORCH_ITSELF
def test_compiles_without_a_graph_break() -> None:
    arguments = inputs(torch.float32)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    ours = gradients(compiled, arguments, label_smoothing=0.1, softcap=3.0, chunk_rows=4)
    for one, other in zip(ours, gradients(reference, arguments, label_smoothing=0.1, softcap=3.0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@TORCH_ITSELF
def test_compiles_to_machine_code() -> None:
    arguments = inputs(torch.float32)
    ours = gradients(torch.compile(linear_cross_entropy, fullgraph=True), arguments, chunk_rows=4)
    for one, other in zip(ours, gradients(reference, arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
