"""What a tokenizer is to the rest: text to ids and back, an id that ends a document, a folder to be kept in.

`encode` never gives `end_id`: a text that spells the end token is a text about it, not the end of the document.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special

FOLDER = "tokenizer"
"""Name of the folder in a run or checkpoint folder."""
ABOUT = "about.json"


@dataclass(frozen=True, slots=True)
class Usage:
    """How text is given to a model, and how it ends what it writes."""

    begin_ids: tuple[int, ...]
    """Stand before a text that is to be continued."""
    stop_ids: tuple[int, ...]
    """The model ends what it writes with one of them."""
    chat_template: str | None = None
    """A Jinja template that makes one text of a conversation; None: the model knows none."""
    decoder_start_id: int | None = None
    """What the decoder of a model with an encoder begins with; None: the end token."""


def between_ends(end_id: int) -> Usage:
    """Of models that we train: a text stands between two end tokens."""
    return Usage((end_id,), (end_id,))


class Tokenizer(ABC):
    """Text to ids and back."""

    vocab_size: int
    """Ids are below it."""
    end_id: int
    """Stands before the first, between two, and after the last document."""

    usage: Usage
    lossless: bool = True
    """A text comes back from its ids: only then bits per byte can be told from the likelihood of the ids."""

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode` of each; several threads may call it at once."""

    @abstractmethod
    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """As `encode_batch`, without a Python object for each id: the fastest way to much text."""

    @abstractmethod
    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each token of `encode`, the characters of the text that it stands for: first, and behind the last."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text, without end tokens. Ids that stand for broken UTF-8 give U+FFFD."""

    def specials(self) -> dict[str, int]:
        """Ids of the tokens that stand for no text (masks, sentinels, turns of a chat), by name."""
        return {}

    @abstractmethod
    def fingerprint(self) -> str:
        """Of everything that a text's tokens, and what is kept with them, depend on."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Into the folder, which is made where it does not exist."""


class TokenizerSource(ABC):
    """How to get a tokenizer for a corpus: train it, or read a file."""

    sample_bytes: int = 0
    """How much text `make` wants to see; 0: the tokenizer is there already."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on besides the text."""

    @abstractmethod
    def make(self, texts: Iterable[str]) -> Tokenizer: ...


def write_about(folder: Path, kind: str, end_id: int, usage: Usage) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"kind": kind, "end_id": end_id, **asdict(usage)}
    (folder / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    """The tokenizer that `save` left in the folder."""
    from llmfactory.data.tokenizer.bytes import ByteTokenizer
    from llmfactory.data.tokenizer.hf_file import HfTokenizer

    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        kind, end_id = str(about["kind"]), int(about["end_id"])
        begin, stop = (tuple(map(int, about.get(key, [end_id]))) for key in ("begin_ids", "stop_ids"))
        template, start = about.get("chat_template"), about.get("decoder_start_id")
    except OSError as error:
        raise UserError(f"no tokenizer in {folder}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT} is damaged: {error}") from error
    usage = Usage(begin, stop, template, None if start is None else int(start))
    if kind == "bytes":
        return ByteTokenizer(usage)
    if kind == "hf":
        return HfTokenizer.read(folder / "tokenizer.json", end_id, usage)
    raise UserError(f"{folder / ABOUT} names an unknown kind of tokenizer, {kind!r}: it was written by another version")


def lacking(tokenizer: Tokenizer, specials: Sequence[Special]) -> int:
    """How many of these special tokens the tokenizer does not have."""
    known = tokenizer.specials()
    return sum(not any(name in known for name in special) for special in specials)


def check_size(size: int, vocab_size: int, name: str, reserved: int = 0) -> None:
    """Every id must have its row in the model's embedding, and so must each special token that is none of the tokenizer's."""
    if size + reserved > vocab_size and reserved:
        raise UserError(
            f"{name} has {size} ids and the objective needs {reserved} more for its special tokens, the model has only {vocab_size} "
            f"(model.vocab_size). Try model.vocab_size={size + reserved}"
        )
    if size > vocab_size:
        raise UserError(
            f"{name} has {size} ids, the model only {vocab_size} (model.vocab_size): an id without its row cannot be embedded. "
            f"Try model.vocab_size={size}"
        )
