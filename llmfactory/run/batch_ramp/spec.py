"""Catalogue of batch ramps: how many rows the first optimizer steps have. Gradients of an early model agree, so that small batches
teach it as much for less (McCandlish et al. 2018).

The loss of a step stays the sum over its own target tokens by their number, and samples come in the same order as without a ramp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least

if TYPE_CHECKING:
    from llmfactory.core.sizes import Sizes


@dataclass(kw_only=True, slots=True)
class BatchRampSpec(Spec):
    """Base of the ramps."""

    def against(self, batch_size: int) -> Iterator[Problem]:
        """What is wrong together with `trainer.batch_size`."""
        yield from ()

    def least(self, batch_size: int) -> int:
        """Rows of the smallest step."""
        return batch_size

    def smaller(self, batch_size: int, scale: float) -> BatchRampSpec:
        """The same for a batch of `batch_size` rows, which is another one times `scale`."""
        return self

    def build(self, batch_size: int, seq_len: int) -> Sizes:
        """`batch_size`: rows that every step has in the end; `seq_len`: tokens of a row."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of trainer/batch_ramp")


@dataclass(kw_only=True, slots=True)
class None_(BatchRampSpec):
    """All steps have trainer.batch_size rows."""

    def build(self, batch_size: int, seq_len: int) -> Sizes:
        from llmfactory.core.sizes import Sizes

        return Sizes([(0, batch_size)])


@dataclass(kw_only=True, slots=True)
class Linear(BatchRampSpec):
    """The batch grows evenly over so many rows or tokens (GPT-3, section 2.3 of Brown et al. 2020; in increments as in Megatron-LM)."""

    start: int
    """Rows of the first step."""
    increment: int | None = None
    """Rows that are added at a time; None: as many as `start`."""
    rows: float | None = None
    """Rows that have been read when the batch is full; None: `tokens` says."""
    tokens: float | None = None
    """The same in tokens, rows of `data.seq_len` each; None: `rows` says."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "start", "increment", "rows", "tokens")
        if self.rows is None and self.tokens is None:
            yield Problem("tokens", None, "how many tokens, or rows, until the batch is full?", "tokens=1e6")
        elif self.rows is not None and self.tokens is not None:
            yield Problem("rows", self.rows, f"tokens={self.tokens} says it too", "rows=null")

    def against(self, batch_size: int) -> Iterator[Problem]:
        if self.start >= batch_size:
            reason = f"nothing grows: trainer.batch_size={batch_size}"
            yield Problem("batch_ramp.start", self.start, reason, f"batch_size={2 * self.start}")

    def least(self, batch_size: int) -> int:
        return min(self.start, batch_size)

    def smaller(self, batch_size: int, scale: float) -> BatchRampSpec:
        start = max(1, round(self.start * scale))
        if start >= batch_size:
            return None_()
        read = None if self.rows is None else max(1.0, self.rows * scale)
        step = None if self.increment is None else max(1, round(self.increment * scale))
        return Linear(start=start, increment=step, rows=read, tokens=self.tokens)

    def build(self, batch_size: int, seq_len: int) -> Sizes:
        from llmfactory.run.batch_ramp.linear import linear

        return linear(self, batch_size, seq_len)


@dataclass(kw_only=True, slots=True)
class Staged(BatchRampSpec):
    """So many rows until a step, then more (PaLM, section 5 of Chowdhery et al. 2022)."""

    rows: list[int] = field(default_factory=list)
    """Of the steps before the full batch, a number for each part of the run."""
    until: list[int] = field(default_factory=list)
    """Steps at which these parts end, as many."""

    def problems(self) -> Iterator[Problem]:
        if not self.rows or any(rows < 1 for rows in self.rows):
            yield Problem("rows", self.rows, "must name at least one number of rows, each at least 1", "rows=[1]")
        if len(self.until) != len(self.rows):
            reason = f"each of {len(self.rows)} numbers of rows needs a step at which its part ends"
            yield Problem("until", self.until, reason, f"until={[100 * (n + 1) for n in range(len(self.rows))]}".replace(" ", ""))
        elif any(one >= other for one, other in zip([0, *self.until], self.until, strict=False)):
            yield Problem(
                "until",
                self.until,
                "must ascend, from 1 on",
                f"until={[100 * (n + 1) for n in range(len(self.rows))]}".replace(" ", ""),
            )

    def against(self, batch_size: int) -> Iterator[Problem]:
        if max(self.rows) > batch_size:
            reason = f"trainer.batch_size={batch_size} is the batch in the end, and the largest"
            yield Problem("batch_ramp.rows", self.rows, reason, f"batch_size={max(self.rows)}")

    def least(self, batch_size: int) -> int:
        return min(*self.rows, batch_size)

    def smaller(self, batch_size: int, scale: float) -> BatchRampSpec:
        return Staged(rows=[max(1, round(rows * scale)) for rows in self.rows], until=self.until)

    def build(self, batch_size: int, seq_len: int) -> Sizes:
        from llmfactory.run.batch_ramp.staged import staged

        return staged(self, batch_size)
