"""Folders of `peft`: what we write it loads, what it writes we load, with the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

from llmfactory.checkpoint.adapter import tensors_in, to_folder
from llmfactory.checkpoint.names.adapter import CONFIG, WEIGHTS, open_adapter
from llmfactory.checkpoint.names.adapter_method import Outgoing
from llmfactory.checkpoint.names.adapter_methods import spec_of
from llmfactory.checkpoint.names.published import open_published
from llmfactory.checkpoint.published import load_published
from llmfactory.parallel.mesh import World
from llmfactory.peft.beginning import begin
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.prompt_spec import PromptEncoder
from llmfactory.peft.spec import Adalora, AdapterSpec, Dora, Ia3, Lora, Prefix, Prompt, PTuning, PTuningV2

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0)
    )


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=24, max_position_embeddings=24))


def gpt_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, max_position_embeddings=24))


def falcon() -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
    return FalconForCausalLM(FalconConfig(**sizes, new_decoder_architecture=True))


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=24))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 31, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0))


MODELS = {"gpt2": gpt2, "llama": llama, "gpt_neox": gpt_neox, "falcon": falcon, "bert": bert, "t5": t5}
MINE: dict[str, AdapterSpec] = {
    "lora": Lora(rank=3, alpha=5.0),
    "lora_of_some": Lora(rank=3, alpha=5.0, rank_stabilized=True, targets=["attention.q", "re:.*[.]0[.].*[.]v", "down"]),
    "lora_and_more": Lora(rank=2, targets=["attention.v"], train=["attention.o", "re:(.*[.])?norm[.].*"]),
    "pissa": Lora(rank=2, alpha=3.0, start=Start.pissa),
    "dora": Dora(rank=3, alpha=5.0, targets=["attention.q", "attention.o"]),
    "adalora": Adalora(rank=3, alpha=5.0, target_rank=2),
    "ia3": Ia3(),
    "prompt": Prompt(tokens=4),
    "p_tuning": PTuning(tokens=4, hidden=12, encoder=PromptEncoder.lstm),
    "prefix": Prefix(tokens=4, hidden=12),
    "p_tuning_v2": PTuningV2(tokens=4),
}
DECODERS = ("gpt2", "llama", "gpt_neox", "falcon")
PAIRS = [(model, "lora_of_some") for model in MODELS]
PAIRS += [(model, method) for model in ("gpt2", "llama") for method in MINE if method != "lora_of_some"]
PAIRS += [("bert", method) for method in ("lora_and_more", "dora", "adalora", "ia3")]
PAIRS += [("t5", method) for method in ("lora", "dora", "ia3", "prompt", "p_tuning_v2")]
"""BERT of `transformers` has no place for keys and values of others."""
TOLERANCE = 1e-5
"""`transformers` rotates and norms in float32, whatever the weights are in."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of each kind."""
    return {model: saved(model, tmp_path_factory.mktemp(model)) for model in MODELS}


def saved(model: str, path: Path) -> Path:
    """A tiny model with weights far from neutral ones, in float64."""
    torch.manual_seed(0)
    theirs = MODELS[model]().double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(path)
    return path


