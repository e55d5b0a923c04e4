"""stage=export: folders that transformers reads with equal logits, files that the package gguf reads tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import SIZES, TEMPLATE, TEXT, gguf_file, hf_folder, interleaved, llama
from tiny_published import gguf_name as name_in_gguf

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.published import open_published
from llmfactory.checkpoint.names.target import at_rest, differences, gguf_metadata, target_for
from llmfactory.checkpoint.published import load_published, read
from llmfactory.checkpoint.safetensors_writer import write_shards
from llmfactory.config.spec import Job
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.core.safetensors_file import read_table
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.hf_folder import read_folder
from llmfactory.data.tokenizer.spec import ByteBpe, Split
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.stage.format.spec import FormatSpec, Gguf, Hf, Number, Quantization
from llmfactory.stage.initial import load_tokenizer
from llmfactory.stage.spec import Export

TOKENS = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(1))


def export(job: Job, path: Path, form: FormatSpec | None = None, family: str | None = None) -> dict[str, Any]:
    stage = Export(format=form or Hf(), path=str(path), family=family)
    return stage.build().run(replace(job, stage=stage), None)


def start_from(job: Job, path: Path) -> Job:
    return replace(job, init=str(path), model=open_published(path).spec)


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    context = Context(torch.arange(tokens.shape[1]).expand(tokens.shape), CausalMask(tokens.shape[1]))
    return model.head(model(tokens, context))


def trained(job: Job) -> Any:
    """The model of the run folder that `job` starts from."""
    model = job.model.build().double()
    io.load_weights(io.find(Path(str(job.init))), model)
    return model.eval()


@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_a_run_of_ours_in_transformers(job: Job, tmp_path: Path, shard_bytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = export(job, tmp_path / "out", Hf(shard_bytes=shard_bytes))
    assert (result["family"], result["exported"]) == ("llama", str(tmp_path / "out"))
    assert "llama" in capsys.readouterr().out
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) == (1 if shard_bytes == 10**9 else 14)
    assert sum(size > 4000 for size in sizes) == 1, "but for the embedding, which is larger than a file shall be"
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float64
    with torch.no_grad():
        expected = theirs.eval()(TOKENS).logits
    ours = logits(trained(job))
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max(), "transformers rotates in float32"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the words, é"
    assert tokenizer(text)["input_ids"] == [ByteTokenizer.end_id, *ByteTokenizer().encode(text)]
    assert tokenizer.decode(ByteTokenizer().encode(text)) == text
    assert (tokenizer.eos_token_id, theirs.generation_config.eos_token_id) == (256, 256)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_every_tensor_has_the_same_bytes(job: Job, tmp_path: Path, stored: torch.dtype, tied: bool) -> None:
    """320 rows of embedding for 300 ids: a padded vocabulary."""
    folder = hf_folder(tmp_path / "m", llama(tie_word_embeddings=tied).to(stored), max_shard_size="40KB")
    export(start_from(job, folder), tmp_path / "out")
    before, after = (
        {name: entry for file in sorted(place.glob("*.safetensors")) for name, entry in read_table(file).items()}
        for place in (folder, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    for name, one in before.items():
        other = after[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        content = [part.path.read_bytes()[part.offset : part.offset + part.size] for part in (one, other)]
        assert content[0] == content[1], name
    assert ("lm_head.weight" in after) is not tied
    assert open_published(tmp_path / "out").spec == open_published(folder).spec
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), "as it came"
    assert read_folder(tmp_path / "out").usage == read_folder(folder).usage


def test_numbers_can_be_rounded_and_the_family_forced(job: Job, tmp_path: Path) -> None:
    export(job, tmp_path / "out", Hf(numbers=Number.bfloat16), family="llama")
    table = read_table(tmp_path / "out" / "model.safetensors")
    assert {stored.dtype for stored in table.values()} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with pytest.raises(UserError, match="no family 'gpt9'"):
        export(job, tmp_path / "other", family="gpt9")


def test_a_chat_model_keeps_its_template(job: Job, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = gguf_file(tmp_path / "m.gguf")
    export(start_from(job, file), tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    ours, theirs = load_tokenizer(file, 320), read_folder(tmp_path / "out")
    assert (theirs.usage, theirs.end_id) == (ours.usage, ours.end_id)
    assert theirs.encode("some words, 123") == ours.encode("some words, 123")


@pytest.mark.parametrize("numbers", list(Quantization))
def test_a_gguf_file_is_read_back_tensor_by_tensor(job: Job, tmp_path: Path, numbers: Quantization) -> None:
    """By the package's own reader, against rows that are reordered here."""
    theirs = llama()
    path = tmp_path / "out.gguf"
    export(start_from(job, hf_folder(tmp_path / "m", theirs)), path, Gguf(numbers=numbers))
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = {name_in_gguf(name): (name, weight) for name, weight in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, (original, weight) in expected.items():
        wanted = weight.detach().numpy()
        for part, heads in (("q_proj", SIZES["num_attention_heads"]), ("k_proj", SIZES["num_key_value_heads"])):
            wanted = interleaved(wanted, heads) if part in original else wanted
        tensor = found[name]
        kind = gguf.GGMLQuantizationType[numbers.value if wanted.ndim > 1 else "F32"]
        assert tensor.tensor_type == kind
        assert tuple(tensor.shape[::-1]) == wanted.shape
        assert (gguf.dequantize(tensor.data, kind) == gguf.dequantize(gguf.quantize(wanted, kind), kind)).all(), name
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == {"F32": 0, "F16": 1, "Q8_0": 7}[numbers.value]
    assert fields["llama.rope.freq_base"] == 500.0
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert len(fields["tokenizer.ggml.tokens"]) == 320
    assert (fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]) == (4, 2)


