"""The worker takes plain data and gives plain data; what it changes in the process is put back."""

from __future__ import annotations

import json

import torch
from toy_job import toy_job

from llmfactory.config.plain import to_plain
from llmfactory.run.folder import write_config
from llmfactory.run.worker import work


def test_plain_data_in_and_out_and_the_process_is_left_as_it_was(tmp_path):
    job = toy_job(tmp_path, name="r", output_dir=str(tmp_path), trainer__max_steps=2, trainer__threads=2)
    config = json.loads(json.dumps(to_plain(job)))  # it may come from any file
    (tmp_path / "r").mkdir()
    write_config(tmp_path / "r", config, [])
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    result = work(config)
    assert json.loads(json.dumps(result)) == result
    assert result["environment"]["threads"] == 2
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (tmp_path / "r" / "log.txt").read_text().startswith("preparing data")
