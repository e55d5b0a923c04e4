"""What a step sends is what the textbook says, to the byte but for single numbers (loss, gradient norm). `benchmarks/communication.py`
has the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool
from toy_job import write_text

from benchmarks.communication import CASES, Volume, line_of, mean, sent_in_second_step, textbook
from llmfactory.config.compose import compose_job
from llmfactory.parallel.spec import Mesh

NUMBERS = 100
"""Bytes of single numbers that a step adds up, at most."""
PRESETS = ["ddp", "zero1", "zero2", "zero3", "tp", "tp_sp", "cp_ring", "pp_interleaved", "ep"]
LARGER = ["hsdp", "tp_summa"]


def sent(lines: dict[str, list[str]], folder: Path) -> dict[str, Volume]:
    return {preset: sent_in_second_step(line, folder / preset) for preset, line in lines.items()}


@pytest.mark.dist
@pytest.mark.parametrize("presets", [PRESETS, LARGER], ids=["two", "four"])
def test_every_preset_sends_what_the_textbook_says(presets: list[str], tmp_path: Path) -> None:
    text = ["data=text", f"data.source.files=[{write_text(tmp_path)}]", "data.source.split_on='---'"]
    text += [f"data.cache={tmp_path / 'cache'}", "data.workers=1", "data.held_out=0"]
    lines = {preset: [*line_of(preset), *text] for preset in presets}
    (world,) = {CASES[preset][0] for preset in presets}
    results = pool.run(world, sent, lines, tmp_path)
    for preset in presets:
        layout = compose_job(lines[preset]).job.parallel
        assert isinstance(layout, Mesh)
        found, wanted = mean([result[preset] for result in results]), textbook(layout, world)
        assert wanted, preset
        for operation in {*found, *wanted}:
            assert found.get(operation, 0.0) == pytest.approx(wanted.get(operation, 0.0), abs=NUMBERS), (preset, operation)
