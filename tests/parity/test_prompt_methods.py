"""Virtual tokens and trained keys and values beside those of `peft`, with the same weights: logits and gradients in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.peft.p_tuning import DIRECTIONS
from llmfactory.peft.prefix import LayerPrefix, MadePrefix, PrefixNetwork
from llmfactory.peft.prompt import VirtualTokens
from llmfactory.peft.prompt_spec import PromptEncoder
from llmfactory.peft.spec import Prefix, Prompt, PTuning, PTuningV2

P, LAYERS = 5, 3
SIZES = {
    "vocab_size": 103,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=103, n_embd=48, n_layer=LAYERS, n_head=4, n_positions=40))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=80))


def mistral() -> Any:
    """With a window that reaches beyond the trained keys for some tokens only."""
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=80, sliding_window=7))


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=103, hidden_size=48, n_layer=LAYERS, n_head=4))


def bert() -> Any:
    from transformers import BertConfig, BertForTokenClassification

    return BertForTokenClassification(BertConfig(**SIZES, intermediate_size=80, num_labels=4))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {
        "vocab_size": 103,
        "d_model": 48,
        "d_kv": 12,
        "d_ff": 80,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": 4,
    }
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(**sizes))


MODELS = {"gpt2": gpt2, "llama": llama, "mistral": mistral, "bloom": bloom, "bert": bert, "t5": t5}
TASKS = {"bert": "TOKEN_CLS", "t5": "SEQ_2_SEQ_LM"}
METHODS = {
    "prompt": (Prompt(tokens=P), PromptTuningConfig, {}),
    "p_tuning_mlp": (PTuning(tokens=P, hidden=24), PromptEncoderConfig, {"encoder_hidden_size": 24}),
    "p_tuning_lstm": (
        PTuning(tokens=P, hidden=24, encoder=PromptEncoder.lstm, layers=3),
        PromptEncoderConfig,
        {"encoder_hidden_size": 24, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 3, "encoder_dropout": 0.0},
    ),
    "prefix": (Prefix(tokens=P, hidden=20), PrefixTuningConfig, {"encoder_hidden_size": 20, "prefix_projection": True}),
    "p_tuning_v2": (PTuningV2(tokens=P), PrefixTuningConfig, {}),
}
EXACT = {"gpt2", "bert"}
"""The others norm or rotate in float32, whatever their weights are in."""
UNKNOWN = {("bert", "prefix"), ("bert", "p_tuning_v2")}
"""BERT in `transformers` has no place for keys and values of others any more."""


def their_values(adapter: Any, encoder: Any, layer: int, n_layers: int) -> dict[str, torch.Tensor]:
    """What `peft` calls the tensors of one of our adapters."""
    weights = dict(encoder.state_dict())
    if isinstance(adapter, VirtualTokens) and len(weights) == 1:
        return {"vectors": weights["embedding.weight"]}
    if isinstance(adapter, VirtualTokens):
        found = {"embedding": weights["embedding.weight"]}
        lstm = [name for name in weights if name.startswith("lstm_head")]
        maps = zip(("up", "down") if lstm else ("up", "between", "down"), (0, 2, 4), strict=False)
        found |= {f"{ours}.{kind}": weights[f"mlp_head.{theirs}.{kind}"] for ours, theirs in maps for kind in ("weight", "bias")}
        kinds = {"x": "weight_ih", "h": "weight_hh", "x_bias": "bias_ih", "h_bias": "bias_hh"}
        for name in lstm:
            kind, _, place = name.removeprefix("lstm_head.").rpartition("_l")
            which = next(ours for ours, theirs in kinds.items() if theirs == kind)
            found[f"{place.removesuffix('_reverse')}_{DIRECTIONS[place.endswith('_reverse')]}_{which}"] = weights[name]
        return found
    if isinstance(adapter, PrefixNetwork):
        return {
            "embedding": weights["embedding.weight"],
            "up.weight": weights["transform.0.weight"],
            "up.bias": weights["transform.0.bias"],
        }
    if isinstance(adapter, MadePrefix):
        found = {}
        for kind in ("weight", "bias"):
            keys, values = weights[f"transform.2.{kind}"].unflatten(0, (n_layers, 2, -1))[layer]
            found |= {f"keys.{kind}": keys, f"values.{kind}": values}
        return found
    keys, values = weights["embedding.weight"].unflatten(1, (n_layers, 2, -1))[:, layer].unbind(1)
    heads = adapter.keys.shape[0]
    return {name: x.unflatten(1, (heads, -1)).transpose(0, 1) for name, x in (("keys", keys), ("values", values))}


def both(make_pair: Any, model: str, method: str) -> tuple[Any, Any]:
    """Ours and theirs with the same weights, in float64."""
    torch.manual_seed(0)
    spec, config, settings = METHODS[method]
    pair = make_pair(MODELS[model]())
    theirs = pair.theirs.double()
    ours = pair.ours.spec.build()
    spec.apply(ours)
    ours.double()
    ours.load_state_dict(pair.ours.state_dict(), strict=False)
    if model == "t5" and not spec.in_layers:  # with two, they keep vectors of a second stack, which they do not use
        settings = {**settings, "num_transformer_submodules": 1}
    wrapped = get_peft_model(theirs, config(task_type=TASKS.get(model, "CAUSAL_LM"), num_virtual_tokens=P, **settings)).eval()
    encoder = wrapped.prompt_encoder["default"].double()
    for adapter, values in adapters_of(ours, encoder, model):
        adapter.load_state_dict(values)
    return ours.eval(), wrapped


def adapters_of(ours: Any, encoder: Any, model: str) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """Our adapters, each with their tensors. Of an encoder-decoder they give layer i of L the values of layer 2 i modulo L."""
    layer, step = 0, 2 if model == "t5" else 1
    for adapter in ours.modules():
        if isinstance(adapter, (VirtualTokens, PrefixNetwork, LayerPrefix)):
            yield adapter, their_values(adapter, encoder, step * layer % LAYERS, LAYERS)
            layer += isinstance(adapter, LayerPrefix)


def batch(lengths: list[int], model: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Ours, and the mask that they call attention_mask; padding on the right."""
    width = max(lengths)
    tokens = torch.randint(3, 103, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    real = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    rows = {"tokens": tokens, "positions": torch.arange(width).expand_as(tokens) * real, "segments": real}
    if model == "t5":
        written = torch.randint(3, 103, (len(lengths), 6), generator=torch.Generator().manual_seed(2))
        rows = {f"source{'_' if name != 'tokens' else ''}{'' if name == 'tokens' else name}": x for name, x in rows.items()}
        columns = torch.arange(6).expand_as(written)
        rows |= {"tokens": written, "positions": columns, "segments": torch.ones_like(written)}
    return rows, real


CASES = [(model, method) for model in MODELS for method in METHODS if (model, method) not in UNKNOWN]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "method"), CASES)
def test_logits_and_gradients(make_pair: Any, model: str, method: str) -> None:
    ours, theirs = both(make_pair, model, method)
    rows, mask = batch([11, 7, 1], model)
    got = ours.head(ours(rows["tokens"], ours.context(rows)))
    if model == "t5":
        want = theirs(input_ids=rows["source"], attention_mask=mask, decoder_input_ids=rows["tokens"]).logits
        mask = rows["segments"]
    else:
        want = theirs(input_ids=rows["tokens"], attention_mask=mask).logits[:, -rows["tokens"].shape[1] :]
    kept, tolerance = mask.bool(), 1e-10 if model in EXACT else 1e-5
    torch.testing.assert_close(got[kept], want[kept], rtol=0, atol=tolerance * float(want.abs().max()))
    for logits in (got, want):
        F.cross_entropy(logits[kept], logits[kept].detach().argmin(-1)).backward()
    encoder = theirs.prompt_encoder["default"]
    for parameter in encoder.parameters():
        parameter.data = parameter.grad
    for adapter, gradients in adapters_of(ours, encoder, model):
        for name, parameter in adapter.named_parameters():
            if model == "t5" and isinstance(adapter, LayerPrefix):
                continue  # of several layers at once
            largest = float(gradients[name].abs().max())
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=tolerance * largest + 1e-16)
    assert all(parameter.grad is None for name, parameter in ours.named_parameters() if ".adapters." not in f".{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "method"), [("gpt2", "prompt"), ("llama", "p_tuning_lstm"), ("gpt2", "prefix"), ("llama", "p_tuning_v2")]
)
def test_what_they_write(make_pair: Any, model: str, method: str) -> None:
    """Greedily, from prompts of one length, with a cache on both sides."""
    ours, theirs = both(make_pair, model, method)
    prompts = torch.randint(3, 103, (3, 6), generator=torch.Generator().manual_seed(4))
    settings = {"attention_mask": torch.ones_like(prompts), "do_sample": False, "max_new_tokens": 9, "eos_token_id": None}
    want = theirs.generate(input_ids=prompts, **settings, pad_token_id=0)[:, -9:]
    assert generate(ours, prompts.tolist(), max_tokens=9, sampling=GREEDY) == want.tolist()
