"""Rotary positions in Triton (kernel/rotary.py, kernel/tile/rotary.py): both conventions, a part of a head, two axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from twice import DEVICES, FORMATS, agree, random

from llmfactory.kernel.rotary import plain, turn

GROUPS = {"halves": (6, 6, 6), "neighbors": (2, 6, 6), "a part of the head": (4, 4, 9), "two axes": (4, 8, 8)}
"""Coordinates of a group, those that turn, those of a head."""


def tables(rows: int, tokens: int, group: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """By the definition: both coordinates of a pair have its cosine, the first its sine's negative."""
    angles = random(rows, 1, tokens, width // 2, dtype=torch.float64, device=device)
    cos, sin = (torch.empty(rows, 1, tokens, width, dtype=torch.float64, device=device) for _ in range(2))
    for pair in range(width // 2):
        first = pair // (group // 2) * group + pair % (group // 2)
        for place, sign in ((first, -1), (first + group // 2, 1)):
            cos[..., place], sin[..., place] = angles[..., pair].cos(), sign * angles[..., pair].sin()
    return cos.to(dtype), sin.to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kind", GROUPS)
def test_against_the_plain_turn(kind: str, dtype: torch.dtype, device: str) -> None:
    group, width, dim = GROUPS[kind]
    wide = torch.promote_types(dtype, torch.float32)
    for rows, heads, tokens in ((1, 1, 1), (2, 3, 5), (2, 65, 1)):
        cos, sin = tables(rows, tokens, group, width, wide, device)

        def turned(x, kernel, cos=cos, sin=sin):
            return turn(x.transpose(1, 2), cos.to(x.dtype) if x.dtype == torch.float64 else cos, sin.to(cos.dtype), group, kernel)

        agree(turned, [random(rows, tokens, heads, dim, dtype=dtype, device=device)])


@pytest.mark.parametrize("device", DEVICES)
def test_one_table_for_all_rows_and_no_rows(device: str) -> None:
    cos, sin = tables(1, 5, 6, 6, torch.float64, device)
    agree(lambda x, kernel: turn(x, cos, sin, 6, kernel), [random(3, 2, 5, 6, dtype=torch.float64, device=device)])
    agree(lambda x, kernel: turn(x, cos, sin, 6, kernel), [random(0, 2, 5, 6, dtype=torch.float64, device=device)])


def test_the_plain_turn_is_a_turn() -> None:
    """Against complex multiplication."""
    for group in (2, 6):
        cos, sin = tables(1, 5, group, 6, torch.float64, "cpu")
        x = random(1, 2, 5, 6, dtype=torch.float64, device="cpu")
        y = plain(x, cos, sin, group)
        pairs = [(0, 1), (2, 3), (4, 5)] if group == 2 else [(0, 3), (1, 4), (2, 5)]
        for one, other in pairs:
            turned = torch.complex(x[..., one], x[..., other]) * torch.complex(cos[..., one], sin[..., other])
            torch.testing.assert_close(torch.complex(y[..., one], y[..., other]), turned)
