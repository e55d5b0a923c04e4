"""Plans beside published figures: `python -m benchmarks.planning` writes the table of docs/planning.md.

Of each published run the model, the layout and the device are given to `stage=plan`; nothing is fitted to the outcome. What our
engine does otherwise (weights and gradients in float32, no selective recomputation, no float8) is planned as it is here, so a
recomputing run is the nearest to a selectively recomputing one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "planning.md"
BEGIN, END = "<!-- published: begin -->\n", "<!-- published: end -->\n"
H100_96 = ["hardware=h100_sxm", "hardware.memory_gib=95", "hardware.memory_gb_per_s=2400"]
LLAMA = ["precision=bf16_mixed", "data.seq_len=8192", "parallel.recompute=true"]


@dataclass(frozen=True, slots=True)
class Published:
    """A run that somebody has measured."""

    what: str
    processes: int
    line: list[str]
    tokens_per_second: float
    """Of a device."""
    source: str


def megatron(
    billions: float, heads: int, dim: int, layers: int, tp: int, pp: int, gpus: int, batch: int, tflops: float
) -> Published:
    """A row of Narayanan et al. 2021b, table 1: GPT on A100 of 80 GB, 2,048 tokens a row, everything recomputed, interleaved.

    Its TFLOP/s count the recomputation: 96 B s l h^2 (1 + s / 6h + V / 16 l h) operations a step (equation 3).
    """
    vocab, length = 51200, 2048
    per_token = 96 * layers * dim**2 * (1 + length / (6 * dim) + vocab / (16 * layers * dim))
    data = gpus // tp // pp
    line = ["model=gpt3_175b", f"model.vocab_size={vocab}", f"model.dim={dim}", f"model.n_layers={layers}", "data.seq_len=2048"]
    line += [f"model.attention.n_heads={heads}", f"model.ffn.hidden={4 * dim}", "hardware=a100_80", "precision=bf16_mixed"]
    line += [f"trainer.batch_size={batch}", "trainer.micro_batch_size=1", "parallel.recompute=true"]
    line += ["parallel=ddp", f"parallel.tp={tp}", f"parallel.pp={pp}", f"parallel.dp_replicate={data}"]
    interleaved = pp > 1 and layers % (2 * pp) == 0 and (batch // data) % pp == 0
    line += ["parallel.schedule=interleaved"] if interleaved else []
    line += ["parallel.loss_parallel=true", "parallel.sequence_parallel=true"] if tp > 1 else []
    what = f"Megatron-LM, GPT {billions:g}B, tensor {tp}, pipeline {pp}"
    return Published(what, gpus, line, 1e12 * tflops / per_token, "Narayanan et al. 2021b, table 1")


TITAN = "torchtitan, llama3_h100_202412"
PUBLISHED = [
    Published(
        "torchtitan, Llama 3.1 8B, FSDP 8",
        8,
        ["model=llama3_1_8b", *LLAMA, *H100_96, "parallel=zero3", "trainer.batch_size=16", "trainer.micro_batch_size=2"],
        5762,
        TITAN,
    ),
    Published(
        "torchtitan, Llama 3.1 8B, FSDP 128",
        128,
        ["model=llama3_1_8b", *LLAMA, *H100_96, "parallel=zero3", "trainer.batch_size=256", "trainer.micro_batch_size=2"],
        5605,
        TITAN,
    ),
    Published(
        "torchtitan, Llama 3.1 70B, FSDP 32, tensor 8 (float8)",
        256,
        [
            *["model=llama3_1_70b", *LLAMA, *H100_96, "parallel=zero3", "parallel.tp=8", "parallel.sequence_parallel=true"],
            *["parallel.loss_parallel=true", "trainer.batch_size=512", "trainer.micro_batch_size=16"],
        ],
        829,
        TITAN,
    ),
    Published(
        "torchtitan, Llama 3.1 405B, FSDP 8, tensor 8, pipeline 8 (float8)",
        512,
        [
            *["model=llama3_1_405b", *LLAMA, *H100_96, "parallel=zero1", "parallel.tp=8", "parallel.pp=8"],
            *["parallel.sequence_parallel=true", "parallel.loss_parallel=true", "trainer.batch_size=256"],
            *["trainer.micro_batch_size=1", "parallel.schedule=one_f_one_b"],
        ],
        100,
        TITAN,
    ),
    Published(
        "torchtitan, Llama 3 8B, FSDP 64 on A100",
        64,
        ["model=llama3_8b", *LLAMA, "hardware=a100_80", "parallel=zero3", "trainer.batch_size=64", "trainer.micro_batch_size=1"],
        2904,
        "torchtitan, docs/performance.md (2024)",
    ),
    Published(
        "torchtitan, Llama 3 70B, FSDP 64 on A100",
        64,
        ["model=llama3_70b", *LLAMA, "hardware=a100_80", "parallel=zero3", "trainer.batch_size=64", "trainer.micro_batch_size=1"],
        331,
        "torchtitan, docs/performance.md (2024)",
    ),
    megatron(1.7, 24, 2304, 24, 1, 1, 32, 512, 137),
    megatron(7.5, 32, 4096, 36, 4, 1, 128, 512, 142),
    megatron(18.4, 48, 6144, 40, 8, 1, 256, 1024, 135),
    megatron(39.1, 64, 8192, 48, 8, 2, 512, 1536, 138),
    megatron(76.1, 80, 10240, 60, 8, 4, 1024, 1792, 140),
    megatron(145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148),
    megatron(310.1, 128, 16384, 96, 8, 16, 1920, 2160, 155),
    megatron(529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163),
    megatron(1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 163),
]


def row(one: Published) -> list[str]:
    """Cells of a published run."""
    from llmfactory.config.compose import compose_job
    from llmfactory.stage.choice import question_of
    from llmfactory.stage.plan import figures_of, reckoned

    job = compose_job([*one.line, "stage=plan", "launch=local", f"launch.processes={one.processes}"]).job
    question = question_of(job)
    seen = reckoned(job, question)
    found = figures_of(question, seen, None, job)
    planned = found["tokens_per_second"] / one.processes
    memory = f"{found['memory_total_bytes'] / 2**30:.1f} of {found['memory_limit_bytes'] / 2**30:.1f}"
    ratio = planned / one.tokens_per_second
    fits = "yes" if found["fits"] else "no"
    return [
        one.what,
        str(one.processes),
        memory,
        fits,
        f"{planned:,.0f}",
        f"{one.tokens_per_second:,.0f}",
        f"{ratio:.2f}",
        one.source,
    ]


def table() -> str:
    """The table as Markdown."""
    head = ["run", "devices", "GiB planned", "fits", "planned", "published", "ratio", "source"]
    rows = [head, [":--", "--:", "--:", ":--", "--:", "--:", "--:", ":--"], *(row(one) for one in PUBLISHED)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
