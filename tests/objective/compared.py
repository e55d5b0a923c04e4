"""Rows of records with made-up hidden vectors and a small vocabulary: each row holds the answers of one record as documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.model.head.lm import OwnHead
from llmfactory.objective.objective import Outputs

V, D = 11, 5
SIZES = [(3, [4, 2]), (1, [1, 5]), (2, [3, 3]), (5, [2, 1])]
"""Of each row, tokens of the prompt, and of each answer."""


@dataclass
class Case:
    outputs: Outputs
    batch: dict[str, Tensor]
    sizes: list[tuple[int, list[int]]]

    @property
    def logps(self) -> list[list[Tensor]]:
        """By hand: of each row and answer, the log-probability of every token."""
        return [[self._answer(row, number) for number in range(len(sizes))] for row, (_, sizes) in enumerate(self.sizes)]

    def sums(self) -> Tensor:
        """[B, K]."""
        return torch.stack([torch.stack([one.sum() for one in row]) for row in self.logps])

    def lengths(self) -> Tensor:
        return torch.tensor([sizes for _, sizes in self.sizes], dtype=torch.float64)

    def documents(self) -> list[tuple[int, int, Tensor, Tensor]]:
        """(answer's number, prompt's tokens, ids of both, logits of what each token predicts) of all answers, row by row."""
        found = []
        for row, (prompt, sizes) in enumerate(self.sizes):
            for number in range(len(sizes)):
                here = self._place(row, number)
                tokens = self.batch["tokens"][row, here]
                ids = torch.cat((tokens, self.batch["labels"][row, here][-1:]))
                found.append((number, prompt, ids, self.outputs.head(self.outputs.hidden[row, here])))
        return found

    def _place(self, row: int, number: int) -> slice:
        prompt, sizes = self.sizes[row]
        start = sum(prompt + size - 1 for size in sizes[:number])
        return slice(start, start + prompt + sizes[number] - 1)

    def _answer(self, row: int, number: int) -> Tensor:
        prompt, _ = self.sizes[row]
        here = self._place(row, number)
        logp = self.outputs.head(self.outputs.hidden[row, here]).log_softmax(-1)
        labels = self.batch["labels"][row, here]
        return logp[prompt - 1 :].gather(-1, labels[prompt - 1 :, None])[:, 0]


def compared(sizes: list[tuple[int, list[int]]] = SIZES, seed: int = 3) -> Case:
    make = torch.Generator().manual_seed(seed)
    width = max(sum(prompt + size - 1 for size in answers) for prompt, answers in sizes) + 2
    shape = len(sizes), width
    tokens, labels, segments = (
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, IGNORE),
        torch.zeros(shape, dtype=torch.long),
    )
    for row, (prompt, answers) in enumerate(sizes):
        asked, start = torch.randint(V, (prompt,), generator=make), 0
        for number, size in enumerate(answers, start=1):
            if size:
                answer = torch.randint(V, (size,), generator=make)
                stop = start + prompt + size - 1
                tokens[row, start:stop] = torch.cat((asked, answer[:-1]))
                labels[row, start + prompt - 1 : stop] = answer
                segments[row, start:stop] = number
                start = stop
    head = OwnHead(V, D, 0.02, bias=True).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=make)
    hidden = torch.randn(*shape, D, generator=make, dtype=torch.float64, requires_grad=True)
    return Case(Outputs(hidden, head), {"tokens": tokens, "labels": labels, "segments": segments}, sizes)


def with_reference(case: Case, seed: int = 8) -> Tensor:
    """Puts made-up log-probabilities of a reference into the batch; [B, K]."""
    make = torch.Generator().manual_seed(seed)
    known = case.sums().detach() + 3 * torch.randn(len(case.sizes), len(case.sizes[0][1]), generator=make, dtype=torch.float64)
    case.batch["reference_logps"] = known
    return known
