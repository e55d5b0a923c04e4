"""Answer prompts several times and keep the best: `best.jsonl`, conversations that stage=sft data=chat learns from, and `pairs.jsonl`
for stage=preference.

Prompts of similar length are answered together, in batches that are the same for any number of processes; each process takes
every so-manieth of them. A batch that is done stands in `work/`, from where a run that was stopped goes on, as long as nothing that
the answers depend on has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.data.form.record_rows import Prompt, PromptRows
from llmfactory.data.form.spec import Prompts
from llmfactory.data.prepared import Prepared
from llmfactory.data.spec import DocumentsSpec
from llmfactory.inference.sampler import Sampling
from llmfactory.metric.best_of import best_of, ladder, pass_at
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.stage.evaluate import objective_of
from llmfactory.stage.grader.grader import Graders
from llmfactory.stage.initial import checkpoint_of, load_model
from llmfactory.stage.job import StageJob
from llmfactory.stage.judges import content_of
from llmfactory.stage.rejection_spec import Rejection
from llmfactory.stage.rows import read_data
from llmfactory.stage.sampling import Writer, plain

BEST, PAIRS, WORK = "best.jsonl", "pairs.jsonl", "work"
SHOWN = 5
"""Prompts whose answers the report shows."""
CHARACTERS = 300
"""Of a text in the report."""
Found = dict[str, Any]
"""Of a prompt: its `row` and `prompt`, and `answers`, each as `plain` has it."""


class RejectionJob(StageJob):
    def __init__(self, spec: Rejection) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        assert folder is not None  # this stage keeps one
        checkpoint = checkpoint_of(job, "answering prompts")
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            objective = objective_of(checkpoint, job.model).build()
            data = read_data(job, checkpoint, ())
            assert isinstance(data, Prepared)
            prompts = prompts_of(job, data, self.spec)
            graders = Graders.of(self.spec.graders, job, world.device, self.spec.max_tokens)
            graders.check(prompt.record for prompt in prompts)
            work = folder / WORK / key_of(job, checkpoint, data)
            work.mkdir(parents=True, exist_ok=True)
            precision = job.precision.build(world.device.type)
            model = load_model(job, checkpoint, precision, world)
            sampling = Sampling(temperature=self.spec.temperature, top_p=self.spec.top_p)
            chat = isinstance(job.data, DocumentsSpec) and isinstance(job.data.form, Prompts) and job.data.form.chat
            known = (sampling, self.spec.max_tokens, self.spec.stop)
            writer = Writer(job, model, data.tokenizer, objective, chat, *known)
            with precision.forward_context():
                self._answer(writer, prompts, graders, work, world)
            graders.close()
            world.barrier()
            result = self._kept(prompts, work, folder) if world.rank == 0 else {}
            world.barrier()
        if world.rank == 0:
            shutil.rmtree(folder / WORK)
        return {"checkpoint": str(checkpoint), **result}

    def _answer(self, writer: Writer, prompts: Sequence[Prompt], graders: Graders, work: Path, world: World) -> None:
        """Every batch of this process that is not done yet."""
        batches = batched(prompts, self.spec.batch_size)
        mine = range(world.rank, len(batches), world.size)
        left = [number for number in mine if not place(work, number).is_file()]
        for done, number in enumerate(left):
            if world.rank == 0:
                print(f"answering prompts: batch {done + 1} of {len(left)}", flush=True)
            rows = batches[number]
            seed = name_seed(writer.job.seed, f"answers {number}")
            answers = writer.answers([prompts[row] for row in rows], self.spec.samples, seed)
            scored = graders.score([answer for some in answers for answer in some])
            kept = []
            for index, (row, some) in enumerate(zip(rows, answers, strict=True)):
                first = index * self.spec.samples
                grades = [{name: of[first + at] for name, of in scored.by_name.items()} for at in range(len(some))]
                rewards = scored.rewards[first : first + len(some)]
                found = [plain(*one) for one in zip(some, rewards, grades, strict=True)]
                kept.append({"row": row, "answers": found})
            write(place(work, number), [{"prompts": kept, "failures": scored.failures}])

    def _kept(self, prompts: Sequence[Prompt], work: Path, folder: Path) -> dict[str, Any]:
        """The files, and what is told of all answers."""
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.iterdir()) if path.suffix == ".json"]
        found = sorted((one for part in parts for one in part["prompts"]), key=lambda one: int(one["row"]))
        failures: Counter[str] = Counter()
        for part in parts:
            failures.update(part["failures"])
        best, pairs = [], []
        for one in found:
            messages = prompts[one["row"]].messages
            for answer in self.chosen(one["answers"]):
                best.append({"messages": [*messages, said(answer)], "reward": answer["reward"]})
            pairs += self.pair(messages, one["answers"]) if self.spec.pairs else []
        write(folder / BEST, best)
        if self.spec.pairs:
            write(folder / PAIRS, pairs)
        files = {"best": str(folder / BEST), **({"pairs": str(folder / PAIRS)} if self.spec.pairs else {})}
        counts = {"kept": len(best), **({"kept_pairs": len(pairs)} if self.spec.pairs else {}), "files": files}
        return {**told(found, self.spec, prompts), **counts, "failures": dict(failures.most_common())}

    def fit(self, answer: dict[str, Any]) -> bool:
        """Whether it may be learned from: it says something, and it ends."""
        return bool(answer["text"].strip()) and (answer["ended"] or self.spec.unfinished)

    def chosen(self, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are kept of the answers to a prompt: the best, the earlier of equal ones, no text twice."""
        ranked = sorted(filter(self.fit, answers), key=lambda one: -one["reward"])
        good = [one for one in ranked if self.spec.threshold is None or one["reward"] >= self.spec.threshold]
        different = {one["text"]: one for one in reversed(good)}
        return [one for one in good if different[one["text"]] is one][: self.spec.most]

    def pair(self, messages: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The best answer and the worst, where one is better than the other."""
        ranked = sorted(filter(self.fit, answers), key=lambda one: -one["reward"])
        if not ranked or ranked[0]["reward"] == ranked[-1]["reward"] or ranked[0]["text"] == ranked[-1]["text"]:
            return []
        if self.spec.threshold is not None and ranked[0]["reward"] < self.spec.threshold:
            return []
        sides = {"chosen": [said(ranked[0])], "rejected": [said(ranked[-1])]}
        return [{"prompt": list(messages), **sides, "score_chosen": ranked[0]["reward"], "score_rejected": ranked[-1]["reward"]}]


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as a message; templates put blanks around it themselves."""
    return {"role": "assistant", "content": answer["text"].strip()}


def prompts_of(job: Job, data: Prepared, spec: Rejection) -> list[Prompt]:
    """Those that are answered, of all sources. Raises UserError where there are none."""
    assert isinstance(job.data, DocumentsSpec)
    form, found = job.data.form.build(), []
    for source in data.sources.values():
        rows = form.rows(job.data.pack, source.part(spec.share.name), job.data.seq_len)
        assert isinstance(rows, PromptRows)
        found += [rows.prompt(number) for number in range(len(rows))]
    if not found:
        mend = "data.held_out=0.5" if spec.share.name == "held_out" else "data.held_out=0"
        raise UserError(f"no prompt is left to be answered (stage.share={spec.share.name}): {mend}, or other files")
    return found[: spec.prompts]


def batched(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Numbers of prompts of similar length."""
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row].tokens), row))
    return [order[start : start + size] for start in range(0, len(order), size)]


def key_of(job: Job, checkpoint: Path, data: Prepared) -> str:
    """A name for everything that the answers and their grades depend on."""
    config = to_plain(job)
    named = {name: config[name] for name in ("model", "stage", "precision", "seed", "peft", "toy")}
    told = json.dumps([named, data.name, content_of(checkpoint.resolve())], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def place(work: Path, number: int) -> Path:
    return work / f"batch_{number:06}.json"


def write(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """JSON, an object a line; there whole or not at all. Raises UserError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def told(found: Sequence[Found], spec: Rejection, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Figures of all answers."""
    answers = [answer for one in found for answer in one["answers"]]
    rewards = [[float(answer["reward"]) for answer in one["answers"]] for one in found]
    steps = ladder(spec.samples)
    curve = {k: sum(best_of(some, k) for some in rewards) / len(rewards) for k in steps}
    graded = {name: [grade for answer in answers if (grade := answer["grades"][name]) is not None] for name in spec.graders}
    right = {
        name: {k: sum(pass_at(len(one["answers"]), _right(one, name), k) for one in found) / len(found) for k in steps}
        for name, grader in spec.graders.items()
        if grader.passes
    }
    return {
        "prompts": len(found),
        "answers": len(answers),
        "mean_reward": curve[1],
        "best_reward": curve[spec.samples],
        "best_of": curve,
        "pass_at": right,
        "grades": {name: sum(grades) / len(grades) for name, grades in graded.items() if grades},
        "unfinished": sum(not answer["ended"] for answer in answers),
        "empty": sum(not answer["text"].strip() for answer in answers),
        "answer_tokens": sum(answer["tokens"] for answer in answers) / len(answers),
        "tables": [("best of k answers", _ladder(curve, right)), ("samples", _samples(found, prompts))],
    }


def _right(one: Found, name: str) -> int:
    return sum(answer["grades"][name] == 1.0 for answer in one["answers"])


def _ladder(curve: dict[int, float], right: dict[str, dict[int, float]]) -> list[list[str]]:
    head = ["k", "mean reward of the best of k", *(f"{name}: one of k is right" for name in right)]
    return [head, *([str(k), f"{curve[k]:.4f}", *(f"{of[k]:.2%}" for of in right.values())] for k in curve)]


def _samples(found: Sequence[Found], prompts: Sequence[Prompt]) -> list[list[str]]:
    """The best and the worst answer to the first prompts."""
    rows = [["prompt", "best answer", "reward", "worst answer", "reward"]]
    for one in found[:SHOWN]:
        ranked = sorted(one["answers"], key=lambda answer: -answer["reward"])
        sides = [text for answer in (ranked[0], ranked[-1]) for text in (answer["text"], f"{answer['reward']:.4g}")]
        rows.append([shortened(text) for text in (prompts[one["row"]].messages[-1]["content"], *sides)])
    return rows


def shortened(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + "..."
