"""A pipeline: stages of one model in several processes, which pass micro-batches on to each other.

Every process of a pipeline has the same rows. A stage builds positions and masks from them by itself; what travels is what the
model's steps carry (hidden vectors, an encoder's output, features of pictures), as it comes, and its gradients back. The last stage computes
the loss. Terms that parts of the model add on the way (the balance of experts) each stage back-propagates itself, as its share of the
loss. Micro-batches need not have the same number of rows or the same length.

Weights are gathered once a step and gradients reduced once a step, whatever `zero` says: a stage's micro-batches come one after the
other, and in between FSDP would only gather what it has given back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from llmfactory.parallel.clip import global_norm
from llmfactory.parallel.link import Arriving, Form, Link
from llmfactory.parallel.schedule import Action, Table, Work, forward_table, homes, table
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.split_backward import Later, backward_of_inputs
from llmfactory.parallel.stages import Stages

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

Sums = dict[str, Tensor]
Loss = Callable[[int, Sums], Tensor]
"""(number of the micro-batch, sums of the loss's terms) -> this process's share of the step's loss."""


class Formats(Protocol):
    """What a pipeline asks of the precision plugin."""

    def forward_context(self) -> AbstractContextManager[Any]: ...
    def scaled(self, loss: Tensor) -> Tensor: ...


@dataclass(slots=True)
class _Going:
    """A micro-batch within a stage, between its forward and its backward pass."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    """What is sent on."""
    loss: Tensor | None
    """This stage's own share, of this micro-batch."""
    found: list[Tensor] = field(default_factory=list)
    """Gradients of the inputs that require one."""
    later: Later | None = None
    """What a split backward pass has left to do."""

    def leaves(self) -> list[Tensor]:
        return [x for x in self.inputs.values() if x.requires_grad]

    def release(self) -> None:
        """What the backward pass has used up."""
        self.inputs, self.outputs, self.loss = {}, {}, None


class Pipeline:
    """This process's stages. `root(batch, part, carried)` runs a slice of the steps and returns (what is carried then, sums of the
    terms that came up); the slice that has the last step runs head and objective too."""

    def __init__(self, root: nn.Module, stages: Stages, layout: Mesh, formats: Formats) -> None:
        self.root, self.stages, self.formats = root, stages, formats
        self.schedule, self.p, self.v = layout.schedule, stages.group.size(), layout.stages_per_process
        self.homes = homes(self.schedule, self.p, self.v)
        self.link = Link(stages.group, stages.world.device)
        self.begins: Callable[[str], None] = lambda phase: None
        """As `MeshStrategy.begins`."""
        self._tables: dict[tuple[int, bool], Table] = {}
        if isinstance(root, FSDPModule):
            root.set_reshard_after_forward(False)

    def step(self, pieces: Sequence[Batch], loss: Loss) -> Tensor:
        """Forward and backward of all micro-batches; returns this process's share of the loss, detached."""
        if isinstance(self.root, FSDPModule):
            self.root.set_requires_gradient_sync(False)
            self.root.set_reshard_after_backward(False)
            self.root.set_is_last_backward(False)
        run = _Run(self, pieces, loss)
        run.go(self._table(len(pieces), train=True))
        _reduce(self.root)
        self.stages.add_up()
        return run.total

    def evaluate(self, batch: Batch) -> Sums:
        """Sums of the terms over a batch; nothing but on the last stage."""
        run = _Run(self, [batch], None)
        run.go(self._table(1, train=False))
        return run.sums

    def norm(self) -> Tensor:
        """The global norm of the gradients, those of shared parameters once."""
        counted = {id(p) for name, p in self.stages.model.named_parameters() if self.stages.counted(name)}
        parameters = list(self.stages.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None and id(p) in counted]
        nothing = torch.zeros(1, dtype=parameters[0].dtype, device=self.link.device)  # all of its parameters may be shared
        return global_norm([*gradients, nothing], self.stages.group)

    def _table(self, n: int, train: bool) -> list[Action]:
        key = n, train
        if key not in self._tables:
            self._tables[key] = (table if train else forward_table)(self.schedule, self.p, self.v, n)
        return self._tables[key][self.stages.rank]


class _Run:
    """One pass over a step's micro-batches. Without `loss` there is no backward pass."""

    def __init__(self, pipeline: Pipeline, pieces: Sequence[Batch], loss: Loss | None) -> None:
        self.pipeline, self.pieces, self.loss = pipeline, pieces, loss
        self.link, self.homes, self.slices = pipeline.link, pipeline.homes, pipeline.stages.slices
        self.rank, self.last = pipeline.stages.rank, len(pipeline.homes) - 1
        weights = next(pipeline.root.parameters()).dtype
        self.total = torch.zeros((), device=pipeline.link.device, dtype=torch.promote_types(weights, torch.float32))
        self.sums: Sums = {}
        self.going: dict[tuple[int, int], _Going] = {}
        self.arriving: dict[tuple[int, int], tuple[list[Form], Arriving]] = {}
        """Inputs, by (stage, micro-batch)."""
        self.returning: dict[tuple[int, int], Arriving] = {}
        """Gradients of outputs."""

    def go(self, actions: Sequence[Action]) -> None:
        work = {
            Work.forward: self._forward,
            Work.backward: self._backward,
            Work.input: self._backward_of_inputs,
            Work.weight: self._backward_of_weights,
            Work.send_forward: self._send_forward,
            Work.receive_forward: self._receive_forward,
            Work.send_backward: self._send_backward,
            Work.receive_backward: self._receive_backward,
        }
        for kind, stage, micro in actions:
            work[kind](stage, micro)
        self.link.finish()

    # ---- messages

    def _key(self, stage: int, micro: int) -> Hashable:
        """What decides the form of the message that leaves a stage."""
        return stage, self.loss is None, tuple((name, tuple(x.shape)) for name, x in self.pieces[micro].items())

    def _send_forward(self, stage: int, micro: int) -> None:
        outputs, to = self.going[stage, micro].outputs, self.homes[stage + 1]
        forms = [Form(name, tuple(x.shape), x.dtype, x.requires_grad) for name, x in outputs.items()]
        self.link.tell(self._key(stage, micro), forms, to)
        self.link.send(list(outputs.values()), to)

    def _receive_forward(self, stage: int, micro: int) -> None:
        source = self.homes[stage - 1]
        forms = self.link.ask(self._key(stage - 1, micro), source)
        self.arriving[stage, micro] = forms, self.link.receive(forms, source)

    def _send_backward(self, stage: int, micro: int) -> None:
        self.link.send(self._take(stage, micro), self.homes[stage - 1])

    def _receive_backward(self, stage: int, micro: int) -> None:
        outputs = self.going[stage, micro].outputs
        forms = [Form(name, tuple(x.shape), x.dtype, False) for name, x in outputs.items() if x.requires_grad]
        self.returning[stage, micro] = self.link.receive(forms, self.homes[stage + 1])

    # ---- computing

    def _forward(self, stage: int, micro: int) -> None:
        inputs = self._inputs(stage, micro)
        self.pipeline.begins("forward")
        with self.pipeline.formats.forward_context():
            carried, sums = self.pipeline.root(self.pieces[micro], self.slices[stage], inputs)
        share = self.loss(micro, sums) if self.loss is not None and sums else None
        self.going[stage, micro] = _Going(inputs, carried, share)
        if share is not None:
            self.total = self.total + share.detach()
        if self.loss is None:
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}

    def _inputs(self, stage: int, micro: int) -> dict[str, Tensor]:
        """Leaves of this stage's graph."""
        if stage == 0:
            return {}
        if self.homes[stage - 1] == self.rank:
            before = self.going[stage - 1, micro].outputs
            return {name: x.detach().requires_grad_(x.requires_grad) for name, x in before.items()}
        forms, message = self.arriving.pop((stage, micro))
        pairs = zip(forms, message.wait(), strict=True)
        return {form.name: x.requires_grad_(form.trains and self.loss is not None) for form, x in pairs}

    def _ends(self, stage: int, micro: int) -> tuple[list[Tensor], list[Tensor | None]]:
        """Where the backward pass of a stage begins, and the gradients there; None: 1."""
        going = self.going[stage, micro]
        ends = [x for x in going.outputs.values() if x.requires_grad]
        gradients: list[Tensor | None] = []
        if stage < self.last:
            here = self.homes[stage + 1] == self.rank
            gradients += self._take(stage + 1, micro) if here else self.returning.pop((stage, micro)).wait()
        if going.loss is not None and going.loss.requires_grad:
            ends.append(self.pipeline.formats.scaled(going.loss))
            gradients.append(None)
        return ends, gradients

    def _take(self, stage: int, micro: int) -> list[Tensor]:
        """The gradients of a stage's inputs, once."""
        going = self.going[stage, micro]
        found, going.found = going.found, []
        return found

    def _backward(self, stage: int, micro: int) -> None:
        going, (ends, gradients) = self.going[stage, micro], self._ends(stage, micro)
        self.pipeline.begins("backward")
        if ends:
            torch.autograd.backward(ends, gradients)
        going.found = [torch.zeros_like(x) if x.grad is None else x.grad for x in going.leaves()]
        going.release()

    def _backward_of_inputs(self, stage: int, micro: int) -> None:
        going = self.going[stage, micro]
        leaves = going.leaves()
        if not leaves:  # nobody waits for them
            going.later = partial(self._backward, stage, micro)
            return
        self.pipeline.begins("backward")
        found, going.later = backward_of_inputs(*self._ends(stage, micro), leaves)
        going.found = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, found, strict=True)]
        going.release()

    def _backward_of_weights(self, stage: int, micro: int) -> None:
        going = self.going[stage, micro]
        assert going.later is not None
        self.pipeline.begins("backward")
        going.later()
        going.later = None


def _reduce(root: nn.Module) -> None:
    """Sum gradients over the processes that share or copy the weights, and give the whole weights back: what FSDP2 does at the end
    of a backward pass of its root, of which there is none here (`torch.distributed.pipelining` does the same)."""
    if not isinstance(root, FSDPModule):
        return
    root.set_requires_gradient_sync(True)
    root.set_reshard_after_backward(True)
    root.set_is_last_backward(True)
    state = fully_shard.state(root)  # type: ignore[attr-defined]
    for unit in state._state_ctx.all_states:
        for parameters in unit._fsdp_param_groups:
            parameters.post_backward()
    state._root_post_backward_final_callback()
