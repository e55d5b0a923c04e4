"""Attention without its scores in memory (Dao 2023, algorithms 1 and 2); `kernel/flash.py` has the equations.

Forward: a program keeps a tile of queries and goes along the keys, with a running maximum and sum of each query's exponentials.
Backward, in two kernels so that every sum has one owner and a fixed order: one program a tile of keys, which goes along the queries
of all heads that share them, and one a tile of queries, which goes along the keys.

Legend: B rows, H query heads, G key/value heads, T queries, S keys, D head width, E value width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import INTERPRETED, on, operand, power, precision, rounded, sigmoid, wide

TILE_BYTES = 1 << 14
"""Of a tile of queries or keys. Nine such tiles must fit into the memory that a program's threads share: 227 KiB on an H100, 163 on
an A100."""


@triton.jit
def _seen(row, t, s, queries, keys, t_segments, s_segments, t_stride, s_stride, CAUSAL, SEGMENTS, WINDOW):
    """[T, S], whether queries see keys. Queries are the last tokens of the keys' row."""
    here = t + keys - queries
    seen = (t < queries)[:, None] & (s < keys)[None, :]
    if CAUSAL:
        seen = seen & (here[:, None] >= s[None, :])
    if WINDOW is not None:
        seen = seen & (here[:, None] - s[None, :] < WINDOW) & (s[None, :] - here[:, None] < WINDOW)
    if SEGMENTS:
        of_queries = tl.load(t_segments + row * t_stride + t, mask=t < queries, other=-1)
        of_keys = tl.load(s_segments + row * s_stride + s, mask=s < keys, other=-2)
        seen = seen & (of_queries[:, None] == of_keys[None, :])
    return seen


