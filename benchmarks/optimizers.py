"""CPU seconds of an optimizer step over 25 million parameters, and bytes of state for each, beside torch's fused AdamW.

    nice -n -10 python benchmarks/optimizers.py [rounds]

One process makes steps of all in turn, round after round, on weights of a LLaMA-like model of its own.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from llmfactory.optim.groups import groups, set_lr
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor, Adamw, Adamw8bit, Lamb, Lion, Muon, OptimSpec, ScheduleFree, Sgd
from llmfactory.run.allocator import keep_freed_memory

SCHEDULE = Constant()
OPTIMIZERS: dict[str, OptimSpec] = {
    "adamw": Adamw(lr=1e-4, schedule=SCHEDULE),
    "adamw_8bit": Adamw8bit(lr=1e-4, schedule=SCHEDULE),
    "schedule_free": ScheduleFree(lr=1e-4, schedule=SCHEDULE),
    "lion": Lion(lr=1e-4, schedule=SCHEDULE),
    "sgd": Sgd(lr=1e-4, schedule=SCHEDULE),
    "lamb": Lamb(lr=1e-4, schedule=SCHEDULE),
    "adafactor": Adafactor(lr=1e-4, schedule=SCHEDULE),
    "muon": Muon(lr=1e-4, schedule=SCHEDULE),
}
DIM, HIDDEN, LAYERS, VOCAB = 384, 1024, 7, 32000


def weights() -> dict[str, torch.nn.Parameter]:
    """24.7 million, by name."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (VOCAB, DIM), "norm": (DIM,)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.{name}": (DIM, DIM) for name in "qkvo"}
        shapes |= {f"{layer}.gate": (HIDDEN, DIM), f"{layer}.up": (HIDDEN, DIM), f"{layer}.down": (DIM, HIDDEN)}
        shapes |= {f"{layer}.attention_norm": (DIM,), f"{layer}.ffn_norm": (DIM,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    shared = weights()
    total = sum(one.numel() for one in shared.values())
    gradients = {name: 0.01 * torch.randn_like(one) for name, one in shared.items()}
    matrices = [name for name, one in shared.items() if one.dim() == 2 and name != "embedding"]
    made = {}
    for name, spec in OPTIMIZERS.items():
        decays = {key: one.dim() == 2 for key, one in shared.items()}
        made[name] = spec.build(groups(shared.items(), decays, 0.1, matrices=matrices if spec.matrices_apart else ()))
        set_lr(made[name], 1e-6)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(-1, rounds):  # the first makes the state
        for name in list(made) if turn % 2 else list(reversed(made)):
            for key, one in shared.items():
                one.grad = gradients[key].clone()
            begun = time.process_time()
            made[name].step()
            if turn >= 0:
                seconds[name].append(time.process_time() - begun)
    print(f"{total / 1e6:.1f} million parameters, {rounds} rounds\n")
    print("| optimizer | CPU ms a step | spread | x fused AdamW | bytes of state a weight |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        ratio = statistics.median(own / base for own, base in zip(values, seconds["adamw"], strict=True))
        size = sum(one.nbytes for state in made[name].state.values() for one in state.values() if isinstance(one, torch.Tensor))
        low, high = 1e3 * min(values), 1e3 * max(values)
        print(f"| {name} | {1e3 * statistics.median(values):.1f} | {low:.1f}-{high:.1f} | {ratio:.1f} | {size / total:.2f} |")


if __name__ == "__main__":
    main()
