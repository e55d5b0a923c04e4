"""Weights of HF folders and GGUF files in our models: equal logits with those who wrote them, and what is refused."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import gguf_file, hf_folder, llama

from llmfactory.checkpoint import published as published_module
from llmfactory.checkpoint.names.published import Published, open_published
from llmfactory.checkpoint.published import load_published, read, stored_tensors
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.core.safetensors_file import read_table
from llmfactory.model.skeleton import Skeleton


def loaded(path: Path) -> Skeleton:
    published = open_published(path)
    model = published.spec.build()
    load_published(published, model)
    return model.eval()


@torch.no_grad()
def distance(ours: Skeleton, theirs: Any) -> float:
    """Largest difference of logits, by the largest logit."""
    tokens = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(1))
    context = Context(torch.arange(24).expand(2, 24), CausalMask(24))
    logits, expected = ours.head(ours(tokens, context)), theirs(tokens).logits
    return float((logits - expected).abs().max() / expected.abs().max())


def test_a_folder_gives_the_logits_of_its_writer(tmp_path: Path) -> None:
    theirs = llama()
    assert distance(loaded(hf_folder(tmp_path / "m", theirs)), theirs) < 1e-5


def test_shards(tmp_path: Path) -> None:
    theirs = llama()
    folder = hf_folder(tmp_path / "m", theirs, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert distance(loaded(folder), theirs) < 1e-5


def test_a_model_saved_without_its_head_has_shorter_names(tmp_path: Path) -> None:
    """As openai-community/gpt2 on the hub: `h.0.ln_1.weight`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.transformer.save_pretrained(tmp_path / "m")
    about = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**about, "architectures": ["GPT2LMHeadModel"]}))
    assert "wte.weight" in read_table(tmp_path / "m" / "model.safetensors")
    assert distance(loaded(tmp_path / "m"), theirs) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_may_be_stored_but_must_be_the_embedding(tmp_path: Path, tied: bool) -> None:
    folder = hf_folder(tmp_path / "m", llama(tie_word_embeddings=False))
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "tie_word_embeddings": True}))
    if tied:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors")
        assert torch.equal(loaded(folder).head.weight, tensors["lm_head.weight"])
    else:
        with pytest.raises(UserError, match=r"lm_head.weight differs from the embedding"):
            loaded(folder)


@pytest.mark.parametrize(("stored", "ours"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_stored_numbers_become_those_of_the_model(tmp_path: Path, stored: torch.dtype, ours: torch.dtype) -> None:
    folder = hf_folder(tmp_path / "m", llama().to(stored))
    published = open_published(folder)
    model = published.spec.build().to(ours)
    load_published(published, model)
    assert model.embedding.weight.dtype == ours
    assert read(published, "model.norm.weight").dtype == stored
    assert torch.equal(model.norm.weight.to(stored), read(published, "model.norm.weight"))
    assert {tensor.dtype for tensor in stored_tensors(published, published.spec).values()} == {stored}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_gguf_file_gives_the_logits_of_its_writer(tmp_path: Path, kind: str) -> None:
    """The writer here reorders the rows of q and k on its own."""
    theirs = llama()
    if kind != "F32":
        for weight in theirs.parameters():
            if weight.dim() > 1:
                weight.data = weight.data.to(torch.float16 if kind == "F16" else torch.bfloat16).float()
    assert distance(loaded(gguf_file(tmp_path / "m.gguf", theirs, kind)), theirs) < 1e-5


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_matrices_are_those_of_the_package(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in slabs of a few rows; within the error of the format of what was written."""
    theirs = llama()
    published = open_published(gguf_file(tmp_path / "m.gguf", theirs, kind))
    monkeypatch.setattr(published_module, "SLAB", 100)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    there = reader["blk.1.ffn_down.weight"]
    found = read(published, "model.layers.1.mlp.down_proj.weight")
    assert torch.equal(found, torch.from_numpy(gguf.dequantize(there.data, there.tensor_type)))
    written = theirs.model.layers[1].mlp.down_proj.weight
    assert (found - written).abs().max() < {"8": 0.01, "5": 0.05, "4": 0.1}[kind[1]] * written.abs().max() * 2
    q = read(published, "model.layers.0.self_attn.q_proj.weight")
    assert (q - theirs.model.layers[0].self_attn.q_proj.weight).abs().max() < 0.2, "the rows are in their own order again"


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package cannot write them: the blocks are any bytes."""
    wanted = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[wanted]
    blocks = torch.randint(0, 60, (6, 2 * block_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", blocks, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from llmfactory.core.gguf_file import read_gguf

    monkeypatch.setattr(published_module, "SLAB", 2 * block_bytes)
    found = published_module.stored_tensor(read_gguf(tmp_path / "m.gguf").tensors["t"])
    assert found.shape == (6, 2 * block)
    assert torch.equal(found, torch.from_numpy(gguf.dequantize(blocks, wanted)))


def test_no_more_than_a_tensor_beside_the_model(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", llama(vocab_size=8000))
    published = open_published(folder)
    model = published.spec.build()
    largest = max(stored.size for stored in published.tensors.values())
    sizes: list[int] = []
    whole = published_module._bytes

    def watched(*arguments: Any) -> bytearray:
        sizes.append(tracemalloc.get_traced_memory()[0])
        return whole(*arguments)

    tracemalloc.start()
    published_module._bytes = watched
    try:
        load_published(published, model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        published_module._bytes = whole
        tracemalloc.stop()
    assert len(sizes) == len(published.tensors)
    assert largest <= peak < 1.5 * largest + 200_000


def drop(published: dict[str, Any]) -> None:
    del published["model.norm.weight"]


def add(published: dict[str, Any]) -> None:
    published["model.extra.weight"] = torch.zeros(3)


def reshape(published: dict[str, Any]) -> None:
    published["model.layers.0.mlp.up_proj.weight"] = torch.zeros(48, 32)


def integers(published: dict[str, Any]) -> None:
    published["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop, "missing: model.norm.weight"),
        (add, "unexpected: model.extra.weight"),
        (reshape, r"model.layers.0.mlp.up_proj.weight is \[48, 32\] in model.safetensors, its config says \[64, 32\]"),
        (integers, "model.norm.weight is stored as I8"),
    ],
)
def test_tensors_that_are_not_those_of_the_config(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = hf_folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=said) as raised:
        loaded(folder)
    assert str(folder) in str(raised.value)


def test_a_misshapen_tensor_of_a_gguf_file(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", llama(intermediate_size=64), extra=None)
    content = path.read_bytes().replace(b"llama.feed_forward_length\x04\0\0\0\x40", b"llama.feed_forward_length\x04\0\0\0\x20")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mlp.up_proj.weight is \[64, 32\] in m.gguf, its config says \[32, 32\]"):
        loaded(path)


def test_a_model_that_was_changed_meanwhile_names_the_tensors(tmp_path: Path) -> None:
    import dataclasses

    published = open_published(hf_folder(tmp_path / "m"))
    other = dataclasses.replace(published.spec, n_layers=3)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"does not fit the model:\n  missing in the checkpoint: blocks.2"):
        load_published(published, other.build())
    with pytest.raises(UserError, match=r"does not fit the model"):
        stored_tensors(published, other)


def test_a_file_that_shrinks_after_its_table_was_read(tmp_path: Path) -> None:
    published: Published = open_published(hf_folder(tmp_path / "m"))
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="has been cut off since its table was read"):
        load_published(published, published.spec.build())
