"""What recurrent mixers keep for the backward pass: the same counting as `kept.py`, of parts that carry a state.

The recurrent kernels of PyTorch keep what their steps computed, in ways of their own: the numbers of tensors here are those of its
CPU kernels, counted.
"""

from __future__ import annotations

from llmfactory.model.mixer.spec import Gru, LinearAttention, Lstm, Mamba, MixerSpec, Rnn
from llmfactory.parallel.plan.kept import Formats, Kept, kept_by_inputs

CHUNK = 64
"""Tokens of a chunk of linear attention and of the selective scan."""


def kept_by_mixer(part: MixerSpec, dim: int, seq_len: int, form: Formats) -> Kept:
    """Of a mixer with its input, for rows of `seq_len` tokens."""
    wide, low = float(form.wide), float(form.low)
    chunk = min(seq_len, CHUNK)
    if isinstance(part, Lstm):
        outputs = 0.67 * wide if form.mixed else 0.0  # what the kernels give in fewer bits goes on in the format of the stream
        return Kept(stream=dim * (8.67 * wide + 10 * low + outputs))
    if isinstance(part, Gru):
        return Kept(stream=dim * (6 * wide + 3 * low))  # the recurrence is in the format of the weights, also under autocast
    if isinstance(part, Rnn):
        return Kept(stream=dim * (2 * wide + low))
    if isinstance(part, LinearAttention):
        head = dim // part.n_heads
        scores = part.n_heads * chunk * wide + chunk + dim * head * wide / chunk
        return Kept(stream=kept_by_inputs(3, dim, form), inner=dim * (8 * wide + low) + part.n_heads * wide + scores)
    if isinstance(part, Mamba):
        inner, rank = part.expand * dim, part.rank_at(dim)
        short = rank + 2 * part.state
        tensors = inner * (5 * wide + 8 * low if form.mixed else 12 * wide)
        numbers = short * low + (2 * part.state * wide if form.mixed else 0) + inner * part.state * wide / chunk
        return Kept(stream=kept_by_inputs(2, dim, form) + numbers, inner=tensors)
    return Kept(stream=8.0 * dim * wide)
