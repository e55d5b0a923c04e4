"""Byte-level BPE: exact round trip, one result for any number of threads, limits of size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.spec import ByteBpe, Split
from llmfactory.data.tokenizer.tokenizer import Tokenizer, load

TEXT = [Path(__file__).read_text(encoding="utf-8") * 3, "def f(x):\n    return x + 1\n\n" * 50, "Größe naïve 数学 мир\n" * 20]
ODD = [
    "",
    " ",
    "\n\n\n",
    "a\r\nb\rc\u2028d",
    "\ttab  two   three    \n      indent\n\n\n  x  ",
    "<|endoftext|> is only a text about it <|endoftext|>",
    "\u0000\u0001\u007f\u0080\u00a0\ufeff\ufffd\uffff\U0010ffff",
    "e\u0301 \u00e9 \ufb01 \u2126 \u03a9 I\u0307 \u1e9e",
    "👩‍👩‍👧‍👦 🇫🇷 \U0001f1e6 ﷽ ‮gninrut‬",
    "'s 'S it's IT'S 123456789 ½ ² ٣ 一二三",
    "".join(map(chr, range(32, 1000))),
]


@pytest.fixture(scope="module", params=list(Split))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteBpe(split=request.param).build(600).make(TEXT)


@pytest.mark.parametrize("text", ODD + TEXT, ids=range(len(ODD + TEXT)))
def test_round_trip(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_id not in ids
    assert max(ids, default=0) < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.end_id, *ids, tokenizer.end_id]) == text
    tokenizer.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert again.encode(text) == ids
    assert again.decode(ids) == text
    assert (again.end_id, again.vocab_size) == (tokenizer.end_id, tokenizer.vocab_size)


def test_a_batch_is_its_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(ODD) == [tokenizer.encode(text) for text in ODD]
    assert tokenizer.encode_batch([]) == []


def test_a_broken_sequence_decodes_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0010ffff")
    assert "\ufffd" in tokenizer.decode(ids[:1])


def test_merges_are_learned(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 600
    assert len(tokenizer.encode(TEXT[0])) < 0.6 * len(TEXT[0].encode())


def test_splits_differ_as_they_say() -> None:
    line = "f(x):\n        return g()\n    " * 500
    indent, gpt2 = (ByteBpe(split=split).build(300).make([line]) for split in (Split.indent, Split.gpt2))
    assert len(indent.encode("):\n        return")) < len(gpt2.encode("):\n        return"))


TRAIN = """
import hashlib, pathlib, sys
from llmfactory.data.tokenizer.spec import ByteBpe
texts = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").split("---")
print(hashlib.sha256(ByteBpe().build(1000).make(texts).inner.to_str().encode()).hexdigest())
"""


def test_the_result_does_not_depend_on_threads_or_process(root: Path, tmp_path: Path) -> None:
    found, corpus = set(), tmp_path / "corpus.txt"
    corpus.write_text("---".join(path.read_text(encoding="utf-8") for path in sorted((root / "llmfactory").rglob("*.py"))))
    for threads, parallel in (("1", "false"), ("2", "true"), ("5", "true")):
        environment = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": threads}
        run = subprocess.run(
            [sys.executable, "-c", TRAIN, str(corpus)], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_a_small_corpus_gives_fewer_ids() -> None:
    assert 257 <= ByteBpe().build(4096).make(["abab"]).vocab_size < 270


def test_more_ids_than_the_model_has_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data.tokenizer.vocab_size=500 has 500 ids, the model only 400 \(model.vocab_size\)"):
        ByteBpe(vocab_size=500).build(400)
    assert ByteBpe(vocab_size=300).build(400).make(TEXT).vocab_size == 300


def test_a_model_too_small_for_bytes_is_an_error() -> None:
    with pytest.raises(UserError, match=r"256 ids .*needs 257"):
        ByteBpe().build(256)


def test_every_field_is_in_the_fingerprint() -> None:
    specs = [ByteBpe(), ByteBpe(vocab_size=300), ByteBpe(train_bytes=10), ByteBpe(split=Split.gpt2)]
    assert len({spec.build(4096).fingerprint() for spec in specs} | {ByteBpe().build(5000).fingerprint()}) == len(specs) + 1
