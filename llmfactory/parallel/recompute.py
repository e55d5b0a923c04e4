"""Activation recomputation (Chen et al. 2016): of a block only the input is kept; the rest is computed again in the backward pass,
with the same dropout masks.

Which blocks: all, every n-th, or as many as a budget of memory asks for. What is kept besides the input: outputs of some operations
(Korthikanti et al. 2022, section 5: "selective"). An operation that draws random numbers is always computed again, since a kept
output would leave the random numbers behind it at other places in the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, checkpoint, create_selective_checkpoint_contexts

from llmfactory.core.errors import UserError
from llmfactory.parallel.shard import units
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.weights import local

MEGABYTE = 1_000_000
WORDS: dict[str, tuple[str, ...]] = {
    "products": (
        *("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._grouped_mm", "mkldnn._linear_pointwise"),
        *("llmfactory.product", "aten._scaled_mm"),
    ),
    "attention": (
        *("aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu"),
        *("aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention"),
        *("torch_attn._varlen_attn",),
    ),
}
"""Operations behind a word of `parallel.recompute_keep`; those that this torch does not have are left out."""


def recompute(root: nn.Module, layout: Mesh) -> None:
    """Let blocks of `root` keep less, as the layout says, in place. Names of parameters stay.

    Raises:
        UserError: `recompute_keep` names an operation that torch does not have.
    """
    again = partial(checkpoint, use_reentrant=False)
    if layout.recompute_keep:
        again = partial(again, context_fn=partial(contexts, operations(layout.recompute_keep)))
    blocks = list(units(root))
    if layout.recompute_budget_mb is None:
        for block in blocks[:: layout.recompute_every]:
            block.forward = partial(again, block.forward)
        return
    budget = Budget(layout.recompute_budget_mb * MEGABYTE, again)
    root.register_forward_pre_hook(lambda module, given: budget.begin())
    for block in blocks:
        block.forward = partial(budget, block, block.forward)


# ---- what is kept of a block that is computed again


def operations(names: Sequence[str]) -> frozenset[Any]:
    """Of words and of names `<library>.<operation>`: all overloads."""
    found: list[Any] = []
    for name in names:
        for path in WORDS.get(name, (name,)):
            library, _, operation = path.partition(".")
            packet = getattr(getattr(torch.ops, library), operation, None)
            if packet is not None:
                found += [getattr(packet, overload) for overload in packet.overloads()]
            elif name not in WORDS:
                raise UserError(
                    f"parallel.recompute_keep names {name}, but torch {torch.__version__} has no such operation; "
                    f"use parallel.recompute_keep=[{','.join(WORDS)}] or names such as aten.mm"
                )
    return frozenset(found)


def contexts(kept: frozenset[Any]) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For a block's forward pass, and for computing it again."""

    def policy(context: SelectiveCheckpointContext, operation: Any, *given: Any, **named: Any) -> CheckpointPolicy:
        keeps = operation in kept and not draws(operation, given, named)
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

    forward, again = create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]
    return forward, again


def draws(operation: Any, given: Sequence[Any], named: dict[str, Any]) -> bool:
    """Whether a call draws random numbers: one that may does not where its rate of dropout is zero."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return False
    for number, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            rate = given[number] if number < len(given) else named.get("dropout_p", argument.default_value)
            return bool(rate)
    return True


# ---- which blocks, to stay within a budget


@dataclass
class Seen:
    """What the blocks of a forward pass keep, in the order in which they are called."""

    inputs: list[int] = field(default_factory=list)
    """Bytes that each keeps where it is computed again."""
    whole: dict[int, int] = field(default_factory=dict)
    """Bytes of those that were seen to run as they are."""

    def kept(self, budget: float) -> frozenset[int]:
        """Those that run as they are: the last ones that fit beside the inputs of the others. They are needed first, so what
        they keep is gone before others are computed again. Who has not been seen is taken for the largest."""
        largest, total = max(self.whole.values(), default=0), sum(self.inputs)
        found = []
        for number in reversed(range(len(self.inputs))):
            total += max(0, self.whole.get(number, largest) - self.inputs[number])
            if total > budget:
                break
            found.append(number)
        return frozenset(found)


class Budget:
    """Has blocks computed again so that all together keep at most so many bytes of each micro-batch.

    The first block of the first micro-batch of each shape runs as it is, to see what a block keeps; then those that have not been seen
    are looked at when they first run as they are.
    """

    def __init__(self, limit: float, again: Callable[..., Any]) -> None:
        self.limit, self.again = limit, again
        self.sizes: dict[tuple[int, ...], Seen] = {}
        """By the shape of the first block's input."""
        self._call = 0
        self._now, self._kept, self._first = Seen(), frozenset[int](), True

    def begin(self) -> None:
        """A forward pass of the model begins."""
        self._call = 0

    def __call__(self, block: nn.Module, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        number, self._call = self._call, self._call + 1
        inputs = [x for x in given if isinstance(x, Tensor)]
        if number == 0:
            shape = tuple(inputs[0].shape)
            self._first = shape not in self.sizes
            self._now = self.sizes.setdefault(shape, Seen())
            self._kept = frozenset({0}) if self._first else self._now.kept(self.limit)
        if self._first:
            self._now.inputs.append(sum(x.numel() * x.element_size() for x in inputs))
        if number not in self._kept:
            return self.again(forward, *given, **named)
        if number in self._now.whole:
            return forward(*given, **named)
        with counted(block) as storages:
            y = forward(*given, **named)
        self._now.whole[number] = sum(storages.values())
        return y


@contextmanager
def counted(block: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of the storages that the backward pass will need, by storage; those of the block's own parameters left out."""
    own = {local(parameter).untyped_storage()._cdata for parameter in block.parameters()}
    found: dict[int, int] = {}

    def seen(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:  # not its address: tensors without memory have none
            found[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        yield found
