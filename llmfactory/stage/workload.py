"""A job as a plan sees it: the pieces of its model in numbers (`parallel/plan/pieces.py`), its rows, its formats.

The model is built on torch's meta device, so that shapes, declarations and the order of pieces are its own, whatever it consists of;
what pieces keep for the backward pass is reckoned from their specs. Counting takes milliseconds; importing torch takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.core.spec import stem
from llmfactory.model.attention.spec import AttentionSpec, Gqa, Mla
from llmfactory.model.count import train_flops_per_token
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.ffn.spec import FfnSpec, Moe, MoeSpec
from llmfactory.model.part import Part, visited
from llmfactory.model.skeleton import COMPANION, Skeleton
from llmfactory.model.spec import EncoderDecoder, ModelSpec, Multimodal, NeuralNgram, Recurrent, TextSpec, TowerSpec
from llmfactory.model.steps import Step
from llmfactory.objective.answers import AnswersObjective
from llmfactory.objective.preference_spec import Reference
from llmfactory.objective.reference import REFERENCE
from llmfactory.objective.spec import answers_of, natural
from llmfactory.optim.spec import MomentsSpec
from llmfactory.parallel.plan.kept import (
    Formats,
    Kept,
    kept_by_block,
    kept_by_dropout,
    kept_by_ffn,
    kept_by_inputs,
    kept_by_norm,
    kept_by_position,
    readers,
)
from llmfactory.parallel.plan.mixers import kept_by_mixer
from llmfactory.parallel.plan.pieces import Piece, Weight, Where, Work, train_flops
from llmfactory.peft.spec import AdapterSpec
from llmfactory.stage.spec import TrainingSpec

FORMATS = {
    "fp64": (8, 8, "fp64"),
    "fp32": (4, 4, "fp32"),
    **dict.fromkeys(("bf16_mixed", "fp8", "int8_mixed"), (4, 2, "bf16")),
    "fp16_mixed": (4, 2, "fp16"),
}
"""Bytes of the stream and of products, and the products' format, by precision. Those of 8 bits are reckoned at bfloat16's speed, which
theirs exceeds by what depends on the shapes."""
GPU_LOGITS, CPU_ROWS = 2**27, 256
"""How many logits, or rows of them, `kernel/linear_cross_entropy.py` makes at once."""


def work_of(job: Job, is_cpu: bool) -> Work:
    """What a training step of this job has to do. Raises UserError for what is not trained step by step."""
    name = stem(type(job.precision))
    if name not in FORMATS:
        raise UserError(f"precision={name} is none that a plan can be made for: use one of {', '.join(FORMATS)}")
    if job.model.graph == "counts":
        raise UserError("this model counts n-grams in one pass: there are no steps to plan")
    wide, low, product = FORMATS[name]
    form = Formats(wide, low, is_cpu)
    model = built(job)
    vocab = job.model.vocab_size if answers_of(job.model) == "tokens" else 0
    return Work(
        pieces=tuple(pieces_of(model, job.model, job.data.seq_len, form, asked_base(job))),
        rows=job.trainer.batch_size,
        seq_len=job.data.seq_len,
        formats=form,
        product_format=product,
        weight_state=job.optim.state_bytes(wide) + job.optim.average.copies() * wide,
        state_bytes=4 if isinstance(job.optim, MomentsSpec) else 0,
        vocab=vocab,
        chunk_rows=CPU_ROWS if is_cpu else max(CPU_ROWS, GPU_LOGITS // max(1, vocab)),
    )


def train_flops_of(job: Job, head_share: float = 1.0) -> float:
    """Operations of training for one token, forward and backward, those of frozen matrices' gradients left out. `head_share`: of
    the tokens, those that the head is asked about."""
    if not isinstance(job.peft, AdapterSpec):
        return train_flops_per_token(job.model, job.data.seq_len, head_share)
    work = work_of(job, is_cpu=True)
    own = [piece for piece in work.pieces if not piece.asked]
    return sum((head_share if piece.where is Where.head else 1.0) * train_flops(piece, work.seq_len) for piece in own)


def built(job: Job) -> Skeleton:
    """The model with what its objective adds to it, without memory."""
    with torch.device("meta"):
        model = job.model.build()
        job.peft.apply(model)
        if isinstance(job.stage, TrainingSpec):
            job.stage.trained(job).equip(model)
        elif (usual := natural(job.model.graph, answers_of(job.model))) is not None:
            usual().build().equip(model)
    return model


def asked_base(job: Job) -> Skeleton | None:
    """The model without its adapters, without memory, where a step asks it too."""
    objective = job.stage.trained(job) if isinstance(job.stage, TrainingSpec) else None
    if not isinstance(objective, AnswersObjective) or objective.reference is not Reference.base:
        return None
    with torch.device("meta"):
        return job.model.build()


@dataclass(frozen=True, slots=True)
class Layer:
    """What is said of one layer of a model."""

    kept: Kept
    attentions: tuple[AttentionSpec, ...] = ()
    ffn: FfnSpec | None = None
    width: int = 0
    seen: float = 1.0
    tokens: float = 1.0
    """Tokens that pass for each token of a row; 0: it reads pictures, of which a plan knows nothing."""


def pieces_of(model: Skeleton, spec: ModelSpec, seq_len: int, form: Formats, base: Skeleton | None = None) -> Iterator[Piece]:
    """In forward order: the model's steps, then the head, with a companion model before it and a reference before all where there are
    such; `base`: the model without its adapters, which is one by the same weights."""
    declared = declarations(model)
    weights = {name: _weight(name, one, declared[name]) for name, one in model.named_parameters()}
    ids = {id(one): name for name, one in model.named_parameters()}
    modules = {id(module): name for name, module in model.named_modules()}
    given: set[str] = set()

    def take(parameters: Sequence[nn.Parameter]) -> tuple[Weight, ...]:
        found = dict.fromkeys(ids[id(one)] for one in parameters)
        new = [name for name in found if name not in given]
        given.update(new)
        return tuple(weights[name] for name in new)

    def all_of(parameters: Sequence[nn.Parameter]) -> tuple[Weight, ...]:
        return tuple(weights[ids[id(one)]] for one in parameters)

    own = list(_own_pieces(model, spec, seq_len, form, modules, take, all_of, ""))
    companion = getattr(model, COMPANION.rstrip("."), None)
    if isinstance(companion, Skeleton):
        beside = _own_pieces(companion, companion.spec, seq_len, form, modules, take, all_of, COMPANION)
        own[-1:-1] = [replace(piece, where=Where.rest, borrowed=()) for piece in beside]
    reference = getattr(model, REFERENCE, None)
    if isinstance(reference, Skeleton):
        asked = _own_pieces(reference, reference.spec, seq_len, form, modules, take, all_of, f"{REFERENCE}.")
        own[:0] = map(_asked, asked)
    elif base is not None:
        names = {id(module): name for name, module in base.named_modules()}
        own[:0] = map(_asked, _own_pieces(base, spec, seq_len, form, names, _none, _none, ""))
    left = tuple(weights[name] for name in weights if name not in given)
    own[-1] = replace(own[-1], weights=own[-1].weights + left)
    yield from own


def _asked(piece: Piece) -> Piece:
    """Of a reference."""
    return replace(piece, kind=piece.kind and f"{REFERENCE} {piece.kind}", where=Where.rest, borrowed=(), kept=Kept(), asked=True)


def _none(parameters: Sequence[nn.Parameter]) -> tuple[Weight, ...]:
    """They are another piece's."""
    return ()


