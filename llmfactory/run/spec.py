"""Catalogue page of the group trainer: how long, how much at a time, how often to look, what to keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.kernel import Kernel
from llmfactory.core.spec import Spec, at_least
from llmfactory.run.batch_ramp.spec import BatchRampSpec
from llmfactory.run.batch_ramp.spec import None_ as NoRamp

if TYPE_CHECKING:
    from llmfactory.core.sizes import Sizes


class Device(Enum):
    """Where tensors live."""

    auto = "the GPU if there is one, else the CPU"
    cpu = "the CPU"
    cuda = "an NVIDIA or AMD GPU"


@dataclass(kw_only=True, slots=True)
class Trainer(Spec):
    """The training loop."""

    max_steps: int
    """Optimizer steps of the whole run, those before a resume included."""
    batch_size: int
    """Rows of one optimizer step, over all processes. The result does not depend on how they are shared out."""
    batch_ramp: BatchRampSpec = field(default_factory=NoRamp)
    """How the batch grows to `batch_size` in the course of the run."""
    micro_batch_size: int | None = None
    """Rows that one process puts through the model at once; None: its whole share. Changes memory and speed, not the result."""
    log_every: int = 10
    """Steps between rows of metrics."""
    log_parts: bool = False
    """In them also, of each layer, the embedding and the head, the norm of the gradient before clipping and how long the step is, as a
    share of the weights; takes a copy of the weights at such steps."""
    eval_every: int | None = 100
    """Steps between evaluations on held-out rows; None: only at the end."""
    eval_rows: int | None = 64
    """Held-out rows of each evaluation during training; None: all. The one at the end always takes all."""
    save_every: int | None = 100
    """Steps between checkpoints; None: only at the end (and on SIGTERM)."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest held-out loss."""
    save_async: bool = False
    """Write checkpoints while training goes on, from a copy in the host's memory; one at a time, the next one waits for it."""
    patience: int | None = None
    """Stop early after that many evaluations without a new lowest held-out loss; None: never."""
    deterministic: bool | None = None
    """Bit-equal repetition (slower on a GPU); None: on the CPU only."""
    compile: bool = False
    """Put model and loss through torch.compile: slow to start, faster a step."""
    in_backward: bool = False
    """Step each parameter as soon as its gradient is there, and free the gradient: memory for a few gradients instead of all."""
    kernel: Kernel = Kernel.torch
    """Who computes the parts of a model that have several implementations (docs/kernels.md)."""
    device: Device = Device.auto
    """Where to run."""
    threads: int | None = None
    """CPU threads a process; None: torch's choice, or launch's share of the cores."""
    progress: bool = True
    """Show a progress bar (on a terminal) or a line per log row (elsewhere)."""
    preflight: bool = False
    """Before a training, make two steps of a small model like this one under the layout and in a single process, in float64, and stop
    if they differ."""
    sample: bool = True
    """Generate a sample when the training ends; left out, with a note, where the whole model does not fit on one process."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "max_steps", "batch_size", "micro_batch_size", "log_every", "eval_every", "eval_rows")
        yield from at_least(self, 1, "save_every", "keep_last", "patience", "threads")
        yield from self.batch_ramp.against(self.batch_size)
        if self.patience and self.eval_every is None:
            yield Problem("patience", self.patience, "needs evaluations during training", "eval_every=100")

    def sizes(self, seq_len: int) -> Sizes:
        """Rows of every step; `seq_len`: tokens of a row."""
        return self.batch_ramp.build(self.batch_size, seq_len)
