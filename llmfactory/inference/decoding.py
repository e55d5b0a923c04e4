"""Feed a batch of prompts to a model, then one token a row at a time, each once: the model's state holds the rest.

Prompts of different lengths are padded on the left. Padding is a document of its own (segment 0) and a prompt's positions
start at 0 behind it, so a row computes what it would compute alone.

Columns: every row's step t stands in the same column, so keys are causal by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from llmfactory.core.context import CausalMask, Context, DocumentMask, Mask, PrefixMask, Reading, SegmentMask, Source
from llmfactory.core.errors import UserError
from llmfactory.inference.cache import KvCache
from llmfactory.model.skeleton import Skeleton


@contextmanager
def evaluating(model: Skeleton) -> Iterator[None]:
    """The model without dropout and gradients; afterwards it is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


class Decoding:
    """Logits of the next token, [B, V], for rows that grow.

    Where the model has an encoder, that one reads the prompts, and every row begins with the token `start_id` (None: `end_id`).
    `room`: tokens that a row may grow by. `vocab_size`: ids of the tokenizer; a model may have rows for more (padding),
    which stand for nothing: their logits are cut off.
    """

    def __init__(
        self,
        model: Skeleton,
        prompts: Sequence[Sequence[int]],
        room: int,
        *,
        vocab_size: int | None = None,
        start_id: int | None = None,
        end_id: int | None = None,
        reading: Reading = Reading.forward,
    ) -> None:
        self.model, self.vocab_size, self.reading = model, vocab_size, reading
        self.end_id = end_id if vocab_size is not None and end_id is not None and end_id >= vocab_size else None
        """An end token that the tokenizer does not know: the one special id that may be chosen."""
        self.device = model.head.weight.device
        self._sources: Tensor | None = None
        """[B, M], segments of the encoder's input."""
        self._source: Source | None = None
        if model.spec.graph == "encoder_decoder":
            start_id = end_id if start_id is None else start_id
            if start_id is None:
                raise ValueError("an encoder-decoder's rows begin with a start token: start_id")
            self._read(prompts)
            prompts = [[start_id]] * len(prompts)
        self.width = max(map(len, prompts))
        self.padding = [self.width - len(prompt) for prompt in prompts]
        self.state = KvCache(model.preceding + self.width + room)
        self._prompts = [list(prompt) for prompt in prompts]
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        """[B], of the prompts."""

    def start(self) -> Tensor:
        """Read the prompts."""
        rows = [[0] * padding + prompt for padding, prompt in zip(self.padding, self._prompts, strict=True)]
        return self._feed(torch.tensor(rows, device=self.device), 0, self.width)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row."""
        self.width += 1
        return self._feed(torch.tensor(tokens, device=self.device)[:, None], self.width - 1, self.width)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order; a row may be kept twice."""
        self.state.keep(rows)
        self.padding = [self.padding[row] for row in rows]
        self.lengths = self.lengths[torch.tensor(rows, device=self.device)]
        if self._sources is not None:
            self._sources = self._sources[torch.tensor(rows, device=self.device)]

    def _feed(self, tokens_BT: Tensor, start: int, end: int) -> Tensor:
        context = self._columns(start, end).with_(state=self.state, source=self._source)
        if self._sources is not None:
            context = context.with_(memory_mask=self._memory_mask())
        self._source = None  # read once: its keys and values are in the state
        hidden_BTD = self.model(tokens_BT, context)
        logits_BV = self._possible(self.model.head(hidden_BTD[:, -1]))
        if logits_BV.sum().isnan():  # one pass over them, and no copy
            raise UserError("the model's logits are not numbers: its weights hold NaN or too large values")
        return logits_BV

    def _possible(self, logits_BV: Tensor) -> Tensor:
        """Without the ids that are none of the tokenizer's."""
        if self.end_id is None:
            return logits_BV[:, : self.vocab_size]
        forbidden_V = torch.arange(logits_BV.shape[1], device=self.device) >= (self.vocab_size or 0)
        forbidden_V[self.end_id] = False
        return logits_BV.masked_fill(forbidden_V, float("-inf"))

    def _columns(self, start: int, end: int) -> Context:
        context = columns(self.padding, start, end, self.device)
        if self.reading is Reading.forward:
            return context
        lengths_B1 = self.lengths[:, None]
        if start == 0:
            # The start token of a blank belongs to what is written.
            inside_B1 = lengths_B1 - 1 if self.reading is Reading.blank else lengths_B1
            segments_BT = torch.ones_like(context.positions) if context.segments is None else context.segments
            context = context.with_(mask=PrefixMask((context.positions < inside_B1).long(), segments_BT), segments=segments_BT)
        if self.reading is Reading.blank:
            assert context.key_positions is not None
            mask_B1 = lengths_B1 - 2
            context = context.with_(
                positions=_in_blank(context.positions, mask_B1), key_positions=_in_blank(context.key_positions, mask_B1)
            )
        return context

    def _read(self, prompts: Sequence[Sequence[int]]) -> None:
        width = max(map(len, prompts))
        tokens_BM = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        lengths_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=self.device)
        positions_BM = torch.arange(width, device=self.device).expand(len(prompts), width)
        self._sources = (positions_BM < lengths_B1).long()
        # Padding stands behind: positions of what is no padding begin at 0.
        inner = Context(positions_BM.clamp_max(lengths_B1 - 1), SegmentMask(self._sources), segments=self._sources)
        self._source = Source(tokens_BM, inner, self._memory_mask())

    def _memory_mask(self) -> Mask:
        assert self._sources is not None
        return SegmentMask(torch.ones_like(self._sources[:, :1]), self._sources)


def _in_blank(positions_BT: Tensor, mask_B1: Tensor) -> Tensor:
    """[B, 2, T]: place in the text, which is the mask's for all behind it, and place in the blank, from 1."""
    return torch.stack((positions_BT.minimum(mask_B1), (positions_BT - mask_B1).clamp_min(0)), 1)


def columns(padding: Sequence[int], start: int, end: int, device: torch.device) -> Context:
    """Positions of the tokens in the columns [start, end), and what they see of all columns before `end`."""
    padding_B1 = torch.tensor(padding, device=device)[:, None]
    columns_S = torch.arange(end, device=device).expand(len(padding), end)
    columns_BT = columns_S[:, start:]
    positions_BS = (columns_S - padding_B1).clamp_min(0)
    mask: Mask
    segments_BT = None
    if any(padding):
        segments_BS = (columns_S >= padding_B1).long()
        segments_BT = segments_BS[:, start:]
        mask = DocumentMask(segments_BT, segments_BS, columns_BT, columns_S)
    else:
        mask = CausalMask(end, device, queries=end - start)
    return Context(positions_BS[:, start:], mask, segments=segments_BT, key_positions=positions_BS)