@pytest.mark.parametrize("from_gguf", [True, False])
def test_a_gguf_file_there_and_back(job: Job, tmp_path: Path, from_gguf: bool) -> None:
    if from_gguf:
        source = gguf_file(tmp_path / "m.gguf")
        job = start_from(job, source)
    export(job, tmp_path / "out.gguf", Gguf(numbers=Quantization.f32))
    published = open_published(tmp_path / "out.gguf")
    assert differences(job.model, published.spec) == []
    model = published.spec.build()
    load_published(published, model)
    if from_gguf:
        original = open_published(source)
        for name in original.tensors:
            assert torch.equal(read(published, name), read(original, name))
    else:
        ours = logits(trained(job))
        assert (logits(model.eval()) - ours).abs().max() < 1e-5 * ours.abs().max()
        tokenizer = load_tokenizer(tmp_path / "out.gguf", 257)
        assert tokenizer.encode("words é") == ByteTokenizer().encode("words é")
        assert (tokenizer.usage, tokenizer.end_id) == (ByteTokenizer().usage, ByteTokenizer.end_id)


def test_rows_that_32_does_not_divide_stay_f16(job: Job, tmp_path: Path) -> None:
    export(job, tmp_path / "out.gguf", Gguf(numbers=Quantization.q8_0))  # 16 wide, 24 in the feed-forward
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors} == {"F16", "F32"}


def test_llama_3s_scaling_goes_into_the_file_and_back(job: Job, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    folder = hf_folder(tmp_path / "m", llama(rope_parameters=rope, max_position_embeddings=131072))
    export(start_from(job, folder), tmp_path / "out.gguf", Gguf())
    assert "rope_freqs.weight" in {tensor.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert open_published(tmp_path / "out.gguf").spec == open_published(folder).spec


@pytest.mark.parametrize("form", [Hf(), Gguf()], ids=["hf", "gguf"])
def test_a_failed_export_leaves_nothing_and_another_is_not_overwritten(
    job: Job, tmp_path: Path, form: FormatSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "out"

    def fail(*arguments: Any) -> Any:
        yield from ()
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        module = sys.modules[type(form.build()).__module__]
        patched.setattr(module, "to_theirs", fail)
        with pytest.raises(OSError, match="the disk is full"):
            export(job, path, form)
    assert not list((tmp_path / "new").iterdir())
    export(job, path, form)
    with pytest.raises(UserError, match=r"out is there already: remove it, or give another stage.path"):
        export(job, path, form)


def test_a_split_that_gguf_has_no_name_for_is_told_before_anything_is_written(job: Job, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    made = ByteBpe(split=Split.indent).build(300).make(TEXT)
    assert isinstance(made, HfTokenizer)
    made.inner.save(str(folder / "tokenizer.json"))
    job = start_from(job, folder)
    with pytest.raises(UserError, match=r"no name for .*stage/format=hf"):
        export(job, tmp_path / "out.gguf", Gguf())
    assert not (tmp_path / "out.gguf").exists()


def test_which_family(job: Job) -> None:
    """The first that says it exactly; how it was trained is no matter, what it computes is."""
    model: Any = job.model
    assert target_for(model).family.types[0] == "llama"
    assert target_for(replace(model, dropout=0.1, depth_scaled_init=False)).config["model_type"] == "llama"
    assert target_for(replace(model, init_std=0.3)).config["initializer_range"] == 0.3
    biased = replace(model, attention=replace(model.attention, qkv_bias=True))
    assert target_for(biased).config["model_type"] == "qwen2"
    assert target_for(replace(model, norm=replace(model.norm, eps=1e-6))).config["model_type"] == "llama", "not baichuan"
    with pytest.raises(Inexpressible, match=r"llama: .*layer_norm where this family has rms_norm"):
        target_for(replace(model, norm=LayerNorm()))
    with pytest.raises(Inexpressible, match="layer_norm"):
        target_for(replace(model, norm=LayerNorm()), "llama")
    scaled = replace(model, head=replace(model.head, scale=2.0))
    with pytest.raises(Inexpressible, match="scale"):
        target_for(scaled, "llama")


def test_what_differs_between_two_models_is_named(job: Job) -> None:
    model: Any = job.model
    plain = replace(model, attention=replace(model.attention, n_kv_heads=None))
    said = replace(model, attention=replace(model.attention, n_kv_heads=4, head_dim=4))
    assert differences(plain, said) == [], "None counts as what it stands for"
    assert differences(model, replace(model, norm=LayerNorm()))[0] == "norm.='rms_norm'"
    assert any("n_kv_heads=2" in line for line in differences(model, plain))
    assert at_rest(replace(model, dropout=0.3)) == at_rest(model) != model


def test_gguf_says_less_than_a_config(job: Job) -> None:
    model: Any = job.model
    target = target_for(model)
    assert gguf_metadata(model, target)["llama.block_count"] == 2
    with pytest.raises(Inexpressible, match="hidden_act"):
        relu = replace(model, ffn=replace(model.ffn, activation=type(model.ffn.activation).relu))
        gguf_metadata(relu, target_for(relu))


def test_shards_are_what_was_announced(tmp_path: Path) -> None:
    described = {"a": torch.empty(4, device="meta"), "b": torch.empty(2, dtype=torch.float16, device="meta")}
    with pytest.raises(ValueError, match="b stands where a was announced"):
        write_shards(tmp_path, described, iter([("b", torch.zeros(2))]), 10**9)
    with pytest.raises(ValueError, match="a stands where a was announced"):
        write_shards(tmp_path, described, iter([("a", torch.zeros(5))]), 10**9)
    assert dataclasses.is_dataclass(Hf)
