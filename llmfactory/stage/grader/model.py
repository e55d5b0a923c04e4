"""A reward model's number for the answer: its prompt and the answer are written out as in the conversations that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.form.reward import RewardForm
from llmfactory.data.form.spec import Reward, TooLong
from llmfactory.data.record.messages import assistant, user
from llmfactory.model.head.spec import Scalar
from llmfactory.stage.grader.grader import Answer, Grade, Grader, NoGrade
from llmfactory.stage.grader.judging_spec import Model
from llmfactory.stage.initial import load_tokenizer
from llmfactory.stage.judges import batches, find, model_spec, opened, row_length


class ModelGrader(Grader):
    at_once = None

    def __init__(self, spec: Model, device: torch.device) -> None:
        checkpoint = find(spec.init)
        about = model_spec(checkpoint)
        head = getattr(about, "head", None)
        if not isinstance(head, Scalar) or head.pooling is None:
            raise UserError(f"{checkpoint} is no reward model: train one with stage=reward model/head=reward")
        self.spec, self.device = spec, device
        self.model = opened(checkpoint).to(device)
        self.tokenizer, self.row_length = load_tokenizer(checkpoint, about.vocab_size), row_length(checkpoint)
        # A row has room for all but the token that ends the sequence, which is nothing but a label.
        self.form = RewardForm(Reward(max_tokens=self.row_length + 1, too_long=TooLong.left))

    @torch.no_grad()
    def grade(self, answers: Sequence[Answer]) -> list[Grade]:
        found: list[Grade] = [NoGrade("longer than the reward model can read")] * len(answers)
        rows = [(number, ids) for number, ids in enumerate(self.rows(answers)) if ids is not None]
        sizes = [len(ids) for _, ids in rows]
        for width, some in batches(rows, sizes, self.row_length, self.spec.batch_tokens):
            for (number, _), reward in zip(some, self._rewards([ids for _, ids in some], width), strict=True):
                found[number] = reward
        return found

    def rows(self, answers: Sequence[Answer]) -> list[list[int] | None]:
        """Tokens of each conversation as they stand in a row. None: it does not fit."""
        records = [
            {"prompt": [*(one.messages or [user(one.text_prompt)])], "answer": [assistant(one.text)], "score": 0.0}
            for one in answers
        ]
        encoded = self.form.encode(self.tokenizer, [json.dumps({"records": [record]}) for record in records])
        return [[*map(int, some[0].ids)] if some else None for some in encoded]

    def _rewards(self, rows: Sequence[Sequence[int]], width: int) -> list[float]:
        shape = (len(rows), width)
        tokens, positions, segments = (np.full(shape, fill, np.int64) for fill in (self.tokenizer.end_id, 0, 0))
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], positions[row, : len(ids)], segments[row, : len(ids)] = ids, np.arange(len(ids)), 1
        fields = {"tokens": tokens, "labels": np.full(shape, IGNORE), "positions": positions, "segments": segments}
        batch = {name: torch.from_numpy(field).to(self.device) for name, field in fields.items()}
        # Padding stands on the right, where a model that reads from the left does not see it.
        hidden = self.model(batch["tokens"], self.model.context(batch, isolated=False))
        found: list[float] = self.model.head(self.model.head.pool(hidden, batch["segments"], 1))[:, 0, 0].double().tolist()
        return found
