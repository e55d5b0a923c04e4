"""A unigram model of pieces (Kudo 2018), learned by SentencePiece's own trainer and encoded by the `tokenizers` library.

The trainer of `tokenizers` is not used: what it learns changes from run to run. This one adds its sums up in one thread, so that
the same text always gives the same pieces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.pieces import add, normalizer
from llmfactory.data.tokenizer.sentencepiece_file import build, understood
from llmfactory.data.tokenizer.spec import Unigram
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokenizer.trained import END, Learned, form_of, normal

LINE = 4096
"""Characters of what the trainer is told at once."""
LEAST = 258
BREAKS = re.compile("[\x00-\x1f\x7f\u2028\u2029\u2581\u2585]+")
"""The trainer sets these apart for itself, or leaves out lines that hold them; pieces do not cross them."""


class UnigramTrainer(Learned):
    def __init__(self, spec: Unigram, vocab_size: int) -> None:
        try:
            import sentencepiece  # noqa: F401
        except ImportError as error:
            raise MissingExtra("sentencepiece", "data", "data/tokenizer=unigram") from error
        why = f"pieces need {LEAST}, for the bytes, the end of a document and a character at least"
        Learned.__init__(self, spec, vocab_size, LEAST, why, learner="sentencepiece")
        self.coverage, self.split_digits = spec.coverage, spec.split_digits

    def fingerprint(self) -> str:
        return self.told

    def make(self, texts: Iterable[str]) -> Tokenizer:
        model = understood(learn(normal(texts, self.form), self.vocab_size, self.coverage, self.split_digits, self.specials), "")
        inner = build(model)
        inner.normalizer = normalizer(prefix=True, before=form_of(self.form))
        add(inner, [END, *self.specials])
        end_id = inner.token_to_id(END)
        assert end_id is not None
        return HfTokenizer(inner, end_id)


def learn(texts: Iterable[str], size: int, coverage: float, split_digits: bool, specials: list[str]) -> bytes:
    """A `.model` file. Raises UserError where the text is too little, or has too many characters."""
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=made,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=coverage,
            byte_fallback=True,
            split_digits=split_digits,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            control_symbols=specials,
            bos_id=-1,
            pad_id=-1,
            eos_id=0,
            unk_id=1,
            eos_piece=END,
            max_sentence_length=8 * LINE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).partition("] ")[2] or str(error)
        raise UserError(f"a unigram tokenizer of {size} ids cannot be learned from this text: {reason}") from error
    return made.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in BREAKS.split(text):
            yield from (line[place : place + LINE] for place in range(0, len(line), LINE))
