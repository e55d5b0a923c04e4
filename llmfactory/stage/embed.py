"""Texts as vectors, by a model whose head makes one of a document (model/head=sentence), and how alike they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import device_type, open_world
from llmfactory.stage.describe import table
from llmfactory.stage.generate import printable
from llmfactory.stage.initial import HEAD, checkpoint_of, fill, has_new_head, load_tokenizer, model_of
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Embed


class EmbedJob(StageJob):
    """Prints the cosine of every pair; the vectors are in the results."""

    def __init__(self, spec: Embed) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint, texts = checkpoint_of(job, "embedding"), self.spec.texts
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            precision = job.precision.build(world.device.type)
            model = model_of(job)
            precision.convert_module(model)
            fill(model, checkpoint, new=new_head(model, checkpoint), trained=job.init_trained)
            model.to(world.device).eval()
            tokenizer = load_tokenizer(checkpoint, job.model.vocab_size)
            rows = [marked(tokenizer, text) for text in texts]
            check(rows, job.model.max_positions)
            with precision.forward_context():
                vectors = embed(model, rows)
            cosines = torch.nn.functional.normalize(vectors.double(), dim=-1)
            cosines = cosines @ cosines.T
            if world.rank == 0:
                print("\n".join(table(cells(texts, cosines))))
        return {"checkpoint": str(checkpoint), "vectors": vectors.tolist(), "cosines": cosines.tolist()}


def new_head(model: Skeleton, checkpoint: Path) -> str | None:
    """Beginning of the names of a head that the checkpoint does not have; it must be one without weights (the mean of tokens)."""
    if not has_new_head(model, checkpoint):
        return None
    if any(name.startswith(HEAD) for name, _ in model.named_parameters()):
        raise UserError(
            f"{checkpoint} has no weights for the head that makes vectors; take the mean of tokens: model/head=sentence"
        )
    return HEAD


def marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text with the special ones around it that the tokenizer's own post-processor puts there ([CLS], [SEP])."""
    if not isinstance(tokenizer, HfTokenizer):
        return [*tokenizer.usage.begin_ids, *tokenizer.encode(text)]
    ids: list[int] = tokenizer.inner.encode(text, add_special_tokens=True).ids
    return ids


def check(rows: list[list[int]], most: int) -> None:
    for number, row in enumerate(rows, start=1):
        if not row:
            raise UserError(f"text {number} of stage.texts has no token")
        if len(row) > most:
            raise UserError(f"text {number} of stage.texts has {len(row)} tokens, the model was made for {most}: cut it")


@torch.no_grad()
def embed(model: Skeleton, rows: list[list[int]]) -> Tensor:
    """[N, D]: a vector for each row of tokens. Rows are padded on the right, which changes nothing."""
    width, device = max(map(len, rows)), next(model.parameters()).device
    tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    segments_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    batch = {
        "tokens": tokens_BT,
        "segments": segments_BT,
        "positions": torch.arange(width, device=device).expand(tokens_BT.shape),
    }
    hidden_BTD = model(tokens_BT, model.context(batch))
    vectors_BD: Tensor = model.head(model.head.pool(hidden_BTD, segments_BT))[:, 0]
    return vectors_BD


def cells(texts: list[str], cosines: Tensor) -> list[tuple[str, ...]]:
    """A row for each text: its number, its cosine with each text, the text."""
    head = ("", *(str(number) for number in range(1, len(texts) + 1)), "")
    rows = [
        (str(number), *(f"{cosine:.3f}" for cosine in cosines[number - 1].tolist()), printable(text).replace("\n", " "))
        for number, text in enumerate(texts, start=1)
    ]
    return [head, *rows]
