"""The sample at the end of a training: what the model writes behind the first words of a held-out document, or its answer to the
question of a held-out conversation, put to it exactly as it was in training."""

from __future__ import annotations

from llmfactory.config.spec import Job
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.form.spec import RecordSpec
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.prepared import Prepared
from llmfactory.data.spec import DocumentsSpec
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import Sampling
from llmfactory.model.skeleton import Skeleton
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.stage.spec import TrainingSpec

SAMPLE = Sampling(temperature=0.5, top_k=50)
"""How the sample is drawn: cooler than stage=generate does by default, because a short look should show what was learned."""
SAMPLE_TOKENS = 200
"""Longest sample."""
PROMPT_WORDS = 8
"""Words of a held-out document that the sample begins with."""


def sample(job: Job, model: Skeleton, data: Prepared, precision: MeshPrecision) -> dict[str, str] | None:
    """What it was asked, and what it wrote; None: every held-out question takes more than half of the model's positions."""
    assert isinstance(job.stage, TrainingSpec)
    tokenizer, room = data.tokenizer, job.model.max_positions
    prompt = prompt_ids(job, data, max(1, room // 2))  # leave half of the row to the sample
    if prompt is None:
        return None
    objective = job.stage.trained(job)
    asked, end_id = objective.prompt(prompt, Vocabulary(job.model.vocab_size, tokenizer))
    with precision.forward_context():
        tokens = generate(
            model,
            [asked],
            max_tokens=min(SAMPLE_TOKENS, room + 1 - len(asked)),
            sampling=SAMPLE,
            end_id=end_id,
            reading=objective.reading,
            vocab_size=tokenizer.vocab_size,
            seed=job.seed,
            on_token=lambda _, token: token in tokenizer.usage.stop_ids,
        )[0]
    written = [token for token in tokens if token not in tokenizer.usage.stop_ids]  # an answer's end, if it came
    return {"prompt": tokenizer.decode(prompt), "text": tokenizer.decode(written)}


def prompt_ids(job: Job, data: Prepared, most: int) -> list[int] | None:
    """The tokens that the sample goes on from, at most so many; a text's first words behind the end that every text stands behind."""
    assert isinstance(job.stage, TrainingSpec)
    tokenizer, text = data.tokenizer, job.stage.sample_prompt
    if isinstance(job.data, DocumentsSpec) and isinstance(job.data.form, RecordSpec):
        if text is None:
            return question(data, most)
        system = job.data.form.system
        messages = [] if system is None else [{"role": "system", "content": system}]
        ids = chat_ids(tokenizer, [*messages, {"role": "user", "content": text}])
        return ids if len(ids) <= most else None
    text = first_words(data) if text is None else text
    return [tokenizer.end_id, *tokenizer.encode(text)][:most]


def question(data: Prepared, most: int) -> list[int] | None:
    """A held-out conversation up to its first token that is learned: the first that is short enough, from the one in the middle on."""
    parts = [source.held_out for source in data.sources.values()]
    places = [(part, number) for part in parts for number in range(part.documents)]
    middle = len(places) // 2
    for part, number in [*places[middle:], *places[:middle]]:
        start, stop = int(part.offsets[number]) + 1, int(part.offsets[number + 1])
        learned = part.mask[start : stop + 1] if part.mask is not None else None
        size = int(learned.argmax()) if learned is not None else 0  # 0 too where nothing is learned
        if 0 < size < most:
            return part.document(number)[:size]
    return None


def first_words(data: Prepared) -> str:
    """Of the held-out document in the middle, white space kept; nothing if there is none."""
    count = data.counts["held_out"]["documents"]
    if not count:
        return ""
    text = data.held_out_text(count // 2)
    words = text.split(None, PROMPT_WORDS)
    return text[: len(text) - len(words[PROMPT_WORDS])].rstrip() if len(words) > PROMPT_WORDS else text