def _own_pieces(model, spec, seq_len, form, modules, take, all_of, prefix) -> Iterator[Piece]:  # type: ignore[no-untyped-def]
    layers = iter(_layers(spec, seq_len, form))
    repeated: dict[str, Piece] = {}
    for number, step in enumerate(model.steps()):
        if step.layer:
            name = modules[id(step.modules[0])]
            if name not in repeated:
                repeated[name] = _layer_piece(name, step, take, all_of, next(layers), form)
            else:
                next(layers)
            yield repeated[name]
        else:
            parameters = [one for module in step.modules for one in module.parameters()] + list(step.weights)
            name = _called(step, modules, number)
            kept, table = _kept_between(name, spec, form), _table(step, modules)
            yield Piece(name, "", take(parameters), Where.rest, table=table, kept=kept, width=spec.dim)
    yield _head_piece(model, spec, form, take, prefix)


def _table(step: Step, modules: Mapping[int, str]) -> Weight | None:
    """What a step looks tokens up in."""
    for part in step.modules:
        if isinstance(part, TokenTable):
            return _weight(f"{modules[id(part)]}.weight", part.get_parameter("weight"), part.declare()["weight"])
    return None


def _called(step: Step, modules: Mapping[int, str], number: int) -> str:
    found = [modules.get(id(module), "") for module in step.modules]
    return next((name for name in found if name), f"step {number}")


