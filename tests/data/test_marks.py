"""Compressor marks, against the command-line definition of both formats."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from llmfactory.data.marks import compressor_marks, prepared_marks
from llmfactory.data.pack.spec import Concat
from llmfactory.data.prepare import prepare
from llmfactory.data.source.spec import Files, Format
from llmfactory.data.spec import Corpus
from llmfactory.data.tokenizer.spec import Bytes

SOURCE = Path(__file__).parents[2] / "llmfactory"


def test_they_are_what_the_compressors_give() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    training = b"".join(path.read_bytes() for path in files[:-8])
    held_out = b"".join(path.read_bytes() for path in files[-8:])
    marks = compressor_marks(training, held_out)
    bits = 8 / len(held_out)
    assert marks["gzip"] == pytest.approx(bits * (len(gzip.compress(training + held_out, 9)) - len(gzip.compress(training, 9))))
    xz = bits * (len(lzma.compress(training + held_out, preset=9)) - len(lzma.compress(training, preset=9)))
    assert marks["xz"] == pytest.approx(xz, rel=0.005)
    assert 0 < marks["xz"] < marks["gzip"] < 8


def test_text_that_was_seen_costs_nothing_where_the_window_reaches() -> None:
    text = bytes((i * i * 31 + i // 7) % 251 for i in range(60_000))
    marks = compressor_marks(text, text[:20_000])
    assert marks["xz"] < 0.05
    assert marks["gzip"] > marks["xz"]


def test_of_a_prepared_corpus_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Files(files=[str(SOURCE / "data" / "*.py")], format=Format.text)
    spec = Corpus(source=source, tokenizer=Bytes(), pack=Concat(), seq_len=16, held_out=0.2, cache=str(tmp_path))
    data = prepare(spec, 257)
    train = "".join(data.tokenizer.decode(data.train.document(i)) for i in range(data.train.documents)).encode()
    held_out = "".join(data.held_out_text(i) for i in range(data.held_out.documents)).encode()
    marks = prepared_marks(data)
    assert marks == compressor_marks(train, held_out)
    assert not prepare(spec, 257).fresh  # the file of marks is no damage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmfactory.data.marks.compressor_marks", None)
        assert prepared_marks(data) == marks
    (data.folder / "marks.json").write_text("{")
    assert prepared_marks(data) == marks


def test_nothing_held_out_has_no_marks(tmp_path: Path) -> None:
    source = Files(files=[str(SOURCE / "data" / "*.py")], format=Format.text)
    spec = Corpus(source=source, tokenizer=Bytes(), pack=Concat(), seq_len=16, held_out=0, cache=str(tmp_path))
    assert prepared_marks(prepare(spec, 257)) == {}
