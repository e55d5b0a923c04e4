"""Bytes that a process sends in one optimizer step, counted, beside the textbook volume of its layout.

    python benchmarks/communication.py                      all presets
    python benchmarks/communication.py zero3 tp             some of them

The mean over the processes, by kind of operation, of the second step of a real run: 4 blocks of width 64, 16 rows in micro-batches
of 2. With L blocks of P_b bytes and P_r bytes of other weights here, P in all, M micro-batches of A bytes of activations each
(rows x tokens x width), n processes along the axis in question:

| axis | volume |
|---|---|
| copies | all-reduce of the gradients: 2 (n - 1) / n P |
| shards, ZeRO-1 | (n - 1) / n (P gathered + P reduced) |
| shards, ZeRO-2 | (n - 1) / n (P gathered + M P reduced) |
| shards, ZeRO-3 | (n - 1) / n M (2 P_b + P_r gathered + P reduced): 1.5 x an all-reduce for one micro-batch, less for the weights beside the blocks, which stay from the forward to the backward pass |
| tp | 4 all-reduces of A a block (Shoeybi et al. 2019, section 3), 2 for the embedding; the head's weights gathered and its gradients reduced |
| tp, sequence and loss parallel | the same bytes as gathers and reduce-scatters (Korthikanti et al. 2022, section 4.2.2); no gathered head |
| tp, summa | 3 (q - 1) (inputs + weights) of each product, a grid of q x q (van de Geijn and Watts 1997) |
| cp | ring (6 n - 4) S, ulysses 8 (n - 1) / n S, gather 4 (n - 1) S a block, S bytes of queries here |
| pp | A forward and A backward for each micro-batch between two stages on two processes |
| ep | 4 exchanges of the visits to others' experts, (n - 1) / n of all if they are spread evenly |
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import start
from llmfactory.parallel.spec import ContextMethod, Mesh, Schedule, TensorForm, Zero

LAYERS, DIM, VOCAB, HIDDEN, HEADS, LENGTH = 4, 64, 512, 128, 4, 32
ROWS, MICRO = 16, 2
"""Of one step; of one micro-batch."""
NUMBER = 4
"""Bytes of a float32."""
N_EXPERTS = 8
EXPERTS = ["model/ffn=moe", "model.ffn.balance=0", f"model.ffn.n_experts={N_EXPERTS}", f"model.ffn.k={N_EXPERTS}"]
"""Every token visits all of them, so that visits are spread evenly."""
CASES: dict[str, tuple[int, list[str]]] = {
    "ddp": (2, []),
    "zero1": (2, []),
    "zero2": (2, []),
    "zero3": (2, []),
    "hsdp": (4, []),
    "tp": (2, []),
    "tp_sp": (2, []),
    "tp_summa": (4, []),
    "cp_ring": (2, []),
    "cp_ulysses": (2, []),
    "cp_gather": (2, []),
    "pp_gpipe": (2, []),
    "pp_1f1b": (2, []),
    "pp_interleaved": (2, []),
    "pp_zero_bubble": (2, []),
    "pp_zero_bubble_v": (2, []),
    "ep": (2, EXPERTS),
    "3d": (8, []),
    "4d": (8, []),
}
"""Processes and further overrides of each preset."""
TOLERANCE = 0.01
Volume = dict[str, float]
"""Bytes by kind of operation."""


def line_of(preset: str) -> list[str]:
    world, more = CASES[preset]
    return [
        "model=llama_tiny",
        f"model.n_layers={LAYERS}",
        f"model.dim={DIM}",
        f"model.vocab_size={VOCAB}",
        f"model.ffn.hidden={HIDDEN}",
        f"model.attention.n_heads={HEADS}",
        f"model.attention.n_kv_heads={HEADS}",
        "model/head=lm",
        "data/tokenizer=bytes",
        f"data.seq_len={LENGTH}",
        "data.pack.isolate=false",
        "optim/schedule=constant",
        f"trainer.batch_size={ROWS}",
        f"trainer.micro_batch_size={MICRO}",
        "trainer.max_steps=2",
        "trainer.eval_every=null",
        "trainer.save_every=null",
        "trainer.keep_best=false",
        "trainer.sample=false",
        "trainer.progress=false",
        "trainer.device=cpu",
        "tracking=none",
        *more,
        f"parallel={preset}",
        "launch=local",
        f"launch.processes={world}",
    ]


def sent_in_second_step(line: list[str], folder: Path) -> Volume:
    """What this process sends in the second step of a run, by kind of operation."""
    from llmfactory.config.compose import compose_job
    from llmfactory.data.prepare import prepare
    from llmfactory.parallel.strategy import MeshStrategy
    from llmfactory.parallel.volume import counted
    from llmfactory.run.display import Silent
    from llmfactory.run.fit import fit
    from llmfactory.tracking.none import NoTracker

    job = compose_job(line).job
    found: Counter[str] = Counter()
    step = MeshStrategy.optimizer_step  # it calls the closure that goes through the micro-batches

    def listened(self: MeshStrategy, *arguments: Any, **named: Any) -> Any:
        with counted() as volume:
            result = step(self, *arguments, **named)
        if self._step == 1:
            for message in volume.messages:
                found[message.operation] += message.sent
        return result

    MeshStrategy.optimizer_step = listened  # type: ignore[method-assign]
    try:
        fit(job, prepare(job.data, job.model.vocab_size), folder / "run", NoTracker(), Silent(notes=False))
    finally:
        MeshStrategy.optimizer_step = step  # type: ignore[method-assign]
    return dict(found)


def count(line: list[str], folder: Path) -> None:
    """One process of a run."""
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(sent_in_second_step(line, folder)))


def measured(preset: str) -> Volume:
    """The mean over the processes."""
    return mean(start(count, CASES[preset][0], [line_of(preset)]))


def mean(found: list[Volume]) -> Volume:
    total: Counter[str] = Counter()
    for one in found:
        total.update(one)
    return {operation: sent / len(found) for operation, sent in total.items()}


def textbook(layout: Mesh, world: int) -> Volume:
    """The same by the table above. Sums of single numbers (loss, gradient norm) are left out."""
    degrees = layout.degrees_for(world)
    cp, tp, pp = degrees["cp"], degrees["tp"], degrees["pp"]
    copies, shards = degrees["dp_replicate"], degrees["dp_shard"]
    micros = ROWS // (copies * shards) // MICRO
    copies, shards = (copies, shards * cp) if shards > 1 else (copies * cp, 1)
    activations = MICRO * LENGTH * DIM * NUMBER // cp
    volume: Counter[str] = Counter()
    _data(volume, layout, copies, shards, micros)
    if tp > 1:
        (_grid if layout.tensor_form is TensorForm.summa else _tensor)(volume, layout, micros, activations)
    if cp > 1:
        piece = activations / tp
        name, share = {
            ContextMethod.ring: ("send", 6 * cp - 4),
            ContextMethod.ulysses: ("all_to_all", 8 * (cp - 1) / cp),
            ContextMethod.gather: ("all_gather", 2 * (cp - 1)),
        }[layout.context_method]
        volume[name] += share * piece * LAYERS * micros / pp
        if layout.context_method is ContextMethod.gather:
            volume["reduce_scatter"] += share * piece * LAYERS * micros / pp
    if pp > 1:
        v_shaped = layout.schedule is Schedule.zero_bubble_v
        borders = 2 * pp - 2 if v_shaped else pp * layout.stages_per_process - 1  # the turn of the V stays within a process
        carried = activations / tp if layout.sequence_parallel else activations
        volume["send"] += 2 * borders * carried * micros / pp
    return dict(volume)


def _data(volume: Counter[str], layout: Mesh, copies: int, shards: int, micros: int) -> None:
    """Weights and gradients over copies and shards; the mean over the stages of a pipeline."""
    ffn, experts = 3 * DIM * HIDDEN, 0
    if layout.ep > 1:
        ffn, experts = DIM * N_EXPERTS, N_EXPERTS * ffn  # the router is not dealt out
        visits = MICRO * LENGTH * N_EXPERTS * (layout.ep - 1) / layout.ep
        counts = N_EXPERTS * NUMBER * (layout.ep - 1) / layout.ep
        volume["all_to_all"] += LAYERS * micros * (4 * visits * DIM * NUMBER + counts)
    blocks = LAYERS * ((4 * DIM**2 + ffn) / layout.tp + 2 * DIM) * NUMBER / layout.pp
    rest = (2 * VOCAB * DIM / layout.tp + DIM) * NUMBER / layout.pp
    _weights(volume, layout, copies, shards, micros, blocks, rest)
    if experts:
        copies, shards = (copies, shards // layout.ep) if shards > 1 else (copies // layout.ep, 1)
        _weights(volume, layout, copies, shards, micros, LAYERS * experts / layout.ep / layout.tp * NUMBER / layout.pp, 0.0)


def _weights(volume: Counter[str], layout: Mesh, copies: int, shards: int, micros: int, blocks: float, rest: float) -> None:
    """Bytes of blocks and of the other weights."""
    kept = layout.zero is not Zero.parameters or layout.pp > 1  # a pipeline's stage gives no weights back between micro-batches
    gathered = blocks + rest if kept else micros * (2 * blocks + rest)
    reduced = _reductions(layout, micros) * (blocks + rest)
    if shards > 1:
        volume["all_gather"] += (shards - 1) / shards * gathered
        volume["reduce_scatter"] += (shards - 1) / shards * reduced
    if copies > 1:
        volume["all_reduce"] += 2 * (copies - 1) / copies * (blocks + rest) / shards


def _reductions(layout: Mesh, micros: int) -> int:
    """How often a step reduces gradients: once where they are whole in each process until its end, as they are in a pipeline."""
    return 1 if layout.zero is Zero.optimizer or layout.pp > 1 else micros


def _tensor(volume: Counter[str], layout: Mesh, micros: int, activations: int) -> None:
    """Matrices cut along one dimension."""
    pp, share = layout.pp, (layout.tp - 1) / layout.tp
    gains = (2 * LAYERS + 1) * DIM * NUMBER * _reductions(layout, micros)  # of norms, of which all have a copy
    volume["all_reduce"] += 2 * share * (micros * 2 * activations + gains) / pp  # the embedding's sum, and its gradient
    if layout.sequence_parallel:
        volume["all_gather"] += share * micros * (4 * LAYERS + 1) * activations / pp
        volume["reduce_scatter"] += share * micros * (4 * LAYERS + 1) * activations / pp
    else:
        volume["all_reduce"] += 2 * share * micros * 4 * LAYERS * activations / pp
    if (
        layout.loss_parallel
    ):  # the largest logit, the sum of exponentials, the target's logit, and their gradient: a number a token
        volume["all_reduce"] += 2 * share * micros * 4 * activations / DIM / pp
    else:
        volume["all_gather"] += share * micros * VOCAB * DIM * NUMBER / pp
        volume["reduce_scatter"] += share * micros * VOCAB * DIM * NUMBER / pp


def _grid(volume: Counter[str], layout: Mesh, micros: int, activations: int) -> None:
    """Matrices and activations cut along both dimensions of a grid."""
    side = math.isqrt(layout.tp)
    share, pp, tables = (side - 1) / side, layout.pp, VOCAB * DIM * NUMBER
    inputs, weights = activations * (6 + HIDDEN / DIM), (4 * DIM**2 + 3 * DIM * HIDDEN) * NUMBER
    products = (side - 1) * LAYERS * micros * (inputs + weights) / layout.tp / pp
    volume["broadcast"] += 2 * products
    volume["reduce"] += products
    for operation in (
        "all_gather",
        "reduce_scatter",
    ):  # the width of both tables; the head's vocabulary and the width of its input
        volume[operation] += share * micros * (2 * tables / side + tables + activations / side) / pp
    norms = 2 * LAYERS + 1
    moments, gains = 2 * norms * activations / DIM / side, 2 * norms * DIM * NUMBER * _reductions(layout, micros)
    volume["all_reduce"] += 2 * share * (micros * (2 * activations / side + moments) + gains) / pp


def main() -> None:
    from benchmarks.harness import machine
    from llmfactory.config.compose import compose_job

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(CASES))
    print("| preset | processes | operation | counted, bytes | textbook | counted / textbook |\n|---|---|---|---|---|---|")
    wrong = []
    for preset in parser.parse_args().presets:
        layout, world = compose_job(line_of(preset)).job.parallel, CASES[preset][0]
        assert isinstance(layout, Mesh)
        found, ideal = measured(preset), textbook(layout, world)
        for operation in [*dict.fromkeys([*ideal, *found])]:
            sent, wanted = found.get(operation, 0.0), ideal.get(operation, 0.0)
            ratio = f"{sent / wanted:.4f}" if wanted else "-"
            print(f"| {preset} | {world} | {operation} | {sent:,.0f} | {wanted:,.0f} | {ratio} |", flush=True)
        total, whole = sum(found.values()), sum(ideal.values())
        print(f"| {preset} | {world} | all | {total:,.0f} | {whole:,.0f} | **{total / whole:.4f}** |", flush=True)
        if abs(total / whole - 1) > TOLERANCE:
            wrong.append(preset)
    print(f"\n{machine()}")
    if wrong:
        sys.exit(f"more than {TOLERANCE:.0%} off: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