def _weight(name: str, parameter: nn.Parameter, declared: Parameter) -> Weight:
    return Weight(name, tuple(parameter.shape), declared.layout, declared.unit, declared.hidden, parameter.requires_grad)


def _layer_piece(name, step, take, all_of, layer: Layer, form: Formats) -> Piece:  # type: ignore[no-untyped-def]
    block = step.modules[0]
    weights = take([*block.parameters(), *step.weights])
    shared = all_of(step.weights)
    inner = tuple(_weight_like(block, name))
    products = visited(block)
    whole = sum(one.elements for one in inner if one.layout is Layout.replicated and len(one.shape) == 2 and _is_matrix(one))
    ffn = layer.ffn
    kept = _guessed(inner, form) if layer.kept == Kept() and layer.tokens else layer.kept
    return Piece(
        name,
        _kind(name, weights, layer),
        weights,
        borrowed=tuple(one for one in shared if one.name not in {own.name for own in weights}),
        cut_products=max(0.0, products - whole),
        whole_products=min(products, whole),
        pair_products=float(sum(one.score_width(layer.width) for one in layer.attentions)),
        seen=layer.seen,
        tokens=layer.tokens,
        kept=kept,
        width=layer.width,
        joins=tuple(_joins(block)) + ((layer.width,) if isinstance(ffn, MoeSpec) else ()),
        keys=sum(_key_width(one, layer.width) for one in layer.attentions[:1]),
        queries=sum(_query_width(one, layer.width) for one in layer.attentions[:1]),
        groups=max((_key_heads(one) for one in layer.attentions[:1]), default=1),
        visits=(ffn.k if isinstance(ffn, Moe) else 1) if isinstance(ffn, MoeSpec) else 0,
    )


def _kind(name: str, weights: tuple[Weight, ...], layer: Layer) -> str:
    """What a layer is like: its weights under their names within it, and what is said of it."""
    shapes = [(one.name.removeprefix(name), one.shape, one.trains) for one in weights]
    return str((shapes, layer.kept, layer.width, layer.seen, layer.tokens, layer.attentions, layer.ffn))


def _weight_like(block: nn.Module, name: str) -> Iterator[Weight]:
    """All weights of a block, also such as another piece has been given."""
    declared = declarations(block)
    for relative, one in block.named_parameters():
        yield _weight(f"{name}.{relative}", one, declared[relative])


def _is_matrix(weight: Weight) -> bool:
    return not weight.name.endswith("_bias")


def _joins(block: nn.Module) -> Iterator[int]:
    """Output widths of row-cut matrices."""
    for part in block.modules():
        if isinstance(part, Part):
            for key, one in part.declare().items():
                if one.layout is Layout.row:
                    yield part.get_parameter(key).shape[0]


def _key_width(part: AttentionSpec, dim: int) -> int:
    if isinstance(part, Mla):
        return part.n_heads * (part.qk_nope_head_dim + part.qk_rope_head_dim + part.v_head_dim)
    return 2 * _key_heads(part) * part.head_width(dim)


def _key_heads(part: AttentionSpec) -> int:
    return (part.n_kv_heads or part.n_heads) if isinstance(part, Gqa) else part.n_heads


def _query_width(part: AttentionSpec, dim: int) -> int:
    return part.n_heads * (part.qk_nope_head_dim + part.qk_rope_head_dim if isinstance(part, Mla) else part.head_width(dim))


def _head_piece(model, spec, form: Formats, take, prefix) -> Piece:  # type: ignore[no-untyped-def]
    head, names = model.head, {id(one): name for name, one in model.named_parameters()}
    weights = take(list(head.parameters()))
    matrix = getattr(head, "weight", None)
    borrowed: tuple[Weight, ...] = ()
    if isinstance(matrix, nn.Parameter) and id(matrix) not in {id(one) for one in head.parameters()}:
        name = names.get(id(matrix), "")
        borrowed = (Weight(name, tuple(matrix.shape), Layout.vocab, trains=matrix.requires_grad),) if name else ()
    width = matrix.shape[-1] if isinstance(matrix, torch.Tensor) and matrix.dim() == 2 else spec.dim
    kept = Kept()
    transform = getattr(head, "transform", None)
    if isinstance(transform, nn.Module):
        kept = Kept(stream=kept_by_inputs(1, spec.dim, form) + 2.0 * width * form.wide)
    return Piece(f"{prefix}head", "", weights, Where.head, borrowed, cut_products=float(head.visited()), kept=kept, width=width)


