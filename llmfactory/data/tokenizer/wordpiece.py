"""WordPiece (Wu et al. 2016) as BERT has it: words are cut at white space, punctuation and Chinese characters; of a word the
longest piece that is known comes first, and pieces that go on with a word begin with ##. Learned with the `tokenizers` library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.pieces import add
from llmfactory.data.tokenizer.spec import Wordpiece
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokenizer.trained import Learned, characters, form_of, normal, without_others

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
NAMES = (PAD, UNKNOWN, BEGIN, END, MASK)


class WordPieceTrainer(Learned):
    def __init__(self, spec: Wordpiece, vocab_size: int) -> None:
        why = f"word pieces need {len(NAMES) + 1}, for BERT's special tokens and a character at least"
        Learned.__init__(self, spec, vocab_size, len(NAMES) + 1, why)
        self.lowercase = spec.lowercase

    def fingerprint(self) -> str:
        return self.told

    def make(self, texts: Iterable[str]) -> Tokenizer:
        from tokenizers import Tokenizer as Inner
        from tokenizers import models, normalizers

        bert = normalizers.BertNormalizer(lowercase=self.lowercase)
        first = [*NAMES, *(name for name in self.specials if name not in NAMES)]
        clean = [bert.normalize_str(text) for text in normal(texts, self.form)]
        learned = learn(clean, first, self.vocab_size)
        inner = dressed(Inner(models.WordPiece(learned, unk_token=UNKNOWN)), self.lowercase)
        if forms := form_of(self.form):
            inner.normalizer = normalizers.Sequence([*forms, inner.normalizer])
        add(inner, self.specials)
        end_id = inner.token_to_id(END)
        assert end_id is not None
        return HfTokenizer(inner, end_id)


def learn(texts: Sequence[str], first: Sequence[str], size: int) -> dict[str, int]:
    """Ids of `size` pieces at most, those of `first` among them, from texts in BERT's form.

    The library gives characters within words their ids in an order that changes from run to run, unless it has them before.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers, trainers

    cut, within, room = pre_tokenizers.BertPreTokenizer(), Counter[str](), size - len(first)
    for text in texts:
        for word, _ in cut.pre_tokenize_str(text):
            within.update(word[1:])
    known = [c for c in characters(texts, room + 4) if not c.isspace()][:room]
    if len(known) + len(within.keys() & set(known)) > room:
        known = known[: max(1, room // 2)]
    begun = [f"##{c}" for c in known if c in within]
    inner = Inner(models.WordPiece(unk_token=UNKNOWN))
    inner.pre_tokenizer = cut
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*first, *begun],
        initial_alphabet=known,
        limit_alphabet=len(known),
        show_progress=False,
    )
    inner.train_from_iterator(without_others(texts, [*known, " "]), trainer)
    return dict(inner.get_vocab(with_added_tokens=False))


def dressed(inner: Any, lowercase: bool, split_chinese: bool = True) -> Any:
    """A model of word pieces with what BERT does before and after it."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=split_chinese)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece("##", cleanup=False)
    add(inner, [name for name in NAMES if inner.token_to_id(name) is not None])
    return inner
