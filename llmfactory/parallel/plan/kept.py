"""What the forward pass keeps for the backward pass: bytes of the tensors that autograd holds on to, part by part.

Counted over one micro-batch on one process, each storage once; tests count the same with `saved_tensors_hooks`. The rules:

- A norm keeps its input and one or two numbers a token; without a fused kernel (CPU) RMS norm keeps the normalized input too.
- A linear map keeps its input. Under autocast each map keeps its own copy of a float32 input in the low format, and a copy of its
  weights, which autocast makes once a micro-batch (`Kept.casts`).
- Fused attention keeps queries, keys, values, output and a number a head; in steps it keeps scores, [rows, heads, T, S].
- Activations and products keep what they are computed of.

Legend of sizes: D width of the stream, H heads, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from llmfactory.model.attention.spec import AttentionSpec, Cross, Gqa, Mla, MultiHeadSpec, RelativeSpec, TwoStream
from llmfactory.model.block.spec import BlockSpec, Parallel, Sandwich
from llmfactory.model.ffn.spec import Activation, FfnSpec, Glu, Mlp, Moe, MoeSpec
from llmfactory.model.norm.spec import LayerNorm, NormSpec, RmsNorm
from llmfactory.model.position.spec import Alibi, PositionSpec, Rope, Rope2d, T5Bias


@dataclass(frozen=True, slots=True)
class Formats:
    """Bytes of a number, and by whose kernels."""

    wide: int
    """Of the residual stream, norms, weights and gradients: 4, or 8 in float64."""
    low: int
    """Of what matrix products read and write: 2 under autocast."""
    is_cpu: bool
    """CPU kernels keep more."""

    @property
    def mixed(self) -> bool:
        """Whether products run in another format than the rest."""
        return self.low != self.wide


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes by what they grow with and what cuts them."""

    stream: float = 0.0
    """A token, between the matrices of tensor parallelism: sequence parallelism cuts it."""
    inner: float = 0.0
    """A token, between column-cut and row-cut matrices: tensor parallelism cuts it."""
    visits: float = 0.0
    """A token, within experts: balanced, experts' groups see as many visits as there are tokens."""
    pairs: float = 0.0
    """A pair of query and key of a row; cut with the heads."""
    table: float = 0.0
    """A pair of query and key, once for all rows; cut with the heads."""
    mask: float = 0.0
    """A pair of query and key, once for all rows, of all heads."""

    def __add__(self, other: Kept) -> Kept:
        return Kept(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Kept)))

    def __mul__(self, factor: float) -> Kept:
        return Kept(*(factor * getattr(self, one.name) for one in fields(Kept)))

    def total(self, rows: float, queries: float, keys: float, stream_cut: int = 1, inner_cut: int = 1) -> float:
        """Bytes of a micro-batch: `rows` rows of `queries` tokens, each of which may see `keys` tokens."""
        a_token = self.stream / stream_cut + self.inner / inner_cut + self.visits
        a_pair = rows * self.pairs / inner_cut + self.table / inner_cut + self.mask
        return rows * queries * a_token + queries * keys * a_pair


def kept_by_norm(norm: NormSpec, width: int, form: Formats, rows: int = 1, low: bool = False) -> float:
    """Bytes a token of a norm over `rows` vectors of a width, its input included; `low`: which a product has made."""
    if isinstance(norm, RmsNorm):  # PyTorch's operation for a GPU keeps the wide copy that it works on
        return rows * (width * (form.low if low and form.is_cpu else form.wide) + form.wide)
    if isinstance(norm, LayerNorm):
        return rows * form.wide * (width + 2)
    return 0.0


def kept_by_inputs(maps: int, width: int, form: Formats) -> float:
    """Bytes a token of the input of so many linear maps that read the same tensor of the stream's format."""
    return width * (maps * form.low if form.mixed else form.wide)


def kept_by_dropout(rate: float, width: int, form: Formats, low: bool = True) -> float:
    """Bytes a token of the mask: the noise itself on the CPU, a byte elsewhere."""
    return 0.0 if not rate else width * ((form.low if low else form.wide) if form.is_cpu else 1)


