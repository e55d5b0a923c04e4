"""The rows that a stage trains or measures on: those of the data, made into the objective's task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmfactory.config.spec import Job
from llmfactory.data.corruption.corruption import CorruptedRows
from llmfactory.data.corruption.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llmfactory.data.pack.rows import Rows
    from llmfactory.data.prepared import Prepared
    from llmfactory.data.tokens import TokenFile
    from llmfactory.objective.objective import Objective


def task_rows(job: Job, objective: Objective, data: Prepared, part: TokenFile) -> Rows:
    """Rows of one part of the data. Read, they are those of every run; drawn, they depend on the job's seed."""
    corruption = objective.corruption(Vocabulary(job.model.vocab_size, data.tokenizer), job.data.seq_len)
    if corruption is None:
        return job.data.pack.build(part, job.data.seq_len)
    return CorruptedRows(job.data.pack.build(part, corruption.raw_length), corruption, job.seed)
