"""A `tokenizer.json` of the Hugging Face `tokenizers` library: read, checked against the model, used as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.spec import HfFile
from llmfactory.data.tokenizer.tokenizer import Special, Tokenizer, TokenizerSource, check_size, lacking, write_about

END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]")
"""How known tokenizers spell the end of a document."""


class HfTokenizer(Tokenizer):
    """Around a `tokenizers.Tokenizer`; neither adds special tokens nor recognizes them in text."""

    def __init__(self, inner: Any, end_id: int) -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self.inner, self.end_id = inner, end_id
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def read(cls, path: Path, end_id: int) -> HfTokenizer:
        return cls(parse(path), end_id)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.inner.decode([i for i in ids if i != self.end_id], skip_special_tokens=False)
        return text

    def specials(self) -> dict[str, int]:
        return {token.content: number for number, token in self.inner.get_added_tokens_decoder().items()}

    def save(self, folder: Path) -> None:
        write_about(folder, "hf", self.end_id)
        self.inner.save(str(folder / "tokenizer.json"))


class TokenizerFile(TokenizerSource):
    def __init__(self, spec: HfFile, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        path = Path(spec.file).expanduser()
        self.path = path / "tokenizer.json" if path.is_dir() else path
        inner = parse(self.path)
        self.tokenizer = HfTokenizer(inner, self._end(inner, spec.end_token))
        check_size(self.tokenizer.vocab_size, vocab_size, str(self.path), lacking(self.tokenizer, specials))

    def _end(self, inner: Any, token: str | None) -> int:
        for name in END_TOKENS if token is None else (token,):
            if (found := inner.token_to_id(name)) is not None:
                return int(found)
        looked = "none of " + ", ".join(END_TOKENS) if token is None else f"no {token!r}"
        raise UserError(f"{self.path} knows {looked}: name its end token, data.tokenizer.end_token=...")

    def fingerprint(self) -> str:
        content = self.tokenizer.inner.to_str()
        return f"hf {hashlib.sha256(content.encode()).hexdigest()} {self.tokenizer.end_id}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return self.tokenizer


def parse(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file; a `UserError` names the file and what is wrong with it."""
    from tokenizers import Tokenizer as Inner

    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no tokenizer.json: not UTF-8") from error
    try:
        return Inner.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer.json that `tokenizers` can read: {error}") from error
