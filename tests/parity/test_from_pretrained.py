"""Through files, both ways: what `save_pretrained` wrote is ours by `init=`, and what we export is theirs by `from_pretrained`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import tokenizer

from llmfactory.checkpoint.names.published import open_published
from llmfactory.checkpoint.names.target import target_for
from llmfactory.checkpoint.published import load_published, stored_tensors
from llmfactory.core.safetensors_file import Stored, read_table
from llmfactory.stage.format.spec import Hf
from llmfactory.stage.format.writer import Exported


def bert(name: str) -> Any:
    import transformers

    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=40, pad_token_id=1)
    return getattr(transformers, f"{name}ForMaskedLM")(config)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))


def tables(folder: Path) -> dict[str, Stored]:
    return {name: stored for file in folder.glob("*.safetensors") for name, stored in read_table(file).items()}


def content(stored: Stored) -> bytes:
    return stored.path.read_bytes()[stored.offset : stored.offset + stored.size]


def both_ways(pair: Any, folder: Path, reader: Any) -> None:
    theirs, ours = pair.theirs, dict(pair.ours.named_parameters())
    theirs.save_pretrained(folder / "theirs", max_shard_size="40KB")
    published = open_published(folder / "theirs")
    model = published.spec.build()
    load_published(published, model)
    assert all(torch.equal(weight, ours[name]) for name, weight in model.named_parameters())

    kind = published.family.types[0]
    tensors = stored_tensors(published, published.spec)
    exported = Exported(published.spec, target_for(published.spec, kind), tensors, tokenizer())
    Hf(shard_bytes=30_000).build().write(exported, folder / "ours")
    before, after = tables(folder / "theirs"), tables(folder / "ours")
    assert set(after) <= set(before), "no name of our own"
    for name, stored in after.items():
        assert (stored.dtype, stored.shape) == (before[name].dtype, before[name].shape)
        assert content(stored) == content(before[name]), name

    again, info = reader.from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    state, expected = again.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    tokens = torch.randint(2, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :7]} if theirs.config.is_encoder_decoder else {})}
    with torch.no_grad():
        wanted, got = theirs(**given).logits, again.eval()(**given).logits
    assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max(), "the config says the same model"


@pytest.mark.filterwarnings("ignore")  # transformers warns of some of its own defaults
def test_decoders(pair: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    both_ways(pair, tmp_path, AutoModelForCausalLM)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra", "Albert"])
def test_encoders(name: str, make_pair: Any, tmp_path: Path) -> None:
    pair = make_pair(bert(name))
    both_ways(pair, tmp_path, type(pair.theirs))


def test_encoder_decoders(make_pair: Any, tmp_path: Path) -> None:
    pair = make_pair(t5())
    both_ways(pair, tmp_path, type(pair.theirs))
