"""Forward and backward of our families against `transformers` with the same weights, in one process, in turn.

    python benchmarks/families.py                          all cases, 7 rounds
    python benchmarks/families.py --cases mixtral packed --rounds 11

Each case makes a model of `transformers` with random weights and gives its config and tensors to `checkpoint/names`, as `init=` does;
both losses must agree before anything is timed. Ours runs model, head and loss as training does (`Skeleton.context`, objective), theirs
`model(..., labels=...)`. Cases are small models of the families: 4 layers of width 256, 8192 ids, 8 rows of 256 tokens.

`packed`: documents of uneven lengths, packed into rows of 256 by us, padded to the longest by theirs; `padded`: padded on both sides.

CPU seconds of the process, one thread, the same allocator for both (`--glibc`: as glibc has it; else as our runs set it up).
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

VOCAB, DIM, LAYERS, HEADS, ROWS, LENGTH = 8192, 256, 4, 4, 8, 256
NO_DROPOUT = {"attention_dropout": 0.0}
IGNORE = -100
Step = Callable[[], Any]
"""Makes the loss."""


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**decoder(), intermediate_size=688))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**decoder(), intermediate_size=512, num_local_experts=8, num_experts_per_tok=2))


def qwen_moe() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    experts = {"moe_intermediate_size": 96, "num_experts": 60, "num_experts_per_tok": 4, "shared_expert_intermediate_size": 384}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**decoder(), **experts))


def decoder() -> dict[str, Any]:
    """What LLaMA's kin call their sizes."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 2 * LENGTH,
        **NO_DROPOUT,
    }


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCAB, "n_embd": DIM, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 2 * LENGTH}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(**sizes, **none, intermediate_size=4 * DIM, max_position_embeddings=2 * LENGTH))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": VOCAB, "d_model": DIM, "d_kv": DIM // HEADS, "d_ff": 4 * DIM, "num_layers": LAYERS, "num_heads": HEADS}
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": bert,
    "t5": t5,
    "mixtral": mixtral,
    "qwen_moe": qwen_moe,
}
DOCUMENTS = ("packed", "padded")
GOALS = {"mixtral": 1.2, "qwen_moe": 1.2, "packed": 1.2}
"""At least this; 1.0 where nothing is said."""


