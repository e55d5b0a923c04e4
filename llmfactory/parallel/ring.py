"""Softmax attention over keys that go round a ring of processes (Liu et al. 2023, Ring Attention).

Each process keeps its queries. Keys and values travel: n - 1 times each process hands what it holds to the next one, while it
works on them, so that every query meets every key and no process ever holds more than two pieces of them. The softmax is put
together block by block (Milakov and Gimelshein 2018; Dao et al. 2022, section 3.1): with m the largest score so far,

    m' = max(m, max_s z_s)    l' = l e^(m - m') + sum_s e^(z_s - m')    y' = y e^(m - m') + sum_s e^(z_s - m') v_s

and y / l at the end. The backward pass goes round again with the logarithms m + log l: each block's probabilities are
p = e^(z - m - log l), and with g the gradient of the result and d = g y (Dao et al. 2022, appendix B.2)

    dv = p^T g    dz = p (g v^T - d)    dq = dz k    dk = dz^T q

dk and dv travel behind their keys and come home after n steps.

Blocks that the kind of mask leaves empty are not computed. Scores, sums and gradients are float32 at least, whatever q is in.
`model/attention/reference.py` is the same as its equation; tests compare the two.

Legend: B rows, H query heads, G key/value heads (each serves R = H / G), T queries and S keys of a piece or block, D, E widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.mask import Mask
from llmfactory.parallel.collectives import Group, shift_started

BLOCK = 1024
"""Most queries, and most keys, of a block: its scores are held at once."""


@dataclass(frozen=True, slots=True)
class Round:
    """What does not change on the way round."""

    mask: Mask
    """Of the whole rows."""
    queries: Sequence[slice]
    """Columns of the queries of this process, in the order in which it holds them."""
    keys: Sequence[Sequence[slice]]
    """Columns of the keys that each process of the group starts with."""
    group: Group
    scale: float
    window: int | None
    softcap: float | None

    def sources(self) -> Iterator[tuple[int, bool]]:
        """Whose keys are here at each step, and whether it is the last."""
        size, rank = self.group.size(), self.group.rank()
        return (((rank - step) % size, step == size - 1) for step in range(size))

    def tiles(self, source: int) -> Iterator[Tile]:
        """The blocks of this process's queries and another one's keys that may not be empty."""
        for here_T, columns_T in _blocks(self.queries):
            reach = self.mask.reach(columns_T, self.window)
            for here_S, columns_S in _blocks(self.keys[source]):
                if columns_S.stop > reach.start and (reach.stop is None or columns_S.start < reach.stop):
                    yield Tile(self, here_T, here_S, columns_T, columns_S)


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries and some keys."""

    round: Round
    here_T: slice
    """Of this process's queries."""
    here_S: slice
    """Of the keys that are here."""
    columns_T: slice
    columns_S: slice

    def scores(self, q_BHTD: Tensor, k_BGSD: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, H, t, s], -inf where nothing is seen, and what is left of a score's gradient behind the cap."""
        k_BGsD = k_BGSD[:, :, self.here_S]
        scores_BGNs = _grouped(q_BHTD[:, :, self.here_T], k_BGsD) @ k_BGsD.to(_wide(k_BGsD)).transpose(-1, -2)
        scores = (scores_BGNs * self.round.scale).view(*q_BHTD.shape[:2], -1, k_BGsD.shape[2])
        left = None
        if self.round.softcap is not None:
            bounded = (scores / self.round.softcap).tanh()
            scores, left = self.round.softcap * bounded, 1 - bounded.square()
        if bias is not None:
            scores = scores + bias[:, :, self.here_T, self.columns_S]
        seen = self.round.mask.tile(self.columns_T, self.columns_S).dense(self.round.window)
        return scores if seen is None else scores.masked_fill(~seen, float("-inf")), left


