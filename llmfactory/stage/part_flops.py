"""Operations of a training by part of the model: what a plan reckons for each piece (`stage/workload.py`), shared out over the parts
that a piece consists of."""

from __future__ import annotations

from torch import nn

from llmfactory.config.spec import Job
from llmfactory.model.part import visited
from llmfactory.parallel.plan.kept import Formats
from llmfactory.parallel.plan.pieces import Piece, Where, forward_flops, train_flops
from llmfactory.stage.workload import asked_base, built, pieces_of

PARTS = {
    "attention": "attention",
    "mixer": "mixer",
    "ffn": "ffn",
    "norm": "norm",
    "position": "position",
    "embedding": "embedding",
    "head": "head + loss",
    "rest": "rest of the model",
}
"""Key and shown name. A part's key is the folder of `llmfactory/model/` that its class stands in."""
FORM = Formats(4, 4, True)
"""Operations do not depend on formats."""


def part_of(module: nn.Module) -> str | None:
    """The key of the part that a module is; None: it is none, but may hold some."""
    for cls in type(module).__mro__:
        words = cls.__module__.split(".")
        if words[:2] == ["llmfactory", "model"] and len(words) > 3:
            return words[2] if words[2] in PARTS else "rest"
    return None


def flops_by_part(job: Job, head_share: float = 1.0) -> dict[str, float]:
    """Floating-point operations of training for one token, forward and backward, by part. `head_share`: of the tokens, those that
    the head is asked about. They add up to `train_flops_of`; a reference's forward comes besides, in the parts that it goes through."""
    model, found = built(job), dict.fromkeys(PARTS, 0.0)
    base, modules = asked_base(job), dict(model.named_modules())
    of_asked = modules if base is None else dict(base.named_modules())
    for piece in pieces_of(model, job.model, job.data.seq_len, FORM, base):
        whole = train_flops(piece, job.data.seq_len)
        module = (of_asked if piece.asked else modules).get(piece.name)
        if piece.where is Where.head or (module is not None and part_of(module) == "head"):
            found["head"] += head_share * whole
        elif module is not None:
            for part, share in _shares(module, piece, job.data.seq_len).items():
                found[part] += share * whole
        else:
            found["rest"] += whole
    return found


def _shares(block: nn.Module, piece: Piece, seq_len: int) -> dict[str, float]:
    """Of a layer's operations, those of each part: products with matrices as they are visited, scores the attention's."""
    forward = forward_flops(piece, seq_len)
    if not forward:
        return {}
    scores = 2.0 * piece.tokens * piece.pair_products * piece.seen * seq_len / forward
    by_part: dict[str, float] = {}
    _visit(block, "rest", by_part)
    total = sum(by_part.values()) or 1.0
    shares = {part: (1 - scores) * products / total for part, products in by_part.items()}
    shares["attention"] = shares.get("attention", 0.0) + scores
    return shares


def _visit(module: nn.Module, part: str, found: dict[str, float]) -> None:
    """Matrix elements that a token is multiplied by, by the outermost part that holds them."""
    here = part_of(module)
    if here is not None and here != "rest":
        found[here] = found.get(here, 0.0) + visited(module)
        return
    below = sum(map(visited, module.children()))
    found["rest"] = found.get("rest", 0.0) + max(0.0, visited(module) - below)
    for child in module.children():
        _visit(child, part, found)
