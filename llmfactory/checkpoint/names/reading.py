"""What families share in reading and writing a `config.json`: checks that say which key has no counterpart."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from llmfactory.checkpoint.names.family import Config, Inexpressible
from llmfactory.core.errors import UserError
from llmfactory.core.spec import Spec, stem
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.spec import DecoderOnly, ModelSpec

S = TypeVar("S", bound=Spec)

ACTIVATIONS = {
    "gelu_new": Activation.gelu_tanh,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
    "gelu_fast": Activation.gelu_tanh,
    "gelu": Activation.gelu,
    "relu": Activation.relu,
    "silu": Activation.silu,
    "swish": Activation.silu,
    "relu2": Activation.relu2,
    "quick_gelu": Activation.quick_gelu,
    "tanh": Activation.tanh,
}
"""Their names; of several, the first is written."""


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise UserError(f"the activation {name!r} has no counterpart here: there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_name(activation: Activation) -> str:
    return next(name for name, ours in ACTIVATIONS.items() if ours is activation)


def refuse(config: Config, **neutral: Any) -> None:
    """Keys whose other values we have no part for: each must be absent, None or `neutral`."""
    for key, value in neutral.items():
        if config.get(key) not in (None, value):
            raise UserError(f"{key}={config[key]!r} in config.json has no counterpart here (only {value!r})")


def wanted(spec: Spec, cls: type[S], **parts: type[Spec]) -> S:
    """The spec as a class that the family knows, with parts of these classes."""
    if type(spec) is not cls:
        raise Inexpressible(f"its skeleton is {stem(type(spec))}, not {stem(cls)}")
    for name, kind in parts.items():
        expect(getattr(spec, name), kind)
    return spec


def expect(part: Spec, cls: type[S], **values: Any) -> S:
    """A part as the class that the family knows; a tuple of values means any of them."""
    if type(part) is not cls:
        raise Inexpressible(f"it has {stem(type(part))} where this family has {stem(cls)}")
    for name, value in values.items():
        found = getattr(part, name)
        if found not in (value if isinstance(value, tuple) else (value,)):
            raise Inexpressible(f"{stem(cls)} has {name}={found!r}, which this family cannot say")
    return part


def defaults(part: Spec, *besides: str) -> None:
    """Every field but `besides` must have its default: what a family has no key for. Fields without default are not looked at."""
    for field in dataclasses.fields(part):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        found = getattr(part, field.name)
        if field.name not in besides and default is not dataclasses.MISSING and found != default:
            raise Inexpressible(f"{stem(type(part))} has {field.name}={found!r}, which this family cannot say")


def said(part: Spec, cls: type[S], *keys: str, **values: Any) -> S:
    """A part as the class that the family knows, which has words for the fields `keys`: others have these values or defaults."""
    found = expect(part, cls, **values)
    defaults(found, "dropout", *keys, *values)
    return found


def decoder(spec: ModelSpec, *besides: str, **parts: type[Spec]) -> DecoderOnly:
    """A decoder with these classes of parts and no field off its default but `besides`. How it was trained is no matter."""
    model = wanted(spec, DecoderOnly, **parts)
    defaults(model, "init_std", "dropout", "depth_scaled_init", *besides)
    return model


def head_width(dim: int, n_heads: int, width: int | None) -> int | None:
    """`Gqa.head_dim` of a config that may say the usual width as a number."""
    return None if width is None or width * n_heads == dim else width