def readers(part: AttentionSpec | FfnSpec) -> int:
    """Linear maps that read the input of a part."""
    if isinstance(part, (Glu, Mla, TwoStream)):  # keys and values of one of two streams
        return 2
    return 3 if isinstance(part, AttentionSpec) and not part.of_memory else 1


def kept_by_attention(part: AttentionSpec, position: PositionSpec, dim: int, memory: int, form: Formats) -> Kept:
    """Of everything after the input of the first maps. `memory`: width of an encoder's vectors."""
    if isinstance(part, Mla):
        return _kept_by_mla(part, form)
    if not isinstance(part, (MultiHeadSpec, RelativeSpec)):
        return Kept(inner=4.0 * dim * form.low)
    head, heads = part.head_width(dim), part.n_heads
    groups = (part.n_kv_heads or heads) if isinstance(part, Gqa) else heads
    q, kv = heads * head, groups * head
    normed = 0.0
    if isinstance(part, Gqa) and part.qk_norm is not None:
        normed = kept_by_norm(part.qk_norm, head, form, heads + groups, low=True)
    rotated = position.rotated(head) if isinstance(position, Rope) else head
    if isinstance(part, Gqa) and (rotated < head or (part.qk_norm is not None and not form.is_cpu)):
        # Queries made anew lie head by head, and so does the output, so that the last map reads a copy of it.
        normed += q * form.low
    stream = kept_by_inputs(2, memory, form) if isinstance(part, Cross) else 0.0
    softcap = getattr(part, "softcap", None)
    in_steps = part.dropout > 0 and form.is_cpu
    if softcap is not None:
        seen = {"mask": 2.0}
        inner = (2 * q + 2 * (q if form.is_cpu else kv)) * form.low
        return Kept(stream=stream, inner=inner + normed, pairs=heads * (2.0 * form.wide + form.low), **seen)
    if in_steps:
        return Kept(stream=stream, inner=3.0 * q * form.wide + q * form.low + normed, pairs=3.0 * heads * form.wide)
    if isinstance(part, RelativeSpec):
        return _kept_by_relative(part, q, form)
    if isinstance(position, T5Bias) and not part.of_memory:
        return Kept(stream=stream, inner=3.0 * q * form.wide + q * form.low + normed, pairs=1.0 * heads * form.wide)
    fused = Kept(stream=stream, inner=(2 * q + 2 * kv) * form.low + heads * form.wide + normed)
    if isinstance(position, Alibi) and not part.of_memory:
        return fused + Kept(table=1.0 * heads * form.low)
    if getattr(part, "window", None) is not None:
        return fused + Kept(mask=1.0 * form.low)
    return fused


def _kept_by_mla(part: Mla, form: Formats) -> Kept:
    """The short vectors and their norms are whole on every process; heads are cut."""
    norm = RmsNorm(eps=part.eps)
    q = part.n_heads * (part.qk_nope_head_dim + part.qk_rope_head_dim)
    v = part.n_heads * part.v_head_dim
    short = kept_by_norm(norm, part.kv_lora_rank, form) + kept_by_inputs(1, part.kv_lora_rank, form)
    if not form.mixed:
        short += part.qk_rope_head_dim * form.wide  # the norm's input is a piece of a tensor, which is kept whole
    if part.q_lora_rank is not None:
        short += kept_by_norm(norm, part.q_lora_rank, form) + kept_by_inputs(1, part.q_lora_rank, form)
    if form.is_cpu:  # no fused kernel takes values of another width
        inner = (2.0 * q + v) * form.wide + v * form.low
        return Kept(stream=short, inner=inner, pairs=(3.0 if part.dropout else 1.0) * part.n_heads * form.wide)
    return Kept(stream=short, inner=2.0 * (q + v) * form.low + part.n_heads * form.wide)


def _kept_by_relative(part: RelativeSpec, width: int, form: Formats) -> Kept:
    """Scores of distances are a bias that trains, so attention keeps them."""
    inner = (3.0 * form.wide + 2.5 * form.low) * width if form.mixed else 6.0 * width * form.wide
    return Kept(inner=inner, pairs=1.0 * part.n_heads * form.wide)


