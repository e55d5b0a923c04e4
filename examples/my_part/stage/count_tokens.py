from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.data.prepare import prepare
from llmfactory.stage.job import StageJob


class CountTokensJob(StageJob):
    """`run` returns plain data; with `name=` it is kept in the run folder's result.json."""

    def __init__(self, spec) -> None:
        self.text = spec.text

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        tokenizer = prepare(job.data, job.model.vocab_size).tokenizer
        count = len(tokenizer.encode(self.text))
        print(f"{count} tokens, {len(self.text.encode()) / count:.2f} bytes each")
        return {"tokens": count}
