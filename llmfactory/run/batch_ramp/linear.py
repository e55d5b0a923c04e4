"""Even growth: of n increments, number i (from 0) lasts until (i + 1) / n of all rows of the ramp have been read.

As in Megatron-LM (`--rampup-batch-size`): a step's size depends on how many rows were read before it; no step is cut short.
"""

from __future__ import annotations

import math

from llmfactory.core.sizes import Sizes
from llmfactory.run.batch_ramp.spec import Linear


def linear(spec: Linear, batch_size: int, seq_len: int) -> Sizes:
    """`batch_size`: rows of the full batch; `seq_len`: tokens of a row."""
    total = spec.rows if spec.rows is not None else float(spec.tokens or 0.0) / seq_len
    increment = spec.increment or spec.start
    count = math.ceil((batch_size - spec.start) / increment)
    pieces, step, read = [], 0, 0
    for number in range(count):
        size = spec.start + number * increment
        steps = math.ceil((total * (number + 1) / count - read) / size)
        if steps > 0:
            pieces.append((step, size))
            step, read = step + steps, read + steps * size
    return Sizes([*pieces, (step, batch_size)])
