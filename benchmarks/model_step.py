"""A training step of our model against the same model in `transformers`: forward, backward, AdamW; bare loops on both sides.

    python benchmarks/model_step.py                            all sizes, 5 rounds
    python benchmarks/model_step.py --sizes llama gpt2 --rounds 7

Sizes: `gpt2`, `llama` have 6 layers of width 384 and the published vocabulary, 8 rows of 256 tokens; `gpt2_tiny`,
`llama_tiny` are as large as the presets of these names, 8 rows of 256 tokens. Variants: `ours` uses the library's fused head and loss,
`ours_plain` the loss on whole logits. Seconds of CPU time a step, median over steps, one thread, one process a sample.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = {"gpt2": 3, "llama": 3, "gpt2_tiny": 8, "llama_tiny": 8}
VARIANTS = ("transformers", "ours", "ours_plain")


def sizes(name: str) -> dict[str, int]:
    if name.endswith("_tiny"):
        hidden = 512 if name.startswith("gpt2") else 384
        return {"vocab": 4096, "dim": 128, "layers": 4, "heads": 4, "hidden": hidden, "rows": 8, "length": 256}
    vocab, hidden = (50257, 1536) if name == "gpt2" else (32000, 1024)
    return {"vocab": vocab, "dim": 384, "layers": 6, "heads": 6, "hidden": hidden, "rows": 8, "length": 256}


def ours(name: str, size: dict[str, int], fused: bool) -> tuple[Any, Callable[[Any], Any]]:
    import torch
    import torch.nn.functional as F

    from llmfactory.core.context import CausalMask, Context
    from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy
    from llmfactory.model.attention.spec import Gqa
    from llmfactory.model.block.spec import PreNorm
    from llmfactory.model.embedding.spec import Token
    from llmfactory.model.ffn.spec import Activation, Glu, Mlp
    from llmfactory.model.head.spec import Lm
    from llmfactory.model.initialize import initialize
    from llmfactory.model.norm.spec import LayerNorm, RmsNorm
    from llmfactory.model.position.spec import Learned, Rope
    from llmfactory.model.spec import DecoderOnly

    gpt = name.startswith("gpt2")
    model = DecoderOnly(
        vocab_size=size["vocab"],
        dim=size["dim"],
        max_positions=1024,
        n_layers=size["layers"],
        norm=LayerNorm() if gpt else RmsNorm(),
        position=Learned() if gpt else Rope(),
        attention=Gqa(n_heads=size["heads"], bias=gpt),
        ffn=(Mlp if gpt else Glu)(hidden=size["hidden"], activation=Activation.gelu_tanh if gpt else Activation.silu),
        block=PreNorm(),
        embedding=Token(),
        head=Lm(tied=True),
    ).build()
    initialize(model, 0)

    def loss(tokens_BT: Any) -> Any:
        inputs, labels = tokens_BT[:, :-1], tokens_BT[:, 1:]
        count, length = inputs.shape
        hidden = model(inputs, Context(torch.arange(length).expand(count, length), CausalMask(length)))
        if fused:
            return linear_cross_entropy(hidden, model.head.weight, labels) / labels.numel()
        return F.cross_entropy(model.head(hidden).flatten(0, 1), labels.flatten())

    return model, loss


def transformers(name: str, size: dict[str, int]) -> tuple[Any, Callable[[Any], Any]]:
    import torch.nn.functional as F
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if name.startswith("gpt2"):
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size["vocab"],
                n_embd=size["dim"],
                n_layer=size["layers"],
                n_head=size["heads"],
                n_inner=size["hidden"],
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size["vocab"],
                hidden_size=size["dim"],
                num_hidden_layers=size["layers"],
                num_attention_heads=size["heads"],
                intermediate_size=size["hidden"],
                tie_word_embeddings=True,
            )
        )

    def loss(tokens_BT: Any) -> Any:
        logits = model(tokens_BT[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())

    return model, loss


def measure(name: str, variant: str) -> float:
    """Median CPU seconds of a step, after one step that allocates."""
    import torch

    size = sizes(name)
    model, loss = transformers(name, size) if variant == "transformers" else ours(name, size, variant == "ours")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(STEPS[name] + 1):
        tokens = torch.randint(0, size["vocab"], (size["rows"], size["length"] + 1), generator=generator)
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss(tokens).backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", nargs=2, metavar=("SIZE", "VARIANT"), help="one measurement in this process")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if arguments.sample:
        print(measure(*arguments.sample))
        return
    from benchmarks.harness import interleave

    for name in arguments.sizes:
        print(f"\n## {name}\n")
        variants = {variant: [__file__, "--sample", name, variant] for variant in VARIANTS}
        interleave(variants, "transformers", arguments.rounds, "CPU s/step")


if __name__ == "__main__":
    main()
