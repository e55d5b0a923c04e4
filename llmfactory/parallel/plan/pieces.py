"""A model in numbers: what a plan needs to know of it, and nothing of torch.

A piece is what a pipeline does not cut any further: a layer, what comes before the first one, what comes after the last one, the
head. `stage/plan.py` makes them of a model built without memory, so that shapes and declarations are the model's own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from llmfactory.core.sharding import Layout
from llmfactory.parallel.plan.kept import Formats, Kept


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A parameter, and how its part lets it be cut (`core/sharding.py`)."""

    name: str
    shape: tuple[int, ...]
    layout: Layout = Layout.replicated
    unit: int = 1
    """Features that stay together: the width of a head."""
    hidden: int | None = None
    """Of a stack of experts' matrices, the dimension of their hidden units."""
    trains: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_expert(self) -> bool:
        return self.layout is Layout.expert

    def cut_dim(self, tp: int) -> int | None:
        """The dimension along which a tensor-parallel group cuts it; None: each process has a copy (`tensor.py`)."""
        if tp == 1 or self.layout is Layout.replicated:
            return None
        if self.layout is Layout.expert:
            return self.hidden
        dim = 1 if self.layout is Layout.row else 0
        whole = self.shape[dim] // (self.unit if dim == 0 else 1)
        return dim if whole % tp == 0 else None

    def local(self, tp: int, ep: int = 1) -> tuple[int, ...]:
        """Shape of a process's piece, before FSDP."""
        return _local(self, tp, ep)

    def shard(self, tp: int, ep: int, shards: int, place: int = 0, padded: bool = False) -> int:
        """Elements that process number `place` of those that share the parameter keeps: FSDP cuts the first dimension into
        pieces of the same size, the last ones smaller or empty, and pads them for its messages."""
        return _shard(self, tp, ep, shards, place, padded)


@functools.lru_cache(1 << 16)
def _local(weight: Weight, tp: int, ep: int) -> tuple[int, ...]:
    shape = list(weight.shape)
    dim = weight.cut_dim(tp)
    if dim is not None:
        shape[dim] //= tp
    if weight.is_expert:
        shape[0] //= ep
    return tuple(shape)


