"""stage=prepare: data made ready before any job needs them, and the account of how.

Every process of the job does tasks that no other holds (data/tasks.py), on one machine or many, as long as they see the same
cache folder. They need no word from each other.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.documents import Plan, make_documents
from llmfactory.data.export import export
from llmfactory.data.prepare import cache_folder, prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.record.first_rows import detected
from llmfactory.data.spec import DocumentsSpec
from llmfactory.data.tasks import Workers
from llmfactory.run.display import Display, make_display
from llmfactory.run.figures import LEFT_OUT
from llmfactory.stage.models import TrainedModels
from llmfactory.stage.spec import Prepare


def prepare_data(job: Job, folder: Path) -> dict[str, Any]:
    """Results as plain data: where the tokens are, how many, and what became of every record."""
    assert isinstance(job.stage, Prepare)
    assert isinstance(job.data, DocumentsSpec)
    rank, here = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = max(1, (os.cpu_count() or 1) // here)
    spec = dataclasses.replace(job.data, workers=job.data.workers or cores)
    display = make_display(job.trainer.progress, rank)
    try:
        if job.stage.export is not None and rank == 0:
            _export(job.stage.export, spec, display)
        prepared = prepare(spec, job.model.vocab_size, display.preparing, models=TrainedModels())
    finally:
        display.stop()
    counts = {**prepared.counts, "detected": detected(spec)}
    return {"data": prepared.name, "folder": str(prepared.folder), "preparation": counts, **totals(prepared)}


def _export(where: str, spec: DocumentsSpec, display: Display) -> None:
    """Before the tokens are made: documents that went through no step are not kept after that."""
    place = Path(where).expanduser()
    if place.exists():
        raise UserError(f"{place} is there already: name another folder, stage.export=...")
    plan, workers = Plan.of(spec.named(), spec.clean, spec.form, TrainedModels()), Workers(spec.workers or 1)
    try:
        made = make_documents(plan, cache_folder(spec) / f"documents-{plan.fingerprint()}", workers, display.preparing)
    finally:
        workers.close()
    display.note(f"{export(made, place):,} documents written to {place}")


def totals(prepared: Prepared) -> dict[str, Any]:
    """The figures that the end table shows."""
    parts = [prepared.counts[part] for part in ("train", "held_out")]
    text, tokens, documents = (sum(part[key] for part in parts) for key in ("bytes", "tokens", "documents"))
    read = prepared.counts["steps"]["read"]
    found: dict[str, Any] = {"records_read": read["seen"], "documents": documents, "text_bytes": text, "tokens": tokens}
    if not prepared.records:
        found["bytes_per_token"] = text / tokens
    return found | left_out(prepared)


def left_out(prepared: Prepared) -> dict[str, int]:
    """Records that were read and have no tokens, by the name of the reason."""
    parts = [prepared.counts[part] for part in ("train", "held_out")]
    found = {name: sum(part.get(name, 0) for part in parts) for name in LEFT_OUT}
    return {name: count for name, count in found.items() if count}


def told(prepared: Prepared) -> list[str]:
    """The same in words."""
    return [f"left out of the data: {count:,} records {LEFT_OUT[name]}" for name, count in left_out(prepared).items()]