@triton.jit
def _scores(q, k, seen, scale, SOFTCAP, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """[T, S], -inf where nothing is seen, and the slope of the cap."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=WIDE) * scale
    slope = scores
    if SOFTCAP is not None:
        tanh = 2 * sigmoid(2 * scores / SOFTCAP) - 1
        scores, slope = SOFTCAP * tanh, 1 - tanh * tanh
    return tl.where(seen, scores, -float("inf")), slope


@triton.jit
def _shares_and_slopes(q, k, v, dy, lse, delta, seen, scale, SOFTCAP, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """[T, S], how a query's attention is shared out, and the gradient with respect to q k^T scale."""
    scores, slope = _scores(q, k, seen, scale, SOFTCAP, PRECISION, WIDE)
    shares = tl.exp(scores - lse[:, None])
    dshares = tl.dot(dy, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
    dscores = shares * (dshares - delta[:, None])
    if SOFTCAP is not None:
        dscores = dscores * slope
    return shares, dscores


@triton.jit
def _load(ptr, places, there, columns, width, FACTOR: tl.constexpr):
    return tl.load(ptr + places[:, None] + columns[None, :], mask=there[:, None] & (columns < width)[None, :], other=0.0).to(
        FACTOR
    )


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, y_ptr, lse_ptr, t_segments, s_segments,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, t_stride, s_stride,
    n_heads, shared, queries, keys, dim, value_dim,
    scale: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(1) // n_heads).to(tl.int64), (tl.program_id(1) % n_heads).to(tl.int64)
    first = tl.program_id(0) * QUERIES
    t, columns, value_columns = first + tl.arange(0, QUERIES), tl.arange(0, D), tl.arange(0, E)
    asks = t < queries
    q = _load(q_ptr + row * q_row + head * q_head, t.to(tl.int64) * q_token, asks, columns, dim, FACTOR)
    largest = tl.zeros([QUERIES], dtype=WIDE) - float("inf")
    total = tl.zeros([QUERIES], dtype=WIDE)
    y = tl.zeros([QUERIES, E], dtype=WIDE)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + QUERIES + keys - queries)
    for start in range(0, end, KEYS):
        s = start + tl.arange(0, KEYS)
        k = _load(k_ptr + row * k_row + (head // shared) * k_head, s.to(tl.int64) * k_token, s < keys, columns, dim, FACTOR)
        seen = _seen(row, t, s, queries, keys, t_segments, s_segments, t_stride, s_stride, CAUSAL, SEGMENTS, WINDOW)
        scores, _ = _scores(q, k, seen, scale, SOFTCAP, PRECISION, WIDE)
        larger = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(larger > -float("inf"), larger, 0.0)  # a query may have seen nothing yet
        shrink = tl.exp(largest - finite)
        shares = tl.exp(scores - finite[:, None])
        total = total * shrink + tl.sum(shares, 1)
        v = _load(
            v_ptr + row * v_row + (head // shared) * v_head, s.to(tl.int64) * v_token, s < keys, value_columns, value_dim, FACTOR
        )
        y = y * shrink[:, None] + tl.dot(shares.to(FACTOR), v, input_precision=PRECISION, out_dtype=WIDE)
        largest = larger
    sees = total > 0
    y = y / tl.where(sees, total, 1.0)[:, None]
    # So that exp(score - lse) is 0 in the backward pass for a query that sees nothing.
    lse = tl.where(sees, largest + tl.log(tl.where(sees, total, 1.0)), float("inf"))
    places = (row * n_heads + head) * queries + t
    tl.store(lse_ptr + places, lse, mask=asks)
    y_places = places[:, None] * value_dim + value_columns[None, :]
    tl.store(y_ptr + y_places, rounded(y, y_ptr.dtype.element_ty), mask=asks[:, None] & (value_columns < value_dim)[None, :])


@triton.jit
def _back_to_queries(
    q_ptr, k_ptr, v_ptr, dy_ptr, lse_ptr, delta_ptr, dq_ptr, t_segments, s_segments,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, t_stride, s_stride,
    n_heads, shared, queries, keys, dim, value_dim,
    scale: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(1) // n_heads).to(tl.int64), (tl.program_id(1) % n_heads).to(tl.int64)
    first = tl.program_id(0) * QUERIES
    t, columns, value_columns = first + tl.arange(0, QUERIES), tl.arange(0, D), tl.arange(0, E)
    asks = t < queries
    places = (row * n_heads + head) * queries + t
    q = _load(q_ptr + row * q_row + head * q_head, t.to(tl.int64) * q_token, asks, columns, dim, FACTOR)
    dy = _load(dy_ptr, places * value_dim, asks, value_columns, value_dim, FACTOR)
    lse = tl.load(lse_ptr + places, mask=asks, other=float("inf"))
    delta = tl.load(delta_ptr + places, mask=asks, other=0.0)
    dq = tl.zeros([QUERIES, D], dtype=WIDE)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + QUERIES + keys - queries)
    for start in range(0, end, KEYS):
        s = start + tl.arange(0, KEYS)
        k = _load(k_ptr + row * k_row + (head // shared) * k_head, s.to(tl.int64) * k_token, s < keys, columns, dim, FACTOR)
        v = _load(
            v_ptr + row * v_row + (head // shared) * v_head, s.to(tl.int64) * v_token, s < keys, value_columns, value_dim, FACTOR
        )
        seen = _seen(row, t, s, queries, keys, t_segments, s_segments, t_stride, s_stride, CAUSAL, SEGMENTS, WINDOW)
        _, dscores = _shares_and_slopes(q, k, v, dy, lse, delta, seen, scale, SOFTCAP, PRECISION, WIDE)
        dq += tl.dot(dscores.to(FACTOR), k, input_precision=PRECISION, out_dtype=WIDE)
    dq_places = places[:, None] * dim + columns[None, :]
    tl.store(dq_ptr + dq_places, rounded(dq * scale, dq_ptr.dtype.element_ty), mask=asks[:, None] & (columns < dim)[None, :])


@triton.jit
def _back_to_keys(
    q_ptr, k_ptr, v_ptr, dy_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, t_segments, s_segments,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, t_stride, s_stride,
    n_heads, shared, queries, keys, dim, value_dim,
    scale: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    n_kv_heads = n_heads // shared
    row, kv_head = (tl.program_id(1) // n_kv_heads).to(tl.int64), (tl.program_id(1) % n_kv_heads).to(tl.int64)
    first = tl.program_id(0) * KEYS
    s, columns, value_columns = first + tl.arange(0, KEYS), tl.arange(0, D), tl.arange(0, E)
    is_key = s < keys
    k = _load(k_ptr + row * k_row + kv_head * k_head, s.to(tl.int64) * k_token, is_key, columns, dim, FACTOR)
    v = _load(v_ptr + row * v_row + kv_head * v_head, s.to(tl.int64) * v_token, is_key, value_columns, value_dim, FACTOR)
    dk = tl.zeros([KEYS, D], dtype=WIDE)
    dv = tl.zeros([KEYS, E], dtype=WIDE)
    begin = 0
    if CAUSAL:
        begin = tl.maximum(0, first - (keys - queries)) // QUERIES * QUERIES
    for member in range(shared):
        head = kv_head * shared + member
        for start in range(begin, queries, QUERIES):
            t = start + tl.arange(0, QUERIES)
            asks = t < queries
            places = (row * n_heads + head) * queries + t
            q = _load(q_ptr + row * q_row + head * q_head, t.to(tl.int64) * q_token, asks, columns, dim, FACTOR)
            dy = _load(dy_ptr, places * value_dim, asks, value_columns, value_dim, FACTOR)
            lse = tl.load(lse_ptr + places, mask=asks, other=float("inf"))
            delta = tl.load(delta_ptr + places, mask=asks, other=0.0)
            seen = _seen(row, t, s, queries, keys, t_segments, s_segments, t_stride, s_stride, CAUSAL, SEGMENTS, WINDOW)
            shares, dscores = _shares_and_slopes(q, k, v, dy, lse, delta, seen, scale, SOFTCAP, PRECISION, WIDE)
            dv += tl.dot(tl.trans(shares.to(FACTOR)), dy, input_precision=PRECISION, out_dtype=WIDE)
            dk += tl.dot(tl.trans(dscores.to(FACTOR)), q, input_precision=PRECISION, out_dtype=WIDE)
    places = (row * n_kv_heads + kv_head) * keys + s
    dk_places, dv_places = places[:, None] * dim + columns[None, :], places[:, None] * value_dim + value_columns[None, :]
    tl.store(dk_ptr + dk_places, rounded(dk * scale, dk_ptr.dtype.element_ty), mask=is_key[:, None] & (columns < dim)[None, :])
    inside = is_key[:, None] & (value_columns < value_dim)[None, :]
    tl.store(dv_ptr + dv_places, rounded(dv, dv_ptr.dtype.element_ty), mask=inside)


def tile(row: int) -> tuple[int, int]:
    """Queries and keys of a tile, of vectors of so many bytes."""
    length = max(16, min(64, TILE_BYTES // row))
    return length, length


class Shapes:
    """Of one call: what all three kernels are told."""

    def __init__(
        self, q_BHTD, k_BGSD, v_BGSE, segments: tuple[Tensor, Tensor] | None, scale: float, causal: bool, window, softcap
    ) -> None:
        self.rows, self.n_heads, self.queries, dim = q_BHTD.shape
        self.n_kv_heads, self.keys, value_dim = k_BGSD.shape[1], k_BGSD.shape[2], v_BGSE.shape[3]
        self.segments = (None, None) if segments is None else tuple(x.expand(self.rows, -1).contiguous() for x in segments)
        strides = [stride for x in (q_BHTD, k_BGSD, v_BGSE) for stride in x.stride()[:3]]
        shared = self.n_heads // self.n_kv_heads
        self.numbers = (*strides, self.queries, self.keys, self.n_heads, shared, self.queries, self.keys, dim, value_dim)
        dtype = q_BHTD.dtype
        widths = max(16, power(dim)), max(16, power(value_dim))
        self.tile = (16, 16) if INTERPRETED else tile(max(widths) * q_BHTD.element_size())
        formats = operand(dtype), wide(dtype), precision(dtype)
        # A number that is no constant would be float32, whatever the tensors are.
        self.constants = (scale, causal, segments is not None, window, softcap, *formats, *self.tile, *widths)


def forward(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """[B, H, T, E], and the logarithm of each query's sum of exponentials, [B, H, T]."""
    y_BHTE = q_BHTD.new_empty(*q_BHTD.shape[:3], v_BGSE.shape[3])
    lse_BHT = q_BHTD.new_empty(q_BHTD.shape[:3], dtype=torch.promote_types(q_BHTD.dtype, torch.float32))
    if y_BHTE.numel():
        with on(q_BHTD):
            _forward[(triton.cdiv(shapes.queries, shapes.tile[0]), shapes.rows * shapes.n_heads)](
                *(q_BHTD, k_BGSD, v_BGSE, y_BHTE, lse_BHT, *shapes.segments, *shapes.numbers, *shapes.constants)
            )
    return y_BHTE, lse_BHT


def backward(
    dy_BHTE: Tensor, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, y_BHTE: Tensor, lse_BHT: Tensor, shapes: Shapes
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to queries, keys and values, contiguous."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q_BHTD, k_BGSD, v_BGSE))
    if y_BHTE.numel() and shapes.keys:
        delta_BHT = (dy_BHTE.to(lse_BHT.dtype) * y_BHTE.to(lse_BHT.dtype)).sum(-1)
        given = (q_BHTD, k_BGSD, v_BGSE, dy_BHTE, lse_BHT, delta_BHT)
        rest = (*shapes.segments, *shapes.numbers, *shapes.constants)
        with on(q_BHTD):
            query_tiles, key_tiles = triton.cdiv(shapes.queries, shapes.tile[0]), triton.cdiv(shapes.keys, shapes.tile[1])
            _back_to_queries[(query_tiles, shapes.rows * shapes.n_heads)](*given, dq, *rest)
            _back_to_keys[(key_tiles, shapes.rows * shapes.n_kv_heads)](*given, dk, dv, *rest)
    return dq, dk, dv
