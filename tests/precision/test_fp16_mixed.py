"""float16 and its loss scale around clipping and micro-batches, with steps that a wrong scale of the gradients would change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_job import Memory, toy_job, train, weights

from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Sgd
from llmfactory.precision.spec import Fp16Mixed, Fp32, PrecisionSpec


def trained(precision: PrecisionSpec, folder: Path, optim: Sgd, micro: int | None) -> tuple[dict[str, torch.Tensor], Memory]:
    few = {"trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False, "trainer__max_steps": 3}
    job = toy_job(folder, precision=precision, optim=optim, trainer__micro_batch_size=micro, **few)
    name = f"{type(precision).__name__} {getattr(precision, 'init_scale', 1)} {micro}"
    fitted, tracker = train(job, folder / name)
    assert fitted.skipped_steps == 0
    return weights(fitted), tracker


@pytest.mark.parametrize("clipping", [{"clip_norm": 0.1}, {"clip_norm": None, "clip_value": 1e-3}], ids=["norm", "value"])
def test_gradients_are_unscaled_before_they_are_clipped(clipping: dict[str, float | None], tmp_path: Path) -> None:
    """By micro-batches too. Plain gradient descent: Adam would hide a scale."""
    optim = Sgd(lr=0.3, schedule=Constant(), momentum=0.0, weight_decay=0.0, **clipping)
    right, exact = trained(Fp32(), tmp_path, optim, None)
    start, _ = trained(Fp32(), tmp_path, Sgd(lr=1e-30, schedule=Constant()), 8)
    for scale, micro in ((2.0**8, None), (2.0**14, 3)):
        found, tracker = trained(Fp16Mixed(init_scale=scale), tmp_path, optim, micro)
        for step, row in exact.rows.items():
            assert tracker.rows[step]["grad_norm"] == pytest.approx(row["grad_norm"], rel=0.01)
        for name, weight in right.items():
            moved = (weight - start[name]).norm()
            assert (found[name] - weight).norm() <= 0.05 * moved, name
