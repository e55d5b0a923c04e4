"""Answers of a trained model to prompts, several to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.form.record_rows import Prompt
from llmfactory.data.task.rewrite import start_id
from llmfactory.data.task.task import separator_id
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import Sampling
from llmfactory.inference.text import TextStream
from llmfactory.model.skeleton import Skeleton
from llmfactory.objective.objective import Objective
from llmfactory.stage.grader.grader import Answer

if TYPE_CHECKING:
    from llmfactory.config.spec import Job


@dataclass(slots=True)
class Writer:
    """A model with what it reads and writes by."""

    job: Job
    model: Skeleton
    tokenizer: Tokenizer
    objective: Objective
    chat: bool
    """Prompts are written by a chat template; an encoder reads others with their end."""
    sampling: Sampling
    max_tokens: int
    stops: Sequence[str] = ()
    vocabulary: Vocabulary = field(init=False)

    def __post_init__(self) -> None:
        self.vocabulary = Vocabulary(self.job.model.vocab_size, self.tokenizer)

    def answers(self, prompts: Sequence[Prompt], samples: int, seed: int) -> list[list[Answer]]:
        """`samples` answers to each prompt; they follow from the prompts that are given together and the seed."""
        asked = [prompt for prompt in prompts for _ in range(samples)]
        read = [self.objective.prompt(self._read(prompt.tokens), self.vocabulary) for prompt in asked]
        streams = [TextStream(self.tokenizer, self.stops) for _ in asked]
        stopped = [False] * len(asked)

        def on_token(row: int, token: int) -> bool:
            if token in self.tokenizer.usage.stop_ids:
                stopped[row] = True
            elif self.stops:
                streams[row].push(token)
                stopped[row] = streams[row].stopped
            return stopped[row]

        found = generate(
            self.model,
            [ids for ids, _ in read],
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            end_id=read[0][1],
            start_id=start_id(self.tokenizer),
            vocab_size=self.tokenizer.vocab_size,
            reading=self.objective.reading,
            seed=seed,
            on_token=on_token,
        )
        texts = {number: self.tokenizer.decode(prompt.tokens) for number, prompt in enumerate(prompts)}
        written: list[list[Answer]] = []
        for row, (prompt, tokens) in enumerate(zip(asked, found, strict=True)):
            ended = stopped[row] or len(tokens) < self.max_tokens
            if tokens and tokens[-1] in self.tokenizer.usage.stop_ids:
                tokens = tokens[:-1]
            streams[row].finish()
            text = streams[row].text if self.stops else self.tokenizer.decode(tokens)
            if row % samples == 0:
                written.append([])
            written[-1].append(Answer(prompt.tokens, texts[row // samples], tokens, text, ended, prompt.record, prompt.messages))
        return written

    def _read(self, tokens: list[int]) -> list[int]:
        whole = self.job.model.graph == "encoder_decoder" and not self.chat
        return [*tokens, separator_id(self.tokenizer)] if whole else tokens


def plain(answer: Answer, reward: float, grades: dict[str, float | None]) -> dict[str, Any]:
    """An answer as it is kept in a file."""
    return {"text": answer.text, "tokens": len(answer.tokens), "ended": answer.ended, "reward": reward, "grades": grades}