@functools.lru_cache(1 << 16)
def _shard(weight: Weight, tp: int, ep: int, shards: int, place: int, padded: bool) -> int:
    shape = weight.local(tp, ep)
    if not shape:
        return 1
    dim = 0
    if weight.is_expert:
        dim = next((number for number, size in enumerate(shape) if size % shards == 0), 0)
    chunk = -(-shape[dim] // shards)
    mine = chunk if padded else max(0, min(chunk, shape[dim] - place * chunk))
    return mine * (math.prod(shape) // shape[dim])


class Where(Enum):
    """What a piece is to a pipeline."""

    layer = "one of the layers, which are dealt out"
    rest = "before the first or after the last layer"
    head = "logits and loss; on the last stage"


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Numbers of one piece. `per token`: of a row that the model reads."""

    name: str
    kind: str = ""
    """The same for layers that differ in nothing but their names."""
    weights: tuple[Weight, ...] = ()
    where: Where = Where.layer
    borrowed: tuple[Weight, ...] = ()
    """Weights of another piece that it needs too: the embedding of a tied head."""
    table: Weight | None = None
    """The table that it looks tokens up in."""
    cut_products: float = 0.0
    """Multiply-adds a token in matrices that tensor parallelism cuts."""
    whole_products: float = 0.0
    """The same in matrices that each process multiplies whole."""
    pair_products: float = 0.0
    """Multiply-adds for each pair of a query and a key that it sees, all heads together."""
    seen: float = 1.0
    """Share of a row's tokens that a query sees: a half where it sees those before it."""
    tokens: float = 1.0
    """Tokens that pass for each token of a row: two where there are two streams."""
    kept: Kept = field(default_factory=Kept)
    width: int = 0
    """Of the stream."""
    joins: tuple[int, ...] = ()
    """Widths of what row-cut matrices give, one a part with such a matrix."""
    keys: int = 0
    """Width of all keys and values of its attention together; 0: it has none."""
    queries: int = 0
    """Width of all queries of its attention."""
    groups: int = 1
    """Key heads."""
    visits: int = 0
    """Experts that a token visits."""
    asked: bool = False
    """It belongs to a second model, which is run without a backward pass: a reference."""

    @property
    def products(self) -> float:
        return self.cut_products + self.whole_products

    @property
    def frozen(self) -> float:
        """Share of its matrices that do not learn, whose gradients are not made."""
        matrices = [one for one in (*self.weights, *self.borrowed) if len(one.shape) >= 2]
        total = sum(one.elements for one in matrices)
        return sum(one.elements for one in matrices if not one.trains) / total if total else 0.0

    def casts(self, tp: int, ep: int) -> int:
        """Elements of matrices that autocast makes a copy of."""
        if self.where is not Where.layer or not self.tokens:
            return 0
        return sum(math.prod(one.local(tp, ep)) for one in self.weights if is_multiplied(one))


def is_multiplied(weight: Weight) -> bool:
    """Whether a weight of a layer takes part in matrix products under autocast: routers stay in float32."""
    return len(weight.shape) >= 2 and not weight.name.endswith(("router.weight", "_bias"))


@dataclass(frozen=True, eq=False)
class Work:
    """What one optimizer step has to do."""

    pieces: tuple[Piece, ...]
    """In forward order; a layer that is used several times stands there several times."""
    rows: int
    """Rows of a step, on all processes."""
    seq_len: int
    """Tokens of a row."""
    formats: Formats
    product_format: str
    """Of matrix products: fp64, fp32, bf16 or fp16."""
    weight_state: float
    """Bytes that the optimizer keeps for each weight."""
    state_bytes: int
    """Bytes that it keeps for each parameter besides."""
    vocab: int
    """Columns of the logits; 0: few enough to forget."""
    chunk_rows: int = 512
    """Rows whose logits are made at once."""

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Each parameter once, by name."""
        return tuple({one.name: one for piece in self.pieces for one in piece.weights}.values())

    @functools.cached_property
    def lent(self) -> tuple[Weight, ...]:
        """Weights that a piece owns and another one needs too."""
        names = {one.name for piece in self.pieces for one in piece.borrowed}
        return tuple(one for one in self.weights if one.name in names)

    @property
    def parameters(self) -> int:
        """Of the whole model; a reference is none of it."""
        beside = {one.name for piece in self.pieces if piece.asked for one in piece.weights}
        return sum(one.elements for one in self.weights if one.name not in beside)

    @property
    def trained_parameters(self) -> int:
        """Those of them that learn."""
        return sum(one.elements for one in self.weights if one.trains)

    @functools.cached_property
    def layers(self) -> int:
        """Layers that a pipeline can deal out."""
        return sum(piece.where is Where.layer for piece in self.pieces)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.seq_len

    @property
    def flops(self) -> float:
        """Floating-point operations of a step, forward and backward, by the convention of model FLOPs utilization."""
        return self.tokens * sum(train_flops(piece, self.seq_len) for piece in self.pieces)


def train_flops(piece: Piece, seq_len: int) -> float:
    """Of a piece for one token of a row, forward and backward, which is twice the forward but for gradients of what is frozen."""
    if piece.asked:
        return forward_flops(piece, seq_len)
    return 3 * forward_flops(piece, seq_len) - 2.0 * piece.tokens * piece.products * piece.frozen


def forward_flops(piece: Piece, seq_len: int) -> float:
    """Of a piece for one token of a row, forward."""
    return 2.0 * piece.tokens * (piece.products + piece.pair_products * piece.seen * seq_len)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Pieces of a stage that are alike."""

    piece: Piece
    uses: int
    """How often such a piece is passed."""
    owned: int
    """How many there are; fewer where layers share their weights."""


def bundled(pieces: Sequence[Piece]) -> tuple[Bundle, ...]:
    """Like pieces together, in the order of the first of each kind."""
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.kind or piece.name, []).append(piece)
    return tuple(Bundle(group[0], len(group), len({one.name for one in group})) for group in groups.values())


def borrowed(bundles: Sequence[Bundle]) -> tuple[Weight, ...]:
    """Weights that these pieces need and that are another stage's: a copy of them is held here too."""
    own = {one.name for bundle in bundles for one in bundle.piece.weights}
    lent = {one.name: one for bundle in bundles for one in bundle.piece.borrowed if one.name not in own}
    return tuple(lent.values())
