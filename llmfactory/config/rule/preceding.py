"""Rules about what a method puts before each text or between the layers: virtual tokens, trained keys and values, adapters."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.rule.context import whole_rows
from llmfactory.config.rule.degrees import degrees_of
from llmfactory.config.rule.pipeline import no_pipeline
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem, walk
from llmfactory.data.form.spec import RecordSpec
from llmfactory.data.spec import DocumentsSpec
from llmfactory.model.attention.spec import AttentionSpec
from llmfactory.model.ffn.spec import MoeSpec
from llmfactory.model.position.spec import Learned, Learned2d
from llmfactory.model.spec import EncoderDecoder, NeuralNgram, TowerSpec
from llmfactory.parallel.spec import Mesh
from llmfactory.peft.spec import Adapter, InLayersSpec, PrecedingSpec
from llmfactory.stage.spec import Embed, Export, Generate, TrainingSpec


def what_precedes_leaves_room(job: Job) -> Iterator[Problem]:
    """There are only so many learned positions, and a document may fill a row."""
    peft = job.peft
    if not isinstance(peft, PrecedingSpec) or isinstance(job.stage, (Generate, Export, Embed)):
        return
    longest, room = job.model.max_positions, job.model.max_positions - peft.tokens
    learned = any(isinstance(part, (Learned, Learned2d)) for part in _positions(job))
    if not learned or not job.data.seq_len > room or job.data.seq_len > longest:  # another rule says the latter
        return
    reason = f"with peft.tokens={peft.tokens} before it, a row of data.seq_len={job.data.seq_len} is longer than the {longest}"
    reason += " learned positions (model.max_positions)"
    if room < 1:
        yield Problem("peft.tokens", peft.tokens, reason, f"peft.tokens=1 data.seq_len={max(1, longest - 1)}")
        return
    form = job.data.form if isinstance(job.data, DocumentsSpec) else None
    shorter = isinstance(form, RecordSpec) and form.max_tokens is not None and form.max_tokens > room
    repair = f"data.seq_len={room}" + (f" data.form.max_tokens={room}" if shorter else "")
    yield Problem("peft.tokens", peft.tokens, reason, repair)


def _positions(job: Job) -> list[object]:
    """Of the stacks that read what is put before a text."""
    model, peft = job.model, job.peft
    if isinstance(model, EncoderDecoder):
        read = [model.encoder] if not isinstance(peft, InLayersSpec) else [model.decoder, *([model.encoder] * peft.encoder)]
        return [side.position for side in read]
    return [model.position] if isinstance(model, TowerSpec) else []


def what_precedes_stands_on_every_process(job: Job) -> Iterator[Problem]:
    """It has no place in a row that is cut, and goes before a whole model, not before a stage of it."""
    peft, layout, degrees = job.peft, job.parallel, degrees_of(job)
    if not isinstance(peft, PrecedingSpec) or not isinstance(layout, Mesh) or not isinstance(job.stage, TrainingSpec):
        return
    name = stem(type(peft))
    if degrees["cp"] > 1:
        reason = f"what peft={name} puts before each document has no place in pieces of rows"
        yield Problem("parallel.cp", degrees["cp"], reason, whole_rows(job))
    elif degrees["pp"] > 1:
        reason = f"what peft={name} puts before each document goes before the whole model, and not before a stage of it"
        yield Problem("parallel.pp", degrees["pp"], reason, no_pipeline(job, layout))
    elif layout.sequence_parallel and not isinstance(peft, InLayersSpec):
        reason = f"the virtual tokens of peft={name} make rows longer, by which they cannot be cut evenly any more"
        yield Problem("parallel.sequence_parallel", True, reason, "parallel.sequence_parallel=false")


def virtual_tokens_are_not_compiled(job: Job) -> Iterator[Problem]:
    peft = job.peft
    if isinstance(peft, PrecedingSpec) and not isinstance(peft, InLayersSpec) and job.trainer.compile:
        reason = f"how long rows become with the virtual tokens of peft={stem(type(peft))} depends on their documents"
        yield Problem("trainer.compile", True, reason, "trainer.compile=false")


def virtual_tokens_are_in_no_balance(job: Job) -> Iterator[Problem]:
    """The balance of experts is a mean over the tokens of the text; routers would see the virtual ones too."""
    peft = job.peft
    if not isinstance(peft, PrecedingSpec) or isinstance(peft, InLayersSpec) or not isinstance(job.stage, TrainingSpec):
        return
    if any(isinstance(part, MoeSpec) and part.balance for _, part in walk(job.model, "model")):
        reason = "experts are balanced over the tokens of the text, and would be given the virtual ones besides"
        yield Problem("peft", stem(type(peft)), reason, "peft=p_tuning_v2")


def methods_have_a_place_in_the_model(job: Job) -> Iterator[Problem]:
    """What stands in blocks needs blocks, and keys and values need an attention that looks at keys alone."""
    peft, name = job.peft, stem(type(job.peft))
    if not isinstance(peft, (PrecedingSpec, Adapter)) or job.model.graph == "counts":  # of which another rule speaks
        return
    if job.model.graph == "words":
        yield Problem("peft", name, "the model is two tables of vectors, with no texts to read and no blocks", "peft=none")
    elif isinstance(peft, Adapter) and isinstance(job.model, NeuralNgram):
        yield Problem("peft", name, "the model has no blocks that adapters could stand in", "peft=prompt")
    elif isinstance(peft, InLayersSpec):
        if job.model.graph == "recurrent":
            yield Problem("peft", name, "the model has no keys and values to put others before", "peft=prompt")
        elif any(isinstance(part, AttentionSpec) and part.takes_distances for _, part in walk(job.model)):
            reason = "its attention scores distances in the row, and keys that stand before every document have none"
            yield Problem("peft", name, reason, "peft=prompt")


def there_is_an_encoder(job: Job) -> Iterator[Problem]:
    if isinstance(job.peft, InLayersSpec) and job.model.graph != "encoder_decoder":
        for key in ("encoder", "cross"):
            if getattr(job.peft, key):
                yield Problem(f"peft.{key}", True, "says nothing: the model is no encoder-decoder", f"peft.{key}=false")
