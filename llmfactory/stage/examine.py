"""What trained models make of the same held-out records, one by one, and how sure the differences between them are.

| records | measure | of a record |
|---|---|---|
| conversations | `log_likelihood` | of its answers, in nats per token (sum over sum) |
| pairs, rankings | `choice` | 1 where the best answer has the highest mean log-likelihood per token, 1/2 and less where several have |
| the same, of a reward model | `ranked` | 1 where the best answer has the highest reward |
| with `judge` | `reward` | of an answer that the model draws |
| | `kl` | log p(answer) under the model less that under the first one, in nats |
| | `tokens` | of the answer |

Every figure has a bootstrap interval over records (metric/bootstrap.py); those of differences are paired. What each record gave lies
in `items.npz`, so that the intervals of several seeds can be taken together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmfactory.config.saved import saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.form.spec import Chat, Ranking
from llmfactory.data.pack.spec import Document
from llmfactory.data.spec import DocumentsSpec
from llmfactory.inference.sampler import Sampling
from llmfactory.metric.bootstrap import Interval, interval, paired
from llmfactory.model.head.pooling import pooled
from llmfactory.model.head.spec import Pooling
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.answers import log_probs
from llmfactory.objective.answers import tokens as count_tokens
from llmfactory.objective.objective import Outputs
from llmfactory.objective.spec import answers_of
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.stage.initial import checkpoint_of, load_model, load_tokenizer
from llmfactory.stage.job import StageJob
from llmfactory.stage.line_spec import Examine
from llmfactory.stage.rollout import Asked, Written, laid_out, write
from llmfactory.stage.rows import read_data

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.rows import Rows
    from llmfactory.data.prepared import Prepared
    from llmfactory.model.skeleton import Skeleton

ITEMS = "items.npz"
FIRST = "init"
"""Name of the model of `init` among those that are measured."""
Float = NDArray[np.float64]


@dataclass(slots=True)
class Measured:
    """Of one model: a value for each record, and what the sum of values is divided by the sum of."""

    values: dict[str, Float] = field(default_factory=dict)
    """[N] by measure."""
    over: dict[str, Float] = field(default_factory=dict)

    def add(self, measure: str, values: Sequence[float] | Float, over: Sequence[float] | Float | None = None) -> None:
        self.values[measure] = np.asarray(values, np.float64)
        self.over[measure] = np.ones_like(self.values[measure]) if over is None else np.asarray(over, np.float64)


class ExamineJob(StageJob):
    """One process measures all models, one after the other."""

    def __init__(self, spec: Examine) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        spec = self.spec
        assert folder is not None
        assert isinstance(job.data, DocumentsSpec)
        places = {FIRST: checkpoint_of(job, "examining"), **{name: _found(job, at) for name, at in spec.against.items()}}
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            data = read_data(job, places[FIRST], ())
            rows, answers = _rows(job.data, data), _answers(job.data)  # type: ignore[arg-type]
            count = min(len(rows), spec.most or len(rows))
            if not count:
                raise UserError("no record is held out, so there is none to examine: data.held_out=0.2")
            models = {name: _load(job, checkpoint, world, data) for name, checkpoint in places.items()}
            found: dict[str, Measured] = {}
            for name, model in models.items():
                found[name] = of_records(model, rows, count, answers, spec.batch_size)
            texts: list[dict[str, Any]] = []
            if spec.judge is not None or spec.samples:
                judge = None if spec.judge is None else _load(job, _found(job, spec.judge), world, data, "scalar")
                texts = self._answered(job, models, judge, rows, count, data, found)  # type: ignore[arg-type]
        if world.rank == 0:
            save(folder / ITEMS, found)
        return {"records": count, "measures": intervals([found]), "samples": texts, "checkpoint": str(places[FIRST])}

    def _answered(
        self,
        job: Job,
        models: Mapping[str, Skeleton],
        judge: Skeleton | None,
        rows: Rows,
        count: int,
        data: Prepared,
        found: dict[str, Measured],
    ) -> list[dict[str, Any]]:
        """Adds measures of answers that the models draw; a few of them, to show."""
        spec, tokenizer = self.spec, data.tokenizer
        to_show = spread(count, spec.samples)
        places = range(count) if judge is not None else to_show
        asked = [_asked(rows, place) for place in places]
        stops = frozenset({tokenizer.end_id, *tokenizer.usage.stop_ids})
        shown = [
            {
                "prompt": tokenizer.decode([token for token in one.tokens if token not in stops]),
                "reference": tokenizer.decode(one.record["answer"]),
            }
            for one in asked
            if one.number in to_show
        ]
        for name, model in models.items():
            if answers_of(model.spec) != "tokens":
                raise UserError(
                    f"{name} answers with {answers_of(model.spec)}, so it writes nothing: leave out judge and samples"
                )
            written = write(
                model,
                asked,
                1,
                max_tokens=spec.max_tokens,
                sampling=Sampling(temperature=spec.temperature),
                vocab_size=tokenizer.vocab_size,
                stop_ids=stops,
                seed=job.seed,
            )
            answered = [text for one, text in zip(asked, written, strict=True) if one.number in to_show]
            for one, text in zip(shown, answered, strict=True):
                one[name] = tokenizer.decode([token for token in text.tokens if token not in stops]).strip()
            if judge is None:
                continue
            batch = laid_out([one.tokens for one in asked], written, tokenizer.end_id)
            own, first = (_sums(one, batch, spec.batch_size) for one in (model, models[FIRST]))
            rewards = _scored(judge, _read(asked, written, tokenizer.end_id), spec.batch_size)
            found[name].add("reward", rewards)
            found[name].add("kl", own - first)
            found[name].add("tokens", (batch["labels"] != IGNORE).sum(1).tolist())
            for one, reward in zip(shown, rewards[list(to_show)].tolist(), strict=True):
                one[f"{name}: reward"] = reward
        return shown


def spread(count: int, most: int) -> range:
    """Numbers of so many records, evenly spread over all."""
    return range(0, count, max(1, count // most))[:most] if most else range(0)


def _found(job: Job, at: str) -> Path:
    return checkpoint_of(replace(job, init=at), "examining")


def _load(job: Job, checkpoint: Path, world: World, data: Any, answers: str | None = None) -> Skeleton:
    """The model of a checkpoint; it must read with the tokenizer of the first."""
    spec = saved_spec(checkpoint, ModelSpec, "model")
    if answers is not None and spec is not None and answers_of(spec) != answers:
        raise UserError(f"{checkpoint} answers with {answers_of(spec)}, so it gives no reward: name a run of stage=reward")
    own = job if spec is None else replace(job, model=spec)
    tokenizer = load_tokenizer(checkpoint, own.model.vocab_size)
    probe = "def get_param(self): the Quick brown fox, 12.5 times"
    if (tokenizer.vocab_size, tokenizer.encode(probe)) != (data.tokenizer.vocab_size, data.tokenizer.encode(probe)):
        raise UserError(f"{checkpoint} reads with another tokenizer than {job.init}, so that their figures cannot be compared")
    return load_model(own, checkpoint, job.precision.build(world.device.type), world)


def _rows(spec: DocumentsSpec, data: Prepared) -> Rows:
    """A held-out record a row."""
    if len(data.sources) > 1:
        raise UserError(f"records of one source are examined, and data has {', '.join(data.sources)}: choose one of them")
    (tokens,) = (source.held_out for source in data.sources.values())
    form = spec.form.build()
    width = max(spec.seq_len, spec.seq_len * _answers(spec))
    return form.rows(Document(), tokens, width)


def _answers(spec: DocumentsSpec) -> int:
    """Answers of a record at most."""
    if isinstance(spec.form, Chat):
        return 1
    return spec.form.most if isinstance(spec.form, Ranking) else 2


def batches(rows: Rows, count: int, size: int) -> Iterator[Batch]:
    """The first rows, in order, no wider than they must be."""
    for start in range(0, count, size):
        batch = rows.read(np.arange(start, min(count, start + size)))
        width = int((batch["segments"] > 0).any(0).nonzero().max()) + 1
        yield {
            name: field[:, :width] if field.dim() > 1 and field.shape[1] == rows.seq_len else field
            for name, field in batch.items()
        }


@torch.no_grad()
def of_records(model: Skeleton, rows: Rows, count: int, answers: int, size: int) -> Measured:
    """What the model makes of the records as they are."""
    found = Measured()
    judges = answers_of(model.spec) == "scalar"
    values, over = [], []
    for batch in batches(rows, count, size):
        batch = {name: field.to(model.head.weight.device) for name, field in batch.items()}
        counts_BK = count_tokens(batch, answers)
        if judges:
            scores_BK = rewards(model, batch, answers)
        else:
            outputs = Outputs(model(batch["tokens"], model.context(batch, isolated=True)), model.head)
            scores_BK = log_probs(outputs, batch, answers).double()
        if answers > 1:
            mean_BK = scores_BK if judges else scores_BK / counts_BK
            values += best_first(mean_BK, counts_BK > 0).tolist()
        else:
            values += scores_BK[:, 0].tolist()
            over += counts_BK[:, 0].tolist()
    if answers > 1:
        found.add("ranked" if judges else "choice", values)
    else:
        found.add("reward" if judges else "log_likelihood", values, None if judges else over)
    return found


def best_first(scores_BK: Tensor, there_BK: Tensor) -> Tensor:
    """[B], 1 where the first answer has the highest score; where k share it, 1/k of that."""
    scores_BK = scores_BK.masked_fill(~there_BK, -torch.inf)
    highest_BK = scores_BK == scores_BK.max(1, keepdim=True).values
    return highest_BK[:, 0].double() / highest_BK.sum(1)


def rewards(model: Skeleton, batch: Batch, answers: int) -> Tensor:
    """[B, K], the number of each answer's last token, whatever the head says elsewhere."""
    hidden_BTD = model(batch["tokens"], model.context(batch, isolated=True))
    vectors_BKD = model.head.pool(hidden_BTD, batch["segments"], answers)
    if vectors_BKD.shape[1] != answers or vectors_BKD is hidden_BTD:
        vectors_BKD = pooled(hidden_BTD, batch["segments"], answers, Pooling.last)
    found: Tensor = model.head(vectors_BKD)[..., 0].double()
    return found