def twin(theirs: Any) -> Any:
    """Our model with the same weights."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    from llmfactory.checkpoint.names.families import family_of
    from llmfactory.checkpoint.names.translate import to_ours

    family = family_of({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    spec = family.spec({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    ours = spec.build()
    with torch.no_grad():
        tensors = dict(revert_weight_conversion(theirs, dict(theirs.named_parameters())))
        ours.load_state_dict(dict(to_ours(family.entries(spec), tensors.__getitem__)))
    return ours.train()


def our_loss(model: Any, batch: Any, isolated: bool) -> Any:
    """Mean over the targets, as a step of training takes it."""
    from llmfactory.objective.objective import Outputs
    from llmfactory.objective.spec import Causal

    hidden = model(batch["tokens"], model.context(batch, isolated))
    total, count = Causal().build()(Outputs(hidden, model.head), batch)["loss"]
    return total / count


def batch_of(**fields: Any) -> Any:
    import torch

    tokens = fields["tokens"]
    usual = {"positions": torch.arange(tokens.shape[1]).expand_as(tokens).contiguous(), "segments": torch.ones_like(tokens)}
    return {**usual, **fields}


def family_case(name: str) -> tuple[Step, Step]:
    """(theirs, ours): rows without padding."""
    import torch

    theirs = FAMILIES[name]().train()
    ours = twin(theirs)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB, (ROWS, LENGTH + 1), generator=generator)
    if name == "bert":
        chosen = torch.rand((ROWS, LENGTH), generator=generator) < 0.15
        inputs, labels = tokens[:, 1:].masked_fill(chosen, 2), tokens[:, 1:].masked_fill(~chosen, IGNORE)
        batch = batch_of(tokens=inputs, labels=labels)
        return (lambda: theirs(input_ids=inputs, labels=labels).loss), (lambda: our_loss(ours, batch, False))
    if name == "t5":
        source, labels = tokens[:, 1:], tokens[:, : LENGTH // 2].contiguous()
        inputs = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)  # 0: the token that starts the decoder
        reads = {f"source_{key}": value for key, value in batch_of(tokens=source).items() if key != "tokens"}
        batch = batch_of(tokens=inputs, labels=labels, source=source, **reads)
        return (lambda: theirs(input_ids=source, labels=labels).loss), (lambda: our_loss(ours, batch, False))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    batch = batch_of(tokens=inputs, labels=labels)
    shifted = {"input_ids": inputs, "shift_labels": labels, "labels": labels, "use_cache": False}
    return (lambda: theirs(**shifted).loss), (lambda: our_loss(ours, batch, False))


def lengths() -> list[int]:
    """Of documents, log-normal as those of pydocs are, for as many tokens as the rows of the other cases."""
    import torch

    generator, found = torch.Generator().manual_seed(0), []
    while sum(found) < ROWS * LENGTH:
        found.append(int(min(LENGTH, max(8, torch.empty(1).log_normal_(math.log(70), 0.8, generator=generator).item()))))
    return found


def documents_case(packed: bool) -> tuple[Step, Step]:
    """(theirs padded, ours packed or padded): LLaMA over the same documents; the first token of each has no target."""
    import torch

    theirs = llama().train()
    ours = twin(theirs)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths()]
    longest = max(map(len, texts))
    rows = [[text] for text in texts]
    if packed:
        rows = []
        for text in sorted(texts, key=len, reverse=True):  # each into the first row that has room
            row = next((row for row in rows if sum(map(len, row)) + len(text) <= LENGTH), None)
            if row is None:
                rows.append([text])
            else:
                row.append(text)
    padded = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    real = (torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]).long()
    batch = joined(rows, LENGTH if packed else longest)
    labels = padded.masked_fill(real == 0, IGNORE)
    inputs = {"input_ids": padded, "attention_mask": real, "labels": labels, "use_cache": False}
    share = real.sum().item() / real.numel()
    print(f"{len(texts)} documents, {int(real.sum())} tokens, {share:.0%} of the padded rows", file=sys.stderr)
    return (lambda: theirs(**inputs).loss), (lambda: our_loss(ours, batch, True))


def joined(rows: list[list[Any]], length: int) -> Any:
    """A batch of rows of several documents each, padded on the right."""
    import torch

    shape = (len(rows), length)
    fields = {name: torch.zeros(shape, dtype=torch.int64) for name in ("tokens", "positions", "segments")}
    labels = torch.full(shape, IGNORE)
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts, 1):
            place = slice(start, start + len(text))
            fields["tokens"][row, place], fields["segments"][row, place] = text, number
            fields["positions"][row, place] = torch.arange(len(text))
            labels[row, start : start + len(text) - 1] = text[1:]
            start += len(text)
    return {**fields, "labels": labels}


def seconds(step: Step) -> float:
    """CPU time of forward and backward; gradients pile up on both sides alike."""
    start = time.process_time()
    step().backward()
    return time.process_time() - start


def measure(name: str, rounds: int) -> tuple[float, str]:
    """Median ratio theirs / ours, and the row of the table."""
    theirs, ours = documents_case(name == "packed") if name in DOCUMENTS else family_case(name)
    want, got = theirs(), ours()
    if abs(want.item() - got.item()) > 1e-4 * abs(want.item()):
        raise AssertionError(f"{name}: their loss is {want.item():.6f}, ours {got.item():.6f}: not the same model")
    del want, got
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for turn in range(-1, rounds):  # the first allocates and is not counted
        gc.collect()
        pair = [("theirs", theirs), ("ours", ours)]
        for side, step in pair if turn % 2 else reversed(pair):
            spent = seconds(step)
            if turn >= 0:
                times[side].append(spent)
    ratios = [theirs / ours for theirs, ours in zip(times["theirs"], times["ours"], strict=True)]
    middle, goal = statistics.median(ratios), GOALS.get(name, 1.0)
    cells = [name, *(f"{statistics.median(times[side]) * 1e3:.0f}" for side in ("theirs", "ours"))]
    cells += [f"**{middle:.2f}** ({min(ratios):.2f}-{max(ratios):.2f})", f"{goal}"]
    return middle, "| " + " | ".join(cells) + " |"


def main() -> None:
    cases = [*FAMILIES, *DOCUMENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--glibc", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch
    import transformers

    from benchmarks.harness import machine
    from llmfactory.run.allocator import keep_freed_memory

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if not arguments.glibc:
        keep_freed_memory()
    print("| case | transformers, ms | ours, ms | transformers / ours: median (spread) | goal |\n|---|---|---|---|---|")
    for name in arguments.cases:
        torch.manual_seed(0)
        print(measure(name, arguments.rounds)[1], flush=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{arguments.rounds} rounds, {machine()}, transformers {transformers.__version__}, load {load}")


if __name__ == "__main__":
    main()
