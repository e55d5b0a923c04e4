"""How much each weight of a trained model matters to its data: the diagonal of the empirical Fisher information, for stage/anchor=ewc.

    F_i = sum_rows (d loss_row / d w_i)^2 / number of targets

with the loss of a row summed over its targets, so that F is the curvature of the mean loss over targets, in its unit
(Kirkpatrick et al. 2017, section 2; Martens 2014, section 11, on the empirical Fisher).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.stage.anchor.ewc import CHECKPOINT
from llmfactory.stage.anchor.spec import fisher_of
from llmfactory.stage.evaluate import insist_measurable, objective_of
from llmfactory.stage.initial import checkpoint_of, load_model
from llmfactory.stage.job import StageJob
from llmfactory.stage.rows import read_data, task_rows
from llmfactory.stage.training import Root
from llmfactory.stage.tuning_spec import Fisher


class FisherJob(StageJob):
    """Of the model of `init` on training rows of `data`, spread evenly over them."""

    def __init__(self, spec: Fisher) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint = checkpoint_of(job, "measuring")
        assert job.init is not None
        path = fisher_of(Path(job.init).expanduser()) if self.spec.path is None else Path(self.spec.path).expanduser()
        if not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent} to write {path.name} into: give another stage.path")
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            found, targets = self.measure(job, checkpoint, world)
        temporary = path.with_name(f"{path.name}.tmp")
        save_file(found, temporary, {CHECKPOINT: checkpoint.name, "rows": str(self.spec.rows)})
        temporary.replace(path)
        total = sum(float(one.double().sum()) for one in found.values())
        print(f"{path}: the trace is {total:.4g}, over {targets:,.0f} targets")
        return {"checkpoint": str(checkpoint), "fisher": str(path), "trace": total, "targets": targets}

    def measure(self, job: Job, checkpoint: Path, world: World) -> tuple[dict[str, Tensor], float]:
        """The diagonal by name, and how many targets it was measured on."""
        spec = objective_of(checkpoint, job.model)
        insist_measurable(job, spec, checkpoint)
        objective = spec.build()
        data = read_data(job, checkpoint, spec.specials())
        precision = job.precision.build(world.device.type)
        model = load_model(job, checkpoint, precision, world, objective).requires_grad_(True)
        rows = task_rows(job, objective, data, "train")
        plain = objective.plain()
        root = Root(model, plain, rows.isolated).eval()
        named = {name: weight for name, weight in model.named_parameters() if name not in model.added}
        if not named:
            raise UserError(f"{checkpoint}: a model without weights has nothing to hold on to")
        sums = {
            term: {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in named.items()} for term in plain.terms
        }
        counts = dict.fromkeys(plain.terms, 0.0)
        count = min(len(rows), self.spec.rows)
        for number in np.arange(count, dtype=np.int64) * len(rows) // max(count, 1):
            batch = rows.read(np.array([number]))
            for term, size in plain.denominators(batch).items():
                counts[term] = counts.get(term, 0.0) + float(size)
            with precision.forward_context():
                found = root({name: field.to(world.device) for name, field in batch.items()})
            for place, term in enumerate(plain.terms):
                last = place == len(plain.terms) - 1
                gradients = torch.autograd.grad(found[term], list(named.values()), retain_graph=not last, allow_unused=True)
                for name, gradient in zip(named, gradients, strict=True):
                    if gradient is not None:
                        sums[term][name] += gradient.detach().float().square()
        if not all(counts[term] for term in plain.terms):
            raise UserError(f"no row of data has a target of {checkpoint}'s objective, so nothing can be measured")
        fisher = {name: torch.stack([sums[term][name] / counts[term] for term in plain.terms]).sum(0).cpu() for name in named}
        if broken := [name for name, one in fisher.items() if not bool(one.isfinite().all())]:
            raise UserError(f"the gradients of {broken[0]} are not finite: the model or the data are broken")
        return fisher, sum(counts[term] for term in plain.terms)