def _asked(rows: Rows, place: int) -> Asked:
    """The prompt of a record, and its (best) answer beside it."""
    batch = rows.read(np.array([place]))
    tokens, labels = batch["tokens"][0], batch["labels"][0].where(batch["segments"][0] == 1, IGNORE)
    learned = (labels != IGNORE).nonzero()[:, 0]
    begin = int(learned[0])
    return Asked(place, tokens[: begin + 1].tolist(), [], {"answer": labels[learned].tolist()})


@torch.no_grad()
def _sums(model: Skeleton, batch: Batch, size: int) -> Float:
    """[N], log-likelihood of each answer."""
    found = []
    for piece in _pieces(batch, size):
        outputs = Outputs(model(piece["tokens"], model.context(piece, isolated=False)), model.head)
        found.append(log_probs(outputs, piece, 1)[:, 0].double())
    return torch.cat(found).cpu().numpy()


def _read(asked: Sequence[Asked], written: Sequence[Written], end_id: int) -> Batch:
    """Prompts with all of their answers, the token that ends a turn among it but not the end of the stream: as in training."""
    wholes = [one.tokens if one.tokens[-1:] == [end_id] else [*one.tokens, end_id] for one in written]
    return laid_out([one.tokens for one in asked], [Written(tokens, True) for tokens in wholes], end_id)


