"""Rules about what follows a model's width."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import stem
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.embedding.spec import Token, TokenSegment
from llmfactory.model.head.spec import Lm, Scalar
from llmfactory.model.spec import DecoderOnly, EncoderOnly, ModelSpec
from llmfactory.optim.spec import Adam, Adamw, Adamw8bit, Lion, ScheduleFree
from llmfactory.optim.width.spec import Mup
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.peft.spec import AdapterSpec
from llmfactory.stage.spec import TrainingSpec

NUMBER_BY_NUMBER = (Adamw, Adamw8bit, Lion, ScheduleFree)
"""Optimizers whose steps do not depend on the size of a gradient. So are Adam's, unless decay is a part of the gradient."""


def widths_are_scaled_for_steps_like_adams(job: Job) -> Iterator[Problem]:
    if not isinstance(job.optim.width, Mup) or not isinstance(job.stage, TrainingSpec):
        return
    if isinstance(job.optim, Adam):
        if job.optim.weight_decay > 0 or job.optim.weight_decays:
            reason = "decay that is added to gradients does not follow the width as they do (optim=adamw keeps them apart)"
            yield Problem("optim.weight_decay", job.optim.weight_decay, reason, "optim.weight_decay=0 optim.weight_decays={}")
    elif not isinstance(job.optim, NUMBER_BY_NUMBER):
        reason = f"optim/width=mup knows the rates of steps like Adam's, and not those of optim={stem(type(job.optim))}"
        yield Problem("optim", stem(type(job.optim)), reason, "optim=adamw")


def widths_are_scaled_where_that_is_known(job: Job) -> Iterator[Problem]:
    """Whole models of one stack of attention and feed-forward parts, whose products all say what they sum over."""
    if not isinstance(job.optim.width, Mup) or not isinstance(job.stage, TrainingSpec):
        return
    if isinstance(job.peft, AdapterSpec):
        reason = f"nothing says at which rates what peft={stem(type(job.peft))} adds learns at another width"
        yield Problem("peft", stem(type(job.peft)), reason, "peft=none")
    elif isinstance(job.parallel, DeepSpeed):
        reason = "nothing shows that DeepSpeed's engine makes the same steps with groups of parameters; our own layouts do"
        yield Problem("parallel", f"deepspeed_zero{job.parallel.stage}", reason, f"parallel=zero{job.parallel.stage}")
    elif (unknown := _unknown(job.model)) is not None:
        key, value, repair = unknown
        reason = "how it follows the width of a model is not known to optim/width=mup"
        yield Problem(key, value, reason, repair)


def _unknown(model: ModelSpec) -> tuple[str, str, str] | None:
    """Key and name of what the table has no line for, and what it knows."""
    if type(model) not in (DecoderOnly, EncoderOnly):
        return "model", stem(type(model)), "model=llama_tiny"
    assert isinstance(model, (DecoderOnly, EncoderOnly))
    if model.pattern:
        return "model.pattern", str(model.pattern), "model.pattern=[] model.others={}"
    if type(model.attention) is not Gqa:
        return "model.attention", stem(type(model.attention)), "model/attention=gqa"
    if type(model.head) not in (Lm, Scalar) or (isinstance(model.head, Lm) and model.head.dim_power != 0):
        return "model.head", stem(type(model.head)), "model/head=lm"
    embedding = model.embedding
    if type(embedding) not in (Token, TokenSegment) or (isinstance(embedding, Token) and embedding.dim_power != 0):
        return "model.embedding", stem(type(embedding)), "model/embedding=token"
    return None


def a_width_has_a_base(job: Job) -> Iterator[Problem]:
    """A narrow model with the same keys but for some numbers; attention scores and borrowed heads shrink as the model grows."""
    width, model = job.optim.width, job.model
    if not isinstance(width, Mup) or not isinstance(job.stage, TrainingSpec) or _unknown(model):
        return
    assert isinstance(model, (DecoderOnly, EncoderOnly))
    try:
        base = width.model(model)
    except KeyError as error:
        yield Problem("optim.width.base", width.base, f"{error.args[0]} is no number of this model")
        return
    except ConfigError as error:
        reason = f"there is no such model: {error.problems[0].reason}"
        same = {"dim": model.dim, "attention.n_heads": model.attention.n_heads}
        shown = ",".join(f"{key}:{value}" for key, value in same.items())
        yield Problem("optim.width.base", width.base, reason, f"optim.width.base={{{shown}}}")
        return
    assert isinstance(base, (DecoderOnly, EncoderOnly))
    assert isinstance(model.attention, Gqa)
    head, narrow = model.attention.head_width(model.dim), base.attention.head_width(base.dim)
    wanted = math.sqrt(narrow) / head
    if head != narrow and not math.isclose(model.attention.scale or head**-0.5, wanted, rel_tol=1e-6):
        reason = f"scores of heads {head} wide, {narrow} in the base, must shrink with the width, not its root (definition 4.1)"
        yield Problem("optim.width.base", width.base, reason, f"model.attention.scale={wanted:.9g}")
    wanted = base.dim / model.dim
    if isinstance(model.head, Lm) and model.head.tied and not math.isclose(model.head.scale, wanted, rel_tol=1e-6):
        reason = "logits of a head that borrows the embedding, which does not shrink, must shrink with the model's width"
        yield Problem("model.head.scale", model.head.scale, reason, f"model.head.scale={wanted:.9g}")
