"""What a path is: families by their metadata, and folders and files that are refused before anything is read."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tiny_published import gguf_file, hf_folder, llama

from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.folder import inside, read_tables
from llmfactory.checkpoint.names.gguf import config_of, metadata_of
from llmfactory.checkpoint.names.gguf_rope import published_llama3
from llmfactory.checkpoint.names.published import is_published, open_published
from llmfactory.core.errors import UserError
from llmfactory.core.gguf_file import read_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "m", max_shard_size="60KB")


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_both_formats_say_the_same_model(tmp_path: Path) -> None:
    theirs = llama(rms_norm_eps=1e-5)
    folder, file = hf_folder(tmp_path / "m", theirs), gguf_file(tmp_path / "m.gguf", theirs)
    assert open_published(folder).spec == open_published(file).spec
    assert (open_published(folder).origin, open_published(file).origin) == (folder / "config.json", file)


def test_a_run_folder_is_none(folder: Path) -> None:
    assert is_published(folder)
    (folder / "config.yaml").write_text("")
    assert not is_published(folder)
    assert not is_published(folder / "nothing")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt5"}, "model_type 'gpt5' is no family that is known here: there are .*llama"),
        ({"model_type": None}, "model_type None is no family"),
        ({"hidden_size": None}, "its config lacks 'hidden_size'"),
        ({"hidden_size": "wide"}, "its config cannot be read"),
        ({"hidden_act": "unheard_of"}, "the activation 'unheard_of' has no counterpart"),
        ({"num_hidden_layers": 2.5}, "describes a model that cannot be: n_layers=2.5"),
        ({"rms_norm_eps": float("nan")}, "eps=nan must be greater than 0.0"),
        ({"tie_word_embeddings": "yes"}, "head.tied='yes'"),
        ({"num_hidden_layers": 0}, "describes a model that cannot be: n_layers=0 must be at least 1"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type='spiral'"),
    ],
)
def test_a_config_that_cannot_be_understood(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=said) as raised:
        open_published(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json is"):
        open_published(folder)


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "x.pkl"])
def test_pickles_are_refused_and_not_opened(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    os.chmod(folder / name, 0)
    for path in (folder, folder / name):
        with pytest.raises(UserError, match=rf"{name} holds pickled weights.*safe_serialization=True"):
            open_published(path)
    assert not (folder / "exploded").exists()


def test_a_pickle_among_the_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=dict.fromkeys(places, "pytorch_model.bin"))
    with pytest.raises(UserError, match=r"pytorch_model.bin holds pickled weights"):
        open_published(folder)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "link.safetensors"])
def test_a_shard_outside_of_the_folder(folder: Path, name: str) -> None:
    other = hf_folder(folder.parent / "other")
    (folder / "link.safetensors").symlink_to(other / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    edit(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], name))
    with pytest.raises(UserError, match=f"{name} leads out of the folder"):
        open_published(folder)


def test_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    home = tmp_path / "models--x--y"
    real = hf_folder(home / "blobs")
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert open_published(snapshot).spec.dim == 32
    with pytest.raises(UserError, match="leads out of the folder"):
        inside(snapshot, "../../../x")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "has no weight_map"),
        ({"weight_map": {"a": "nowhere.safetensors"}}, "nowhere.safetensors cannot be read"),
    ],
)
def test_a_damaged_index(folder: Path, index: dict[str, Any], said: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=said):
        read_tables(folder)


def test_an_index_that_disagrees_with_its_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    del places["model.norm.weight"]
    edit(index, weight_map=places)
    with pytest.raises(UserError, match=r"disagree about model.norm.weight"):
        open_published(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    with pytest.raises(UserError, match=r"holds no weights: neither model.safetensors nor"):
        open_published(folder)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"llama.attention.sliding_window": 4.0}, "llama.attention.sliding_window=4.0 has no counterpart here"),
        ({"llama.rope.scaling.type": "spiral"}, "llama.rope.scaling.type='spiral' has no counterpart here"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale=0.5 has no counterpart"),
    ],
)
def test_metadata_without_counterpart_are_not_passed_over(tmp_path: Path, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_published(gguf_file(tmp_path / "m.gguf", extra=extra))


def test_scaled_positions_are_read(tmp_path: Path) -> None:
    extra = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config = open_published(gguf_file(tmp_path / "m.gguf", extra=extra)).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    extra = {"llama.rope.scaling.type": "none"}
    assert "rope_scaling" not in open_published(gguf_file(tmp_path / "n.gguf", extra=extra)).config


def test_an_unknown_architecture(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lamma"))
    with pytest.raises(UserError, match="the architecture 'lamma' is none that is known here: there are llama"):
        open_published(path)


def test_numbers_are_those_that_were_meant(tmp_path: Path) -> None:
    """float32 of 1e-5 is 9.99999974737875e-06."""
    config = config_of(read_gguf(gguf_file(tmp_path / "m.gguf", llama(rms_norm_eps=1e-5))))
    assert (config["rms_norm_eps"], config["rope_theta"], config["vocab_size"]) == (1e-5, 500.0, 320)


BASE = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 10, "rope_theta": 500000.0}


def test_what_gguf_cannot_say() -> None:
    with pytest.raises(Inexpressible, match="no architecture for mamba"):
        metadata_of({**BASE, "model_type": "mamba"})
    with pytest.raises(Inexpressible, match="hidden_act='relu'"):
        metadata_of({**BASE, "hidden_act": "relu"})
    with pytest.raises(Inexpressible, match="rope_type='dynamic'"):
        metadata_of({**BASE, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})


def test_llama_3s_scaling_is_the_references() -> None:
    """Factors of transformers' own tables: what each frequency is divided by."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from llmfactory.checkpoint.names.gguf_rope import frequency_factors

    parameters = {**published_llama3(8.0), "rope_theta": 500000.0}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 128, 2).double() / 128)
    factors = frequency_factors({"hidden_size": 256, "num_attention_heads": 2, "rope_parameters": parameters})
    assert torch.allclose(plain / scaled.double(), torch.tensor(factors).double(), rtol=1e-5)
    assert min(factors) == 1.0
    assert max(factors) == 8.0


