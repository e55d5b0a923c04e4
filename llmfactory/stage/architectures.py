"""What the presets of `model` are made of, one line each: `stage=describe stage.presets=true`, kept as docs/architectures.md.

Everything is read off the composed specs, and parameters are counted on the meta device. Where the stacks of a model differ (encoder /
decoder), or the layers of a stack, both values are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.core.spec import Spec, stem, walk
from llmfactory.model.attention.spec import AttentionSpec, MultiHeadSpec
from llmfactory.model.count import parameters
from llmfactory.model.ffn.spec import FfnSpec, Glu, Moe, MoeSpec, Switch
from llmfactory.model.position.spec import PositionSpec, Rope
from llmfactory.model.spec import ModelSpec, Recurrent
from llmfactory.model.tower_spec import TowerSpec, VisionSpec

COLUMNS = {
    "preset": "",
    "category": "",
    "norm": "",
    "its place": "",
    "position": "",
    "activation": "",
    "bias": "",
    "layers": "r",
    "heads": "r",
    "width": "r",
    "hidden": "r",
    "context": "r",
    "parameters": "r",
}
"""Columns of the table; `r`: numbers, to the right."""
PAGE = """\
# Architectures

Made by `llmfactory stage=describe stage.presets=true`; a test compares this page with what that prints.

- its place: the wiring of a block, or of a recurrent model what mixes the tokens; `+ embedding`: the embeddings are normalized too.
- position: `rope 10000`: rotary with that base.
- activation: of the feed-forward part; `gated`: a gated linear unit; `2 of 8`: experts that a token visits.
- bias: of the linear maps; `qkv`: of queries, keys and values alone.
- heads: `32 (8)`: 32 of queries, 8 of keys and values.
- hidden: width of the feed-forward part's hidden layer, of one expert where there are several.
- context: tokens that the model is made for.
- a / b: the stacks of a model, or the layers of a stack, differ.

"""


def architectures() -> str:
    """The page, as Markdown."""
    rows = [list(COLUMNS), [":--" if side != "r" else "--:" for side in COLUMNS.values()]]
    for preset in options("model"):
        rows.append(line(preset, compose_job([f"model={preset}", "stage=describe"]).job.model))
    return PAGE + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def line(preset: str, model: ModelSpec) -> list[str]:
    """Cells of a preset."""
    with torch.device("meta"):
        count = parameters(model.build())
    cells = recurrent(model) if isinstance(model, Recurrent) else stacks(model)
    ends = [f"{model.max_positions:,}", f"{count:,}"]
    return [preset, model.graph.replace("_", "-"), *(either(values) for values in cells), *ends]


def stacks(model: ModelSpec) -> list[list[object]]:
    """Values of the columns from `norm` to `hidden`, of each stack or of each layer of them; no values: there is no stack."""
    towers = [part for _, part in walk(model) if isinstance(part, TowerSpec)]
    kinds = [kind for tower in towers for kind in tower.kinds()]
    return [
        [stem(type(tower.norm)) for tower in towers],
        [wiring(model, tower) for tower in towers],
        [position(tower.position) for tower in towers],
        [activation(kind.ffn) for kind in kinds],
        [bias(kind.attention, kind.ffn) for kind in kinds],
        [tower.n_layers for tower in towers],
        [heads(kind.attention) for kind in kinds],
        [model.dim, *(tower.dim for tower in towers if isinstance(tower, VisionSpec))],
        [kind.ffn.hidden for kind in kinds],
    ]


def recurrent(model: Recurrent) -> list[list[object]]:
    """The same of a stack of mixers, which have neither wirings nor positions."""
    mixer, ffns = model.mixer, [] if model.ffn is None else [model.ffn]
    biased = [name for name, part in (("mixer", mixer), ("feed-forward", model.ffn)) if getattr(part, "bias", False)]
    return [
        [stem(type(model.norm))],
        [stem(type(mixer))],
        [],
        [activation(ffn) for ffn in ffns],
        [{0: "no", 1 + len(ffns): "yes"}.get(len(biased), ", ".join(biased))],
        [model.n_layers],
        [getattr(mixer, "n_heads", "-")],
        [model.dim],
        [ffn.hidden for ffn in ffns],
    ]


def either(values: Iterable[object]) -> str:
    """Different values, in order; a dash where there are none."""
    return " / ".join(dict.fromkeys(map(str, values))) or "-"


def wiring(model: ModelSpec, tower: TowerSpec) -> str:
    normed = getattr(tower, "embedding_norm", getattr(model, "embedding_norm", False))
    return stem(type(tower.block)) + (" + embedding" if normed else "")


def position(part: PositionSpec) -> str:
    if not isinstance(part, Rope):
        return stem(type(part))
    share = "" if part.share == 1 else f" of {part.share:.0%}"
    scaled = "" if stem(type(part.scaling)) == "none" else f", {stem(type(part.scaling))}"
    return f"rope {part.theta:.0f}{share}{scaled}"


def activation(ffn: FfnSpec) -> str:
    return ", ".join(_activation(ffn))


def _activation(ffn: FfnSpec) -> Iterator[str]:
    kind = getattr(ffn, "activation", None)
    if isinstance(kind, Enum):
        yield kind.name
    if isinstance(ffn, Glu) or (isinstance(ffn, MoeSpec) and ffn.gated):
        yield "gated"
    if isinstance(ffn, Moe):
        yield f"{ffn.k} of {ffn.n_experts}" + (" + shared" if ffn.shared_hidden else "")
    if isinstance(ffn, Switch):
        yield f"1 of {ffn.n_experts}"


def bias(attention: AttentionSpec, ffn: FfnSpec) -> str:
    """Which linear maps of a layer have one."""
    inner, outer = _biases(attention)
    found = [name for name, there in (("qkv", inner), ("output", outer), ("feed-forward", getattr(ffn, "bias", False))) if there]
    return {0: "no", 3: "yes"}.get(len(found), ", ".join(found))


def _biases(attention: Spec) -> tuple[bool, bool]:
    """Of queries, keys and values; of the output."""
    if isinstance(attention, MultiHeadSpec):
        return attention.qkv_biased, attention.bias
    both = bool(getattr(attention, "bias", False))
    return both, both


def heads(attention: AttentionSpec) -> str:
    shared = getattr(attention, "n_kv_heads", None)
    return f"{attention.n_heads}" if shared in (None, attention.n_heads) else f"{attention.n_heads} ({shared})"