def loaded(path: Path) -> Any:
    import transformers

    kind = json.loads((path / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(path, dtype=torch.float64).eval()


def base_of(path: Path, spec: AdapterSpec | None = None) -> Any:
    published = open_published(path)
    model = published.spec.build()
    if spec is not None:
        spec.apply(model)
    load_published(published, model.double())
    return model.eval()


def ours_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    columns = torch.arange(tokens.shape[1]).expand_as(tokens)
    rows = {"tokens": tokens, "positions": columns, "segments": torch.ones_like(tokens)}
    if model.spec.graph == "encoder_decoder":
        source = tokens.flip(1)
        rows |= {"source": source, "source_positions": columns, "source_segments": torch.ones_like(tokens)}
    return model.head(model(tokens, model.context(rows)))


def their_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    inner = getattr(model, "base_model", model)
    if getattr(inner, "config", model.config).is_encoder_decoder:
        return model(input_ids=tokens.flip(1), attention_mask=torch.ones_like(tokens), decoder_input_ids=tokens).logits
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -tokens.shape[1] :]


def tokens_of() -> torch.Tensor:
    return torch.randint(1, 31, (3, 7), generator=torch.Generator().manual_seed(1))


def trained(path: Path, spec: AdapterSpec) -> Any:
    """Ours with an adapter that has learned something."""
    model = base_of(path, spec)
    generator, begins = torch.Generator().manual_seed(2), isinstance(spec, Lora) and spec.start is Start.pissa
    if begins:
        begin(model, World(torch.device("cpu")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                moved = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                before = 1.0 if name.endswith(("magnitude", "scale")) else parameter if begins or name not in model.added else 0.0
                parameter.copy_(before + moved)
                if name.endswith(".e"):  # some are left of each map
                    parameter[1 + len(name) % 3 :] = 0
    return model


def write(path: Path, base: Path, model: Any, spec: AdapterSpec) -> Path:
    published, plain = open_published(base), base_of(base)
    own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad and name not in model.added}
    outgoing = Outgoing(spec, published.spec, published.family, model, lambda name: plain.get_parameter(name).detach())
    config, tensors = to_folder(outgoing, own)
    save_file({name: tensor.detach() for name, tensor in tensors.items()}, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    return path


def read(path: Path) -> Any:
    adapter = open_adapter(path)
    spec = spec_of(adapter)
    model = base_of(adapter.base.path, spec)
    missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, tensor in tensors_in(adapter):
            model.get_parameter(name).copy_(tensor)
            missing.discard(name)
    assert not missing
    return model


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_peft_loads_what_we_write_and_so_do_we(folders: dict[str, Path], model_name: str, method: str, tmp_path: Path) -> None:
    base, spec, tokens = folders[model_name], MINE[method], tokens_of()
    model = trained(base, spec)
    path = write(tmp_path, base, model, spec)
    want = ours_logits(model, tokens)
    assert (want - ours_logits(base_of(base), tokens)).abs().max() > 1e-2
    theirs = peft.PeftModel.from_pretrained(loaded(base), path).eval()
    torch.testing.assert_close(their_logits(theirs, tokens), want, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours_logits(read(path), tokens), want, rtol=0, atol=1e-10)


THEIRS: dict[str, tuple[str, Any]] = {
    "lora": ("gpt2", lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "lora_patterns": (
        "gpt_neox",
        lambda: peft.LoraConfig(
            r=3,
            target_modules=["query_key_value", "dense"],
            rank_pattern={"layers.1.attention.dense": 5},
            alpha_pattern={"dense": 7},
        ),
    ),
    "rslora": ("bert", lambda: peft.LoraConfig(r=3, use_rslora=True, target_modules=["query", "output.dense"])),
    "dora": ("gpt2", lambda: peft.LoraConfig(r=3, use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)),
    "saved": ("llama", lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "model.norm"])),
    "adalora": (
        "gpt2",
        lambda: peft.AdaLoraConfig(
            init_r=5, target_r=2, lora_alpha=7, total_step=9, target_modules=["c_attn"], fan_in_fan_out=True
        ),
    ),
    "ia3": (
        "gpt2",
        lambda: peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
    ),
    "ia3_t5": ("t5", lambda: peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])),
    "prompt": ("llama", lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prompt_t5": (
        "t5",
        lambda: peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1),
    ),
    "p_tuning": ("gpt2", lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8)),
    "prefix": (
        "llama",
        lambda: peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
        ),
    ),
    "prefix_t5": ("t5", lambda: peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)),
}


@pytest.mark.parametrize("method", THEIRS)
def test_we_load_what_peft_writes(folders: dict[str, Path], method: str, tmp_path: Path) -> None:
    model, config = THEIRS[method]
    theirs = peft.get_peft_model(loaded(folders[model]), config()).double().eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:  # which their files do not hold
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    tokens = tokens_of()
    want = their_logits(theirs, tokens)
    assert (want - ours_logits(base_of(folders[model]), tokens)).abs().max() > 1e-2
    torch.testing.assert_close(ours_logits(read(tmp_path), tokens), want, rtol=0, atol=TOLERANCE)
