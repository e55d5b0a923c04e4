"""The tokenizer of a published folder: its file, and the files beside it that say how the model is spoken to.

The file is `tokenizer.json`; where there is none, an older one: a `.model` of SentencePiece, BERT's `vocab.txt`, GPT-2's pair.
The token that ends a document stands in `tokenizer_config.json` or `special_tokens_map.json`; the ids at which the model stops
in `generation_config.json` or `config.json`; the chat template in `chat_template.jinja` or `tokenizer_config.json`. What stands
before a text is what the tokenizer's own post-processor puts there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer, end_of, parse
from llmfactory.data.tokenizer.older_files import older
from llmfactory.data.tokenizer.tokenizer import ABOUT, Usage, load

FILE, CONFIG = "tokenizer.json", "config.json"
TEMPLATE = "chat_template.jinja"
NAMED_IN = ("tokenizer_config.json", "special_tokens_map.json")
STOPS_IN = ("generation_config.json", CONFIG)


def read_folder(folder: Path, end_token: str | None = None) -> HfTokenizer:
    """Of a folder that was published, or that `Tokenizer.save` left. `end_token`: None for the one that the files name."""
    if (folder / ABOUT).is_file() and end_token is None:
        kept = load(folder)
        if not isinstance(kept, HfTokenizer):
            raise UserError(f"{folder} holds no {FILE} but a tokenizer of bytes: data/tokenizer=bytes")
        return kept
    named = {key: value for name in reversed(NAMED_IN) for key, value in _json(folder / name).items() if value is not None}
    inner = parse(folder / FILE) if (folder / FILE).is_file() else older(folder, named, _json(folder / CONFIG).get("model_type"))
    known = (_text(named.get(key)) for key in ("eos_token", "sep_token"))
    token = end_token or next((name for name in known if name is not None), None)
    end_id = end_of(inner, folder / FILE, token)
    stops = [stop for name in STOPS_IN for stop in _ids(_json(folder / name).get("eos_token_id"))]
    starts = [start for name in STOPS_IN for start in _ids(_json(folder / name).get("decoder_start_token_id"))]
    stop_ids = tuple(dict.fromkeys([end_id, *stops]))
    usage = Usage(begin_of(inner), stop_ids, _template(folder, named), next(iter(starts), None))
    return HfTokenizer(inner, end_id, usage)


def begin_of(inner: Any) -> tuple[int, ...]:
    """Ids that the post-processor puts before a text."""
    inner.no_padding()
    inner.no_truncation()
    bare = inner.encode("a", add_special_tokens=False).ids
    whole = inner.encode("a", add_special_tokens=True).ids
    added = len(whole) - len(bare)
    return next((tuple(whole[:at]) for at in range(added + 1) if whole[at : at + len(bare)] == bare), ())


def with_begin(tokenizer: HfTokenizer) -> Any:
    """The inner tokenizer with a post-processor that puts before a text what the model wants there."""
    from tokenizers import Tokenizer, processors

    inner = Tokenizer.from_str(tokenizer.inner.to_str())
    begin = tokenizer.usage.begin_ids
    if begin_of(inner) != begin:
        tokens = [(inner.id_to_token(number), number) for number in begin]
        whole = " ".join([*(str(inner.id_to_token(number)) for number in begin), "$A"])
        inner.post_processor = processors.TemplateProcessing(single=whole, pair=f"{whole} $B:1", special_tokens=tokens)
    return inner


def _template(folder: Path, named: dict[str, Any]) -> str | None:
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = named.get("chat_template")
    if isinstance(found, list):  # several, each with a name
        found = next((one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    """A mapping; of a file that is not there, an empty one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no mapping")
    return content


def _text(token: Any) -> str | None:
    """Of a token that is written as its text, or as a mapping with it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _ids(value: Any) -> list[int]:
    return [value] if type(value) is int else [one for one in value if type(one) is int] if isinstance(value, list) else []
