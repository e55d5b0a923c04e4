r"""A `.model` file of SentencePiece: pairs with scores, or pieces of a unigram model (Kudo 2018), as its own program reads them.

The file is a protocol-buffer message, `ModelProto` of sentencepiece_model.proto. Of it are read: the pieces with score and type,
which algorithm they are for, and how text is normalized.

Control pieces and bytes stand for no text. The library's unigram model would match their names in a text, so text is cut
within such a name. Pieces that somebody defined are taken from the text before anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.gguf_file import Kind
from llmfactory.data.tokenizer.hf_file import FromFile, HfTokenizer, end_of
from llmfactory.data.tokenizer.pieces import SPACE, add, merges_of, normalizer, pairs
from llmfactory.data.tokenizer.pieces import decoder as decoder_of
from llmfactory.data.tokenizer.spec import SentencepieceFile
from llmfactory.data.tokenizer.tokenizer import Usage
from llmfactory.data.tokenizer.wire import Damaged, parse

UNIGRAM, PAIRS = 1, 2
"""Values of `TrainerSpec.model_type`."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a file says."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[Kind, ...]
    is_unigram: bool
    byte_fallback: bool
    prefix: bool
    """A space is put before the text."""
    one_space: bool
    """White space at the ends is dropped, and runs of spaces become one."""
    charsmap: bytes
    """What characters become, in the form of the `darts-clone` library; empty: themselves."""

    def of_kind(self, kind: Kind) -> list[str]:
        return [piece for piece, k in zip(self.pieces, self.kinds, strict=True) if k is kind]

    @property
    def unknown(self) -> int | None:
        """Id of the unknown piece."""
        return next((number for number, kind in enumerate(self.kinds) if kind is Kind.UNKNOWN), None)


class SentencepieceTokenizerFile(FromFile):
    def __init__(self, spec: SentencepieceFile, vocab_size: int, specials: Sequence[Special] = ()) -> None:
        path = Path(spec.file).expanduser()
        inner = build(read(path))
        add(inner, spec.special_tokens)
        end_id = end_of(inner, path, spec.end_token)
        begin_id = end_id if spec.begin_token is None else end_of(inner, path, spec.begin_token, "begin_token")
        usage = Usage((begin_id,), (end_id,))
        super().__init__(path, HfTokenizer(inner, end_id, usage), vocab_size, specials)


def read(path: Path) -> Model:
    """Raises UserError: a file that cannot be read, or is none of this kind."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    return understood(content, path)


def understood(content: bytes, path: object) -> Model:
    """A model from its bytes; `path` names it in messages."""
    try:
        model = parse(content)
        pieces = [parse(one) for one in model.all(1, bytes)]
        trainer, normal = parse(model.last(2, b"")), parse(model.last(3, b""))
        names = tuple(one.last(1, b"").decode() for one in pieces)
        kinds = tuple(Kind(one.last(3, int(Kind.NORMAL))) for one in pieces)
        scores = tuple(one.last(2, 0.0) for one in pieces)
        algorithm = trainer.last(3, UNIGRAM)
    except (Damaged, ValueError) as error:
        raise UserError(f"{path} is no SentencePiece model: {error}") from error
    if not pieces:
        raise UserError(f"{path} is no SentencePiece model: it holds no pieces")
    if algorithm not in (UNIGRAM, PAIRS):
        raise UserError(f"{path} is a SentencePiece model of whole words or characters; unigram and bpe ones can be read")
    if len(set(names)) < len(names):
        raise UserError(f"{path} is damaged: a piece stands in it twice")
    if trainer.last(24, 0):
        raise UserError(f"{path} writes spaces behind words (treat_whitespace_as_suffix), which cannot be said here")
    return Model(
        pieces=names,
        scores=scores,
        kinds=kinds,
        is_unigram=algorithm == UNIGRAM,
        byte_fallback=Kind.BYTE in kinds,
        prefix=bool(normal.last(3, 1)),
        one_space=bool(normal.last(4, 1)),
        charsmap=normal.last(2, b""),
    )


def build(model: Model) -> Any:
    """The same as a `tokenizers.Tokenizer`, with the same ids."""
    inner = _unigram(model) if model.is_unigram else _pairs(model)
    inner.normalizer = normalizer(model.prefix, list(_cleaning(model)))
    inner.decoder = decoder_of(model.prefix)
    add(inner, [*model.of_kind(Kind.CONTROL), *model.of_kind(Kind.USER_DEFINED)])
    return inner


def _cleaning(model: Model) -> Iterable[Any]:
    from tokenizers import Regex, normalizers

    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.one_space:
        yield normalizers.Replace(SPACE, " ")
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")


def _pairs(model: Model) -> Any:
    from tokenizers import Regex, pre_tokenizers

    triples = zip(model.pieces, model.scores, model.kinds, strict=True)
    merges = merges_of({piece: score for piece, score, kind in triples if kind is Kind.NORMAL})
    vocab = {piece: number for number, piece in enumerate(model.pieces)}
    unknown = None if model.unknown is None else model.pieces[model.unknown]
    own = model.of_kind(Kind.USER_DEFINED)
    inner = pairs(vocab, merges, unknown=unknown, fallback=model.byte_fallback, ignore_merges=bool(own))
    if own:  # and what is cut out is taken whole, so names must not be
        cuts = [pre_tokenizers.Split(Regex(one), "isolated") for one in (_any_of(own), _within(model))]
        inner.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return inner


def _unigram(model: Model) -> Any:
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    best = max((s for s, kind in zip(model.scores, model.kinds, strict=True) if kind is Kind.NORMAL), default=0.0)
    scores = [
        len(piece.encode()) * best - 0.1 if kind is Kind.USER_DEFINED else score
        for piece, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True)
    ]
    vocab = list(zip(model.pieces, scores, strict=True))
    inner = Inner(models.Unigram(vocab, unk_id=model.unknown, byte_fallback=model.byte_fallback))
    if within := _within(model):
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(within), "isolated")
    return inner


def _within(model: Model) -> str:
    """Where to cut so that no name of a piece that stands for no text is left whole. (One of one character cannot be cut.)"""
    names = [n for kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.BYTE, Kind.UNUSED) for n in model.of_kind(kind) if len(n) > 1]
    return "|".join(f"{_quoted(name[0])}(?={_quoted(name[1:])})" for name in sorted(names))


def _any_of(names: Sequence[str]) -> str:
    return "|".join(_quoted(name) for name in sorted(names, key=lambda name: (-len(name), name)))


def _quoted(text: str) -> str:
    return re.sub(r"([^\w\s<>" + SPACE + r"])", r"\\\1", text)