def _kept_between(name: str, spec: ModelSpec, form: Formats) -> Kept:
    """Of what stands before and after a stack; pictures do not count."""
    if name.startswith("vision."):
        return Kept()
    if name.endswith("embedding"):
        return _kept_at_entry(spec, form)
    return _kept_at_exit(spec, form) if name.rpartition(".")[2] == "norm" else Kept()


def _kept_at_entry(spec: ModelSpec, form: Formats) -> Kept:
    """Embeddings keep ids, a norm its input, dropout its mask; the tables of rotary positions are all layers'."""
    stream = 8.0
    if isinstance(spec, TextSpec):
        width = spec.mapped_width() or spec.dim
        if spec.embedding_norm:
            stream += kept_by_norm(spec.norm, width, form)
        stream += kept_by_dropout(spec.dropout, width, form, low=False)
        stream += kept_by_inputs(1, width, form) if spec.mapped_width() else 0
        stream += kept_by_position(spec.position, spec.attention.head_width(spec.dim), form)
    elif isinstance(spec, NeuralNgram):
        before = spec.order - 1
        stream += 8.0 * before + form.wide * (before * spec.dim + spec.hidden)
    elif isinstance(spec, EncoderDecoder) and spec.embedding_norm:
        stream += kept_by_norm(spec.encoder.norm, spec.dim, form)
    if isinstance(spec, EncoderDecoder):
        stream += kept_by_dropout(spec.encoder.dropout, spec.dim, form, low=False)
    return Kept(stream=stream)


def _kept_at_exit(spec: ModelSpec, form: Formats) -> Kept:
    """The last norm's, where a stack ends with one."""
    tower = spec.decoder if isinstance(spec, EncoderDecoder) else spec
    norm = getattr(tower, "norm", None)
    ends = {"PostNorm", "DeepNorm"}
    if norm is None or type(getattr(tower, "block", None)).__name__ in ends:
        return Kept()
    return Kept(stream=kept_by_norm(norm, spec.dim, form))


def _layers(spec: ModelSpec, seq_len: int, form: Formats) -> Iterator[Layer]:
    """In the order of the model's steps."""
    if isinstance(spec, Multimodal):
        for _ in range(spec.vision.layers_used or spec.vision.n_layers):
            yield Layer(Kept(), width=spec.vision.dim, tokens=0.0)
    if isinstance(spec, EncoderDecoder):
        yield from _stack(spec.encoder, spec.dim, 1.0, form)
        yield from _stack(spec.decoder, spec.dim, 0.5, form)
    elif isinstance(spec, TextSpec):
        causal = spec.graph in ("decoder", "multimodal")
        yield from _stack(spec, spec.dim, 0.5 if causal else 1.0, form, 2.0 if spec.graph == "two_stream" else 1.0)
    elif isinstance(spec, Recurrent):
        for _ in range(spec.n_layers):
            yield Layer(_kept_by_recurrent(spec, seq_len, form), (), spec.ffn, spec.dim)
    while True:  # kinds of models that are not known here
        yield Layer(Kept(), width=spec.dim)


def _stack(tower: TowerSpec, dim: int, seen: float, form: Formats, tokens: float = 1.0) -> Iterator[Layer]:
    for kind in tower.kinds():
        attentions = (kind.attention,) if tower.cross is None else (kind.attention, tower.cross)
        kept = kept_by_block(
            tower.block, tower.norm, tower.position, kind.attention, kind.ffn, tower.cross, tower.dropout, dim, form
        )
        yield Layer(kept, attentions, kind.ffn, dim, seen, tokens)


def _kept_by_recurrent(spec: Recurrent, seq_len: int, form: Formats) -> Kept:
    parts = 1 if spec.ffn is None else 2
    stream = parts * (kept_by_norm(spec.norm, spec.dim, form) + kept_by_dropout(spec.dropout, spec.dim, form))
    inside = Kept() if spec.ffn is None else kept_by_ffn(spec.ffn, spec.dim, form)
    if spec.ffn is not None:
        stream += kept_by_inputs(readers(spec.ffn), spec.dim, form)
    return inside + Kept(stream=stream) + kept_by_mixer(spec.mixer, spec.dim, seq_len, form)


def _guessed(weights: Sequence[Weight], form: Formats) -> Kept:
    """Of a layer of which nothing else is known: inputs and outputs of its matrices."""
    return Kept(inner=float(form.low * sum(sum(one.shape[-2:]) for one in weights if len(one.shape) >= 2)))