def refusal_of(path: Path) -> str:
    """What is said; the path itself where the model is accepted."""
    try:
        open_published(path)
    except UserError as error:
        return str(error)
    return str(path)


def test_layers_without_tensors_cost_nothing(folder: Path) -> None:
    """A config may claim any number; the tables say how many there can be."""
    edit(folder / "config.json", num_hidden_layers=10**9)
    with pytest.raises(UserError, match=r"describes 1000000000 layers, but holds 21 tensors"):
        open_published(folder)


@pytest.mark.parametrize("value", [None, 0, -1, 2.5, "x", [], {}, True, 10**30, float("nan")])
def test_any_value_of_any_key_is_read_or_refused_in_words(folder: Path, value: Any) -> None:
    whole = json.loads((folder / "config.json").read_text())
    for key in whole:
        (folder / "config.json").write_text(json.dumps({**whole, key: value}))
        assert str(folder) in refusal_of(folder)


def test_a_tampered_gguf_file_is_read_or_refused_in_words(tmp_path: Path) -> None:
    """Bytes of the metadata and tables, changed at random; tens of thousands were tried by hand."""
    import random

    path = gguf_file(tmp_path / "m.gguf")
    whole, numbers = path.read_bytes(), random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(numbers.choice([1, 2, 4])):
            content[numbers.randrange(12_000)] = numbers.randrange(256)
        path.write_bytes(content)
        assert str(path) in refusal_of(path)


def test_a_text_where_a_number_belongs_is_named(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "six"}))
    with pytest.raises(UserError, match=r"num_hidden_layers='six': a number belongs there"):
        open_published(folder)
