"""Rules about experts that are dealt to processes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llmfactory.config.rule.degrees import degrees_of
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import walk
from llmfactory.model.ffn.spec import MoeSpec


def expert_parallel_deals_experts(job: Job) -> Iterator[Problem]:
    """Experts are dealt out whole and evenly, to groups of the processes that read different tokens."""
    degrees = degrees_of(job)
    ep = degrees.get("ep", 1)
    if ep == 1:
        return
    mixtures = [(path, part) for path, part in walk(job.model, "model") if isinstance(part, MoeSpec)]
    if not mixtures:
        yield Problem("parallel.ep", ep, "the model has no experts to deal out", "parallel.ep=1")
        return
    ranks = (degrees["dp_shard"] if degrees["dp_shard"] > 1 else degrees["dp_replicate"]) * degrees["cp"]
    common = math.gcd(ranks, *(part.n_experts for _, part in mixtures))
    fits = f"parallel.ep={next(degree for degree in range(ep, 0, -1) if common % degree == 0)}"
    for path, part in mixtures:
        if part.n_experts % ep:
            yield Problem("parallel.ep", ep, f"{path}.n_experts={part.n_experts} cannot be dealt to {ep} groups evenly", fits)
            return
    if ranks % ep:
        kind = "dp_shard" if degrees["dp_shard"] > 1 else "dp_replicate"
        reason = (
            f"the groups are made of the {ranks} process{'es' if ranks > 1 else ''} of {kind} x cp, which {ep} does not divide"
        )
        yield Problem("parallel.ep", ep, reason, fits)
