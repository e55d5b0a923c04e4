"""A `tokenizer.json` of the Hugging Face `tokenizers` library: read, checked against the model, used as it is."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.patterns import letters
from llmfactory.data.tokenizer.pieces import add
from llmfactory.data.tokenizer.spec import HfFile
from llmfactory.data.tokenizer.tokenizer import (
    ABOUT,
    Tokenizer,
    TokenizerSource,
    Usage,
    between_ends,
    check_size,
    lacking,
    load,
    write_about,
)

if TYPE_CHECKING:
    from llmfactory.data.tokenizer.ranks import Ranks

END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]")
"""How known tokenizers spell the end of a document."""


SAMPLE = " Two  words,\n\n\tÉté\r\n 数学。ａﬁ \u200b\x01 👩‍👧 don't  "
"""What a tokenizer that changes text (small letters, other forms of a letter, white space) does not give back."""


class HfTokenizer(Tokenizer):
    """Around a `tokenizers.Tokenizer`; neither adds special tokens nor recognizes them in text."""

    def __init__(self, inner: Any, end_id: int, usage: Usage | None = None) -> None:
        """`usage`: None for a model that we train."""
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self.inner, self.end_id, self.usage = inner, end_id, usage or between_ends(end_id)
        self.lossless = knows_all(inner) and inner.decode(inner.encode(SAMPLE, add_special_tokens=False).ids) == SAMPLE
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def read(cls, path: Path, end_id: int, usage: Usage | None = None) -> HfTokenizer:
        return cls(parse(path), end_id, usage)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        found = [None if self._ranks is None else self._ranks.encode(text) for text in texts]
        left = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        others = iter(self.inner.encode_batch_fast(left, add_special_tokens=False) if left else ())
        return [np.array(next(others).ids, np.uint32) if ids is None else ids for ids in found]

    @functools.cached_property
    def _ranks(self) -> Ranks | None:
        """A faster way to the same ids, where there is one."""
        from llmfactory.data.tokenizer.ranks import ranks_of

        return ranks_of(self.inner)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(int(start), int(end)) for start, end in self.inner.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.inner.decode([i for i in ids if i != self.end_id], skip_special_tokens=False)
        return text

    def specials(self) -> dict[str, int]:
        return {token.content: number for number, token in self.inner.get_added_tokens_decoder().items()}

    def fingerprint(self) -> str:
        return f"hf {hashlib.sha256(self.inner.to_str().encode()).hexdigest()} {self.end_id} {self.usage}"

    def save(self, folder: Path) -> None:
        write_about(folder, "hf", self.end_id, self.usage)
        self.inner.save(str(folder / "tokenizer.json"))


def knows_all(inner: Any) -> bool:
    """Whether there is a token for every text."""
    model = inner.model
    if getattr(model, "byte_fallback", False):
        return True
    if type(model).__name__ == "BPE":
        return getattr(model, "unk_token", None) is None or set(letters()) <= inner.get_vocab(with_added_tokens=False).keys()
    return getattr(model, "unk_token", None) is None and getattr(model, "unk_id", None) is None


class FromFile(TokenizerSource):
    """Reads a tokenizer that is there already: nothing is learned from the text."""

    def __init__(self, path: Path, tokenizer: Tokenizer, vocab_size: int, specials: Sequence[Special]) -> None:
        """Raises UserError where the model, of `vocab_size` ids, has no room for it."""
        self.tokenizer = tokenizer
        check_size(tokenizer.vocab_size, vocab_size, str(path), lacking(tokenizer, specials))

    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint()

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return self.tokenizer


class TokenizerFile(FromFile):
    def __init__(self, spec: HfFile, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        from llmfactory.data.tokenizer.hf_folder import read_folder

        path = Path(spec.file).expanduser()
        if (path / ABOUT).is_file() and spec.end_token is None and not spec.special_tokens:
            tokenizer = load(path)  # of any kind: one of bytes, too, knows a chat template
        elif path.is_dir():
            tokenizer = _with(spec.special_tokens, read_folder(path, spec.end_token))
        else:
            inner = parse(path)
            tokenizer = _with(spec.special_tokens, HfTokenizer(inner, end_of(inner, path, spec.end_token)))
        super().__init__(path, tokenizer, vocab_size, specials)


def _with(special_tokens: Sequence[str], tokenizer: HfTokenizer) -> HfTokenizer:
    if not special_tokens:
        return tokenizer
    add(tokenizer.inner, special_tokens)
    return HfTokenizer(tokenizer.inner, tokenizer.end_id, tokenizer.usage)


def end_of(inner: Any, path: Path, token: str | None, key: str = "end_token") -> int:
    """The id of the end token; None: of the first that is known. `key`: which field names it."""
    for name in END_TOKENS if token is None else (token,):
        if (found := inner.token_to_id(name)) is not None:
            return int(found)
    looked = "none of " + ", ".join(END_TOKENS) if token is None else f"no {token!r}"
    raise UserError(f"{path} knows {looked}: name its {key.replace('_', ' ')}, data.tokenizer.{key}=...")


def parse(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file; a `UserError` names the file and what is wrong with it."""
    from tokenizers import Tokenizer as Inner

    content = text_of(path, "tokenizer.json")
    try:
        return Inner.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer.json that `tokenizers` can read: {error}") from error


def text_of(path: Path, kind: str) -> str:
    """Of a file of a tokenizer; `kind`: what it should be. Raises UserError."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no {kind}: not UTF-8") from error
