"""A trained-looking toy: a model with random weights, saved as a checkpoint together with its tokenizer."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_job import toy_job

from llmfactory.checkpoint import io
from llmfactory.config.spec import Job
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.model.initialize import initialize
from llmfactory.parallel.mesh import World
from llmfactory.precision.spec import Fp64


@pytest.fixture
def job(tmp_path) -> Job:
    """The toy job in float64, whose `init` is a run folder with a checkpoint of its model."""
    job = toy_job(tmp_path, precision=Fp64(), model__init_std=0.3)
    model = job.model.build().double()
    initialize(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())

    def attach(folder: Path) -> None:
        ByteTokenizer().save(folder / "tokenizer")

    io.save(tmp_path / "run" / "checkpoints", 1, model, optimizer, {}, World(torch.device("cpu")), attach)
    return replace(job, init=str(tmp_path / "run"))