KEPT_ACTIVATION = {Activation.relu: 0, Activation.relu2: 1, Activation.quick_gelu: 2}
"""Tensors that an activation keeps besides what the next product does; the others keep one, their input."""


def _activated(activation: Activation, gated: bool) -> int:
    """Tensors [hidden] that are kept from the first maps' outputs to the last map's input."""
    # A gate keeps what it multiplies (`kernel/gated.py`), and the last map what it reads; a ReLU's output serves the product too.
    return 3 if gated else KEPT_ACTIVATION.get(activation, 1) + 1


def kept_by_ffn(part: FfnSpec, dim: int, form: Formats) -> Kept:
    """Of everything after the input of the first maps."""
    if isinstance(part, (Glu, Mlp)):
        return Kept(inner=1.0 * part.hidden * form.low * _activated(part.activation, isinstance(part, Glu)))
    if isinstance(part, MoeSpec):
        return _kept_by_experts(part, dim, form)
    return Kept(inner=2.0 * part.hidden * form.low)


def _kept_by_experts(part: MoeSpec, dim: int, form: Formats) -> Kept:
    k = part.k if isinstance(part, Moe) else 1
    maps = 2 if part.gated else 1
    hidden = part.hidden * form.low * _activated(part.activation, part.gated)
    read = dim * (maps * form.low if form.mixed else form.wide)
    numbers = 8.0 * (3 * k + 1)  # which expert, the order of visits and back
    router = form.wide * (part.n_experts * (1 + bool(part.z)) + 2 * k)
    if form.mixed:
        router += dim * form.wide  # the router reads the stream itself
    visits = k * (hidden + read + dim * form.low)
    kept = Kept(stream=router + numbers, visits=visits)
    if isinstance(part, Moe) and part.shared_hidden:
        shared = part.shared_hidden * form.low * _activated(part.activation, part.gated)
        extra = dim * form.low * (maps if form.mixed else 0)
        gate = dim * form.low * 2 if part.shared_gate else 0
        kept += Kept(stream=extra + gate, inner=1.0 * shared)
    return kept


def kept_by_block(
    block: BlockSpec,
    norm: NormSpec,
    position: PositionSpec,
    attention: AttentionSpec,
    ffn: FfnSpec,
    cross: AttentionSpec | None,
    dropout: float,
    dim: int,
    form: Formats,
    memory: int | None = None,
) -> Kept:
    """Of a whole block, from its input (included) to its output (not included)."""
    parts: list[AttentionSpec | FfnSpec] = [attention, ffn] if cross is None else [attention, cross, ffn]
    inside = kept_by_attention(attention, position, dim, dim, form) + kept_by_ffn(ffn, dim, form)
    if cross is not None:
        inside += kept_by_attention(cross, position, dim, memory or dim, form)
    stream = len(parts) * kept_by_dropout(dropout, dim, form)
    a_norm = kept_by_norm(norm, dim, form)
    if isinstance(block, Parallel) and block.shared_norm:
        stream += a_norm + kept_by_inputs(sum(map(readers, parts)), dim, form)
    else:
        stream += len(parts) * a_norm + sum(kept_by_inputs(readers(part), dim, form) for part in parts)
        if isinstance(block, Parallel):  # both norms read the same tensor
            stream -= dim * form.wide if a_norm else 0
    if isinstance(block, Sandwich):
        stream += len(parts) * kept_by_norm(norm, dim, form, low=True)
    if isinstance(ffn, MoeSpec) and form.mixed:
        stream -= kept_by_inputs(readers(ffn), dim, form)  # the router's copy and the experts' are counted there
    return inside + Kept(stream=stream)


def kept_by_position(position: PositionSpec, head: int, form: Formats) -> float:
    """Bytes a token of the tables that all blocks of a stack share."""
    width = position.rotated(head) if isinstance(position, Rope) else head
    return 2.0 * width * form.wide if isinstance(position, (Rope, Rope2d)) else 0.0
