"""A folder that `transformers` loads by `AutoModel...from_pretrained`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from llmfactory.checkpoint.files import discard, publish
from llmfactory.checkpoint.names.folder import CONFIG
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.checkpoint.safetensors_writer import NAMES, write_shards
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.hf_folder import FILE, TEMPLATE, with_begin
from llmfactory.stage.format.spec import Hf
from llmfactory.stage.format.writer import Exported, Writer

DTYPES = {name: dtype for dtype, name in NAMES.items()}


class HfWriter(Writer):
    def __init__(self, spec: Hf) -> None:
        self.spec = spec

    def write(self, model: Exported, path: Path) -> None:
        temporary = path.with_name(path.name + ".tmp")
        discard(temporary)
        temporary.mkdir(parents=True)
        try:
            self._write(model, temporary)
            publish(temporary, path)
        except BaseException:
            discard(temporary)
            raise

    def _write(self, model: Exported, folder: Path) -> None:
        wanted = None if self.spec.numbers is None else DTYPES[self.spec.numbers.value]
        described = {name: tensor.to(wanted or tensor.dtype) for name, tensor in model.described().items()}
        stream = to_theirs(model.target.family.entries(model.spec), model.tensors)
        write_shards(folder, described, ((name, t.to(wanted or t.dtype)) for name, t in stream), self.spec.shard_bytes)
        formats = {tensor.dtype for tensor in described.values()}
        dtype = next(kind for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16) if kind in formats)
        special = {"pad_token_id": None, **_special_ids(model.tokenizer), **model.ids}
        _json(folder / CONFIG, {**special, **model.target.config, **model.ids, "torch_dtype": str(dtype).removeprefix("torch.")})
        _json(folder / "generation_config.json", {key: value for key, value in special.items() if value is not None})
        write_tokenizer(folder, model.tokenizer, model.spec.max_positions)
        for name, source in model.files.items():
            shutil.copyfile(source, folder / name)


def _special_ids(tokenizer: HfTokenizer) -> dict[str, Any]:
    usage = tokenizer.usage
    stops: Any = usage.stop_ids[0] if len(usage.stop_ids) == 1 else list(usage.stop_ids)
    return {"bos_token_id": usage.begin_ids[0] if usage.begin_ids else tokenizer.end_id, "eos_token_id": stops}


def write_tokenizer(folder: Path, tokenizer: HfTokenizer, longest: int) -> None:
    """tokenizer.json and the files beside it that name special tokens and hold the chat template."""
    inner, usage = with_begin(tokenizer), tokenizer.usage
    inner.save(str(folder / FILE))
    tokens = {"eos_token": inner.id_to_token(tokenizer.end_id)}
    if usage.begin_ids:
        tokens["bos_token"] = inner.id_to_token(usage.begin_ids[0])
    _json(folder / "special_tokens_map.json", tokens)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": longest}
    template = {} if usage.chat_template is None else {"chat_template": usage.chat_template}
    _json(folder / "tokenizer_config.json", {**about, **tokens, **template})
    if usage.chat_template is not None:
        (folder / TEMPLATE).write_text(usage.chat_template, encoding="utf-8")


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