def ring_attention(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, bias: Tensor | None, round: Round) -> Tensor:
    """[B, H, T, E] of this process's queries over the keys of all; `bias` is [1 or B, H, T, all columns]."""
    return _Ring.apply(q_BHTD, k_BGSD, v_BGSE, bias, round)  # type: ignore[no-any-return,no-untyped-call]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, bias: Tensor | None, round: Round) -> Tensor:
        wide = _wide(q_BHTD)
        top_BHT1 = q_BHTD.new_full((*q_BHTD.shape[:3], 1), float("-inf"), dtype=wide)
        sum_BHT1 = torch.zeros_like(top_BHT1)
        y_BHTE = q_BHTD.new_zeros((*q_BHTD.shape[:3], v_BGSE.shape[3]), dtype=wide)
        with torch.autocast(q_BHTD.device.type, enabled=False):
            for source, k, v in _passed(k_BGSD, v_BGSE, round):
                for tile in round.tiles(source):
                    scores, _ = tile.scores(q_BHTD, k, bias)
                    top, total, y = (x[:, :, tile.here_T] for x in (top_BHT1, sum_BHT1, y_BHTE))
                    new = torch.maximum(top, scores.amax(-1, keepdim=True))
                    base = new.masked_fill(new == float("-inf"), 0.0)  # of a query that has seen nothing yet
                    shares, kept = (scores - base).exp(), (top - base).exp()
                    v_BGsE = v[:, :, tile.here_S]
                    added = (_grouped(shares, v_BGsE) @ v_BGsE.to(wide)).view_as(y)
                    y.mul_(kept).add_(added)
                    total.mul_(kept).add_(shares.sum(-1, keepdim=True))
                    top.copy_(new)
        none_BHT1 = sum_BHT1 == 0  # queries that see nothing get nothing, as from the fused kernels
        y_BHTE /= sum_BHT1.masked_fill(none_BHT1, 1.0)
        log_BHT1 = (top_BHT1 + sum_BHT1.log()).masked_fill(none_BHT1, float("inf"))
        y_BHTE = y_BHTE.to(q_BHTD.dtype)
        ctx.round = round
        ctx.save_for_backward(q_BHTD, k_BGSD, v_BGSE, bias, y_BHTE, log_BHT1)
        return y_BHTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BGSD, v_BGSE, bias, y_BHTE, log_BHT1 = ctx.saved_tensors
        round, wide = ctx.round, _wide(q_BHTD)
        grad_BHTE = grad_BHTE.to(wide)
        dot_BHT1 = (grad_BHTE * y_BHTE.to(wide)).sum(-1, keepdim=True)
        dq = torch.zeros_like(q_BHTD, dtype=wide)
        db = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[3] else None
        arriving: Callable[[], Tensor] | None = None
        with torch.autocast(q_BHTD.device.type, enabled=False):
            for source, k, v in _passed(k_BGSD, v_BGSE, round):
                both = k.new_zeros(k.numel() + v.numel(), dtype=wide)
                dk, dv = _unpacked(both, k, v)
                for tile in round.tiles(source):
                    scores, left = tile.scores(q_BHTD, k, bias)
                    shares = (scores - log_BHT1[:, :, tile.here_T]).exp()
                    k_BGsD, v_BGsE, grad = k[:, :, tile.here_S], v[:, :, tile.here_S], grad_BHTE[:, :, tile.here_T]
                    grad_BGNE, shares_BGNs = _grouped(grad, v_BGsE), _grouped(shares, v_BGsE)
                    dv[:, :, tile.here_S] += shares_BGNs.transpose(-1, -2) @ grad_BGNE
                    dz = (grad_BGNE @ v_BGsE.to(wide).transpose(-1, -2)).view_as(shares)
                    dz = shares * (dz - dot_BHT1[:, :, tile.here_T])
                    if db is not None:
                        part = db[:, :, tile.here_T, tile.columns_S]
                        part += dz.sum_to_size(part.shape)
                    dz_BGNs = _grouped(dz if left is None else dz * left, k_BGsD) * round.scale
                    dq[:, :, tile.here_T] += (dz_BGNs @ k_BGsD.to(wide)).view_as(dq[:, :, tile.here_T])
                    dk[:, :, tile.here_S] += dz_BGNs.transpose(-1, -2) @ _grouped(q_BHTD[:, :, tile.here_T], k_BGsD)
                if arriving is not None:
                    both += arriving()
                arriving = shift_started(both, round.group)
        assert arriving is not None
        dk, dv = _unpacked(arriving(), k_BGSD, v_BGSE)
        grads = (dq.to(q_BHTD.dtype), dk.to(k_BGSD.dtype), dv.to(v_BGSE.dtype))
        return (*grads, None if db is None or bias is None else db.to(bias.dtype), None)


def _passed(k_BGSD: Tensor, v_BGSE: Tensor, round: Round) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Rank of their first holder, keys and values, at each step; the next ones travel meanwhile."""
    both = torch.cat((k_BGSD.flatten(), v_BGSE.flatten()))
    for source, is_last in round.sources():
        arriving = None if is_last else shift_started(both, round.group)
        yield source, *_unpacked(both, k_BGSD, v_BGSE)
        if arriving is not None:
            both = arriving()


def _unpacked(both: Tensor, k_BGSD: Tensor, v_BGSE: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the shapes of these two."""
    k, v = torch.split(both, [k_BGSD.numel(), v_BGSE.numel()])
    return k.view(k_BGSD.shape), v.view(v_BGSE.shape)


def _blocks(pieces: Sequence[slice]) -> Iterator[tuple[slice, slice]]:
    """Pieces cut into blocks: where each stands among the pieces held, and its columns."""
    held = 0
    for piece in pieces:
        for start in range(piece.start, piece.stop, BLOCK):
            size = min(BLOCK, piece.stop - start)
            yield slice(held, held + size), slice(start, start + size)
            held += size


def _grouped(x_BHTD: Tensor, like_BGSD: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, G, R T, D], in what is computed in: the queries that a key/value head serves, one behind the other."""
    rows, groups = like_BGSD.shape[:2]
    return x_BHTD.reshape(rows, groups, -1, x_BHTD.shape[-1]).to(_wide(x_BHTD))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
