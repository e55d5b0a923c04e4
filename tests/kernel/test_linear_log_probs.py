"""Log-probabilities and entropies of a head, chunk by chunk, against plain log-softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmfactory.kernel.linear_log_probs import linear_log_probs, reference

N, D, V = 13, 6, 11
UP = torch.randn(2, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
"""What follows weighs each token in its own way."""
FROZEN = [(), ("hidden_ND",), ("weight_VD",), ("bias_V",), ("weight_VD", "bias_V")]


def inputs(dtype: torch.dtype = torch.float64, bias: bool = True, frozen: tuple[str, ...] = ()) -> dict[str, Tensor | None]:
    make = torch.Generator().manual_seed(0)
    made: dict[str, Tensor | None] = {
        "hidden_ND": torch.randn(N, D, generator=make, dtype=torch.float64).to(dtype),
        "weight_VD": torch.randn(V, D, generator=make, dtype=torch.float64).to(dtype),
        "bias_V": torch.randn(V, generator=make, dtype=torch.float64).to(dtype) if bias else None,
    }
    for name, value in made.items():
        if value is not None and name not in frozen:
            value.requires_grad_()
    return {**made, "labels_N": torch.randint(V, (N,), generator=make)}


def results(function: Any, arguments: dict[str, Tensor | None], both: bool, **options: Any) -> list[Tensor]:
    """Values, and the gradients of a sum that weighs each."""
    logps, entropies = function(**arguments, **options)
    total = (logps * UP[0]).sum() + ((entropies * UP[1]).sum() if both else 0)
    leaves = [value for value in arguments.values() if value is not None and value.requires_grad]
    found = [logps.detach(), *torch.autograd.grad(total, leaves)]
    return [*found, entropies.detach()] if both else found


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("frozen", FROZEN, ids=str)
@pytest.mark.parametrize(("chunk_rows", "softcap", "temperature"), [(1, None, 1.0), (4, 2.0, 0.7), (512, None, 1.3)])
def test_equals_the_reference_in_float64(
    entropy: bool, frozen: tuple[str, ...], chunk_rows: int, softcap: float | None, temperature: float
) -> None:
    for bias in (True, False):
        arguments = inputs(bias=bias, frozen=frozen)
        options = {"softcap": softcap, "temperature": temperature}
        ours = results(linear_log_probs, arguments, entropy, entropy=entropy, chunk_rows=chunk_rows, **options)
        plain = results(reference, arguments, entropy, **options)
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_reference_is_torch_distributions() -> None:
    arguments = inputs()
    logits = torch.nn.functional.linear(arguments["hidden_ND"], arguments["weight_VD"], arguments["bias_V"])  # type: ignore[arg-type]
    told = torch.distributions.Categorical(logits=logits)
    logps, entropies = reference(**arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(logps, told.log_prob(arguments["labels_N"]))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(entropies, told.entropy())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("entropy", [False, True])
def test_gradcheck(entropy: bool) -> None:
    arguments = inputs()

    def both(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        found = linear_log_probs(hidden, weight, arguments["labels_N"], bias_V=bias, entropy=entropy, chunk_rows=4)  # type: ignore[arg-type]
        return found if entropy else found[:1]

    assert torch.autograd.gradcheck(both, (arguments["hidden_ND"], arguments["weight_VD"], arguments["bias_V"]))


@pytest.mark.parametrize("frozen", [(), ("weight_VD", "bias_V")], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(dtype: torch.dtype, frozen: tuple[str, ...]) -> None:
    arguments = inputs(torch.float32, frozen=frozen)
    plain = results(reference, arguments, False)
    with torch.autocast("cpu", dtype=dtype):
        ours = results(linear_log_probs, arguments, False, chunk_rows=4)
        usual = results(reference, arguments, False)
    assert ours[0].dtype == torch.float32
    for one, other, same_format in zip(ours, plain, usual, strict=True):
        assert one.dtype == torch.float32
        # No worse than the plain computation under the same autocast, up to a factor of two.
        assert (one - other).norm() <= 2 * (same_format - other).norm() + 1e-6 * other.norm()


def test_low_precision_weights_accumulate_in_float32() -> None:
    """300 equal tokens in chunks of one: summed in bfloat16, the gradient would stop growing."""
    hidden = torch.ones(300, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_log_probs(hidden, weight, torch.zeros(300, dtype=torch.int64), chunk_rows=1)[0].sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[150.0], [-150.0]]))


def test_large_logits_stay_finite() -> None:
    hidden, weight = torch.full((1, 1), 300.0, requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    logps, entropies = linear_log_probs(hidden, weight, torch.tensor([1]), entropy=True)
    (logps + entropies).sum().backward()
    assert logps.item() == -600.0
    assert entropies.item() == pytest.approx(0.0, abs=1e-6)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("frozen", [(), ("weight_VD", "bias_V")], ids=str)
def test_no_token_is_no_harm(frozen: tuple[str, ...]) -> None:
    arguments = inputs(frozen=frozen)
    none = {**arguments, "hidden_ND": arguments["hidden_ND"][:0], "labels_N": arguments["labels_N"][:0]}  # type: ignore[index]
    logps, entropies = linear_log_probs(**none, entropy=True)  # type: ignore[arg-type]
    assert logps.shape == entropies.shape == (0,)
    logps = linear_log_probs(**none)[0]  # type: ignore[arg-type]
    leaves = [value for value in arguments.values() if value is not None and value.requires_grad]
    assert all(not grad.any() for grad in torch.autograd.grad(logps.sum(), leaves))


@pytest.mark.parametrize("frozen", [False, True])
def test_never_holds_all_logits(frozen: bool) -> None:
    """The largest tensor made is a chunk of logits, or a weight."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight = torch.randn(256, 4, requires_grad=True), torch.randn(64, 4, requires_grad=not frozen)
    with Watch():
        linear_log_probs(hidden, weight, torch.zeros(256, dtype=torch.int64), chunk_rows=32)[0].sum().backward()
    assert largest == 32 * 64


def test_heads_take_places_that_have_a_label() -> None:
    from llmfactory.core.batch import IGNORE
    from llmfactory.model.embedding.spec import Token
    from llmfactory.model.head.spec import Lm

    make = torch.Generator().manual_seed(1)
    head = Lm(tied=False, bias=True, width=5, softcap=3.0).build(V, D, Token().build(V, D, 0.1), 0.1, lambda dim: None).double()  # type: ignore[arg-type,return-value]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=make)
    hidden_BTD = torch.randn(2, 4, D, generator=make, dtype=torch.float64)
    labels_BT = torch.randint(V, (2, 4), generator=make)
    labels_BT[0, 1] = labels_BT[1] = IGNORE
    told = torch.distributions.Categorical(logits=head(hidden_BTD) / 0.7)
    kept = labels_BT != IGNORE
    logps_BT, entropies_BT = head.log_probs_and_entropy(hidden_BTD, labels_BT, 0.7)
    expected = torch.where(kept, told.log_prob(labels_BT.clamp(min=0)), 0.0)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logps_BT, expected)
    torch.testing.assert_close(head.log_probs(hidden_BTD, labels_BT, 0.7), expected)
    torch.testing.assert_close(entropies_BT, torch.where(kept, told.entropy(), 0.0))  # type: ignore[no-untyped-call]
