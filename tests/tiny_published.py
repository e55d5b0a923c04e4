"""Small published models as others write them: by `transformers`, and by the writer of the package `gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, Split

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}assistant:"
TEXT = ["some words and some more words, 12345 of them " * 30]


def tokenizer(vocab_size: int = 300) -> HfTokenizer:
    made = ByteBpe(vocab_size=vocab_size, split=Split.gpt2).build(vocab_size).make(TEXT)
    assert isinstance(made, HfTokenizer)
    return made


def llama(**config: Any) -> Any:
    """Of `transformers`, with weights that are not those of a fresh model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 500.0}
    values = {"vocab_size": 320, "max_position_embeddings": 64, "rope_parameters": rope, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **values, "bos_token_id": 0, "eos_token_id": 0, **config}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def hf_folder(folder: Path, model: Any = None, **saving: Any) -> Path:
    """A folder of `save_pretrained`, with a tokenizer and a chat template."""
    (model or llama()).save_pretrained(folder, **saving)
    tokenizer().inner.save(str(folder / "tokenizer.json"))
    named = {"eos_token": {"content": "<|endoftext|>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of q's and k's rows: pair i of a head, which are its rows i and i + width / 2, in rows 2i and 2i + 1."""
    width = len(weight) // heads
    rows = [head * width + pair + half for head in range(heads) for pair in range(width // 2) for half in (0, width // 2)]
    return weight[rows]


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def gguf_file(path: Path, model: Any = None, kind: str = "F32", extra: dict[str, Any] | None = None) -> Path:
    """A LLaMA by `gguf.GGUFWriter`. `extra`: further metadata (floats and strings)."""
    import gguf

    model = model or llama()
    config, made = model.config, tokenizer(320)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    content = json.loads(made.inner.to_str())
    vocab = {number: token for token, number in made.inner.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([vocab.get(number, f"[PAD{number}]") for number in range(config.vocab_size)])
    writer.add_token_types([3 if number == made.end_id else 1 if number in vocab else 5 for number in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_eos_token_id(made.end_id)
    writer.add_bos_token_id(made.end_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.named_parameters():
        numbers = tensor.detach().float().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            numbers = interleaved(numbers, heads) if part in name else numbers
        stored = wanted if numbers.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(np.ascontiguousarray(numbers), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
