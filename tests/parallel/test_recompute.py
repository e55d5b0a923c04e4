"""Blocks that are computed again: the same numbers bit for bit, and as many and as much of them as the layout says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import DecoderOnly
from llmfactory.parallel.recompute import Seen, draws, operations, recompute
from llmfactory.parallel.spec import Mesh

LAYERS, ROWS, LENGTH, DIM = 5, 2, 8, 16


class Calls(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        self.counts[str(operation.overloadpacket)] += 1
        return operation(*given, **(named or {}))


def decoder(dropout=0.2, attention_dropout=0.0):
    model = DecoderOnly(
        vocab_size=30,
        dim=DIM,
        max_positions=LENGTH,
        n_layers=LAYERS,
        norm=RmsNorm(),
        position=Rope(),
        attention=Gqa(n_heads=2, dropout=attention_dropout),
        ffn=Glu(hidden=24, activation=Activation.silu),
        block=PreNorm(),
        embedding=Token(),
        head=Lm(tied=True),
        dropout=dropout,
    ).build()
    initialize(model, 0)
    return model.double().train()


def step(model, rows=ROWS):
    """Loss, gradients and calls of one pass over the same tokens, with the same random numbers."""
    model.zero_grad()
    torch.manual_seed(3)
    tokens = (torch.arange(rows * LENGTH) * 7 % 30).view(rows, LENGTH)
    context = Context(torch.arange(LENGTH).expand(rows, LENGTH), CausalMask(LENGTH))
    with Calls() as calls:
        loss = model(tokens, context).square().sum()
        loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()], calls.counts


def insist_equal(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


LAYOUTS = {
    "all": {},
    "every second": {"recompute_every": 2},
    "products": {"recompute_keep": ["products"]},
    "attention": {"recompute_keep": ["attention", "aten.silu"]},
    "noise": {"recompute_keep": ["aten.native_dropout", "aten.bernoulli_", "products"]},
    "budget": {"recompute_budget_mb": 0.05},
}


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "attention drops"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_numbers_bit_for_bit(name, dropout):
    plain, again = decoder(attention_dropout=dropout), decoder(attention_dropout=dropout)
    recompute(again, Mesh(recompute=True, **LAYOUTS[name]))
    for _ in range(3):  # a budget's first passes look, the third one knows
        insist_equal(step(again), step(plain))
    assert list(dict(again.named_parameters())) == list(dict(plain.named_parameters()))


SILU = "aten.silu"
ONCE = "aten._scaled_dot_product_flash_attention_for_cpu"
"""Runs once in each forward pass of a block."""


@pytest.mark.parametrize(("every", "again"), [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_how_many_blocks_are_computed_again(every, again):
    model = decoder()
    recompute(model, Mesh(recompute=True, recompute_every=every))
    assert step(model)[2][ONCE] == LAYERS + again


@pytest.mark.parametrize(
    ("keep", "once", "twice"),
    [
        ("products", ("aten.mm",), ("aten._scaled_dot_product_flash_attention_for_cpu", SILU)),
        ("attention", ("aten._scaled_dot_product_flash_attention_for_cpu",), ("aten.mm", SILU)),
        ("aten.silu", (SILU,), ("aten.mm",)),
    ],
)
def test_what_is_kept_is_not_computed_again(keep, once, twice):
    counts = []
    for layout in (Mesh(recompute=True), Mesh(recompute=True, recompute_keep=[keep])):
        model = decoder(dropout=0.0)
        recompute(model, layout)
        counts.append(step(model)[2])
    assert all(counts[1][name] == counts[0][name] for name in twice)
    assert all(counts[1][name] < counts[0][name] for name in once)


def test_which_operations_draw_random_numbers():
    """A fused attention does where it has a rate of dropout, in its place or by its name."""
    attention, x = torch.ops.aten._scaled_dot_product_flash_attention.default, torch.zeros(1)
    assert draws(attention, (x, x, x, 0.1), {})
    assert draws(attention, (x, x, x), {"dropout_p": 0.1})
    assert not draws(attention, (x, x, x, 0.0), {})
    assert not draws(attention, (x, x, x), {})
    assert draws(torch.ops.aten.native_dropout.default, (x, 0.1, True), {})
    assert not draws(torch.ops.aten.mm.default, (x, x), {})


def test_an_operation_that_torch_does_not_have():
    with pytest.raises(UserError, match=r"recompute_keep names aten\.no_such_thing"):
        operations(["aten.no_such_thing"])


# ---- a budget


def kept_bytes(model, rows=ROWS):
    """What the blocks keep, counted from outside: storages alive for the backward pass, without weights and what lies outside."""
    found = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def seen(x):
        if x.untyped_storage().data_ptr() not in own:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = torch.zeros(rows, LENGTH, dtype=torch.long)
    context = Context(torch.arange(LENGTH).expand(rows, LENGTH), CausalMask(LENGTH))
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        model(tokens, context).sum().backward()
    return sum(found.values())


def test_a_budget_is_kept():
    """As many blocks run as they are as fit; one more would not."""
    whole = decoder(dropout=0.0)
    recompute(whole, Mesh(recompute=True, recompute_budget_mb=1e9))
    for _ in range(3):
        everything = step(whole)
    assert everything[2][ONCE] == LAYERS, "nothing is computed again where all fits"
    nothing = decoder(dropout=0.0)
    recompute(nothing, Mesh(recompute=True, recompute_budget_mb=1e-6))
    step(nothing)
    assert step(nothing)[2][ONCE] == 2 * LAYERS, "everything where nothing fits"

    sizes = seen_sizes(whole)
    a_block, an_input = sizes.whole[0], sizes.inputs[0]
    assert set(sizes.whole) == set(range(LAYERS))
    assert an_input == ROWS * LENGTH * DIM * 8
    for fitting in (1, 3):
        least = fitting * a_block + (LAYERS - fitting) * an_input
        for budget, kept in ((least, fitting), (least - 1, max(0, fitting - 1))):
            model = decoder(dropout=0.0)
            recompute(model, Mesh(recompute=True, recompute_budget_mb=budget / 1e6))
            for _ in range(3):
                counts = step(model)[2]
            assert counts[ONCE] == 2 * LAYERS - kept, (budget, kept)


def seen_sizes(model):
    """What the budget of a model has measured."""
    (budget,) = {id(block.forward.func): block.forward.func for block in model.blocks}.values()
    ((_, sizes),) = budget.sizes.items()
    return sizes


def test_what_a_block_keeps_is_what_autograd_holds():
    model = decoder(dropout=0.0)
    everything = kept_bytes(model)
    recompute(model, Mesh(recompute=True, recompute_budget_mb=1e9))
    for _ in range(2):
        step(model)
    sizes = seen_sizes(model)
    # Blocks share the tables of positions, and a block's input is no other's.
    assert sum(sizes.whole.values()) == pytest.approx(everything, rel=0.25)


def test_another_shape_is_measured_for_itself():
    model = decoder(dropout=0.0)
    recompute(model, Mesh(recompute=True, recompute_budget_mb=0.15))
    few, many = ([step(model, rows)[2][ONCE] for _ in range(3)][-1] for rows in (1, 4))
    assert LAYERS <= few < many < 2 * LAYERS


def test_evaluation_keeps_nothing_and_measures_nothing():
    model = decoder(dropout=0.0)
    recompute(model, Mesh(recompute=True, recompute_budget_mb=0.06))
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    context = Context(torch.arange(LENGTH).expand(ROWS, LENGTH), CausalMask(LENGTH))
    with torch.no_grad():
        model(tokens, context)
    assert not model.blocks[0].forward.func.sizes


def test_last_blocks_first():
    sizes = Seen(inputs=[1, 1, 1], whole={0: 10, 1: 4, 2: 5})
    assert sizes.kept(16) == {0, 1, 2} - {0} == sizes.kept(10)
    assert sizes.kept(7) == {2}
    assert sizes.kept(19) == {0, 1, 2}
    assert Seen(inputs=[1, 1], whole={0: 10}).kept(11) == {1}, "who was not seen is as large as the largest"
