"""A small model with values in it, and what it computes."""

from __future__ import annotations

import torch

from llmfactory.config.compose import compose_job
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World
from llmfactory.peft.base_spec import PeftSpec

SIZE = ["model.vocab_size=257", "model.dim=12", "model.n_layers=2", "model.max_positions=16", "data.seq_len=16"]
SIZE += ["model.attention.n_heads=2", "model.ffn.hidden=20"]
GPT2 = ["model=gpt2_tiny", *SIZE]
LLAMA = ["model=llama_tiny", *SIZE, "model.attention.n_kv_heads=1"]
MOE = [*LLAMA, "model/ffn=moe", "model.ffn.hidden=8", "model.ffn.n_experts=4"]
TOKENS = torch.randint(31, (3, 7), generator=torch.Generator().manual_seed(1))


def filled(overrides: list[str], spec: PeftSpec | None = None, names: tuple[str, ...] = ("default",)) -> Skeleton:
    """In float64; what the method adds is begun."""
    model = compose_job(overrides).job.model.build()
    for name in names if spec is not None else ():
        spec.apply(model, name)
    model.double()
    initialize(model, 0)
    if spec is not None:
        spec.begin(model, World(torch.device("cpu")))
    return model


def logits(model: Skeleton) -> torch.Tensor:
    batch = {"tokens": TOKENS, "positions": torch.arange(7).expand(3, 7), "segments": torch.ones_like(TOKENS)}
    return model.head(model(TOKENS, model.context(batch)))


@torch.no_grad()
def moved(model: Skeleton) -> Skeleton:
    """With everything that is trained away from where it began."""
    for number, parameter in enumerate(one for one in model.parameters() if one.requires_grad):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        parameter.add_(0.2 * noise)
    return model


def trained(model: Skeleton) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