@torch.no_grad()
def _scored(judge: Skeleton, batch: Batch, size: int) -> Float:
    """[N], reward of each answer."""
    return torch.cat([rewards(judge, piece, 1)[:, 0] for piece in _pieces(batch, size)]).cpu().numpy()


def _pieces(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch["tokens"]), size):
        piece = {name: field[start : start + size] for name, field in batch.items()}
        width = int(piece["segments"].sum(1).max())
        yield {name: field[:, :width] for name, field in piece.items()}


def save(path: Path, found: Mapping[str, Measured]) -> None:
    arrays = {
        f"{name}/{measure}/{part}": getattr(one, part)[measure]
        for name, one in found.items()
        for measure in one.values
        for part in ("values", "over")
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> dict[str, Measured]:
    """As saved. Raises UserError."""
    found: dict[str, Measured] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                name, measure, part = key.split("/")
                getattr(found.setdefault(name, Measured()), part)[measure] = arrays[key]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return found


def intervals(seeds: Sequence[Mapping[str, Measured]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By measure and model, the mean; by `<model> - init` the difference. Over the same records of all seeds.

    Models that another seed does not have, or that measured other records, are an error: they cannot be taken together.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, measured in seeds[0].items():
        for measure in measured.values:

            def stacked(who: str, part: str, measure: str = measure) -> Float:
                return np.stack([getattr(one[who], part)[measure] for one in seeds])

            over = stacked(name, "over")
            found.setdefault(measure, {})[name] = interval(stacked(name, "values"), over).plain()
            if name != FIRST and measure in seeds[0][FIRST].values:
                difference: Interval = paired(stacked(FIRST, "values"), stacked(name, "values"), over)
                found[measure][f"{name} - {FIRST}"] = difference.plain()
    return found
