"""Layers of which some see a window of the text only: `layer_types` and `sliding_window` of a `config.json`, our `pattern`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.reading import expect
from llmfactory.core.errors import UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.spec import BASE, DecoderOnly, LayerSpec

WINDOW, FULL, SLIDING = "window", "full_attention", "sliding_attention"


def windowed(attention: Gqa, kinds: list[str], window: int | None) -> dict[str, Any]:
    """`attention`, `others` and `pattern` of a decoder whose layers are of these kinds: the shortest pattern that repeats."""
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise UserError(f"layer_types in config.json names {', '.join(unknown)}, which have no counterpart here")
    if SLIDING not in kinds:
        return {"attention": attention}
    if window is None:
        raise UserError(f"layer_types in config.json names {SLIDING}, but sliding_window says no width")
    if FULL not in kinds:
        return {"attention": replace(attention, window=window)}
    names = [WINDOW if kind == SLIDING else BASE for kind in kinds]
    period = next(size for size in range(1, len(names) + 1) if all(name == names[i % size] for i, name in enumerate(names)))
    others = {WINDOW: LayerSpec(attention=replace(attention, window=window))}
    return {"attention": attention, "others": others, "pattern": names[:period]}


def layer_types(model: DecoderOnly) -> dict[str, Any]:
    """`layer_types` and `sliding_window` of a decoder. Raises Inexpressible where its layers differ otherwise."""
    width, kinds = None, []
    base = expect(model.attention, Gqa)
    for kind in model.kinds():
        attention = expect(kind.attention, Gqa)
        if kind.ffn != model.ffn or replace(attention, window=None) != replace(base, window=None):
            raise Inexpressible("its layers differ in more than the window of their attention")
        if attention.window is not None and width not in (None, attention.window):
            raise Inexpressible("its layers have windows of several widths")
        width = attention.window or width
        kinds.append(FULL if attention.window is None else SLIDING)
    return {"layer_types": kinds, "sliding_window": width}
