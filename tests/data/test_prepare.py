"""Preparation: exact, cached by content, whole or not at all, and clear about everything that can go wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data import checksum as checksum_module
from llmfactory.data import encode, segment, tasks
from llmfactory.data import prepare as module
from llmfactory.data.clean.spec import CleanSpec, Exact, Length
from llmfactory.data.form.spec import Text as TextForm
from llmfactory.data.lock import locked
from llmfactory.data.pack.spec import Concat, Document
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.source.spec import Files, Pycode
from llmfactory.data.spec import Corpus, Mixture
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes, Split

TEXTS = [f"Document {i}: " + " ".join(f"word{i}x{(i * k) % 97}" for k in range(5 + i * 7 % 60)) + "\n" for i in range(120)]


def corpus(folder: Path, **fields: object) -> Corpus:
    path = folder / "texts.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    defaults = {
        "source": Files(files=[str(path)]),
        "tokenizer": ByteBpe(),
        "pack": Concat(),
        "seq_len": 16,
        "cache": str(folder / "cache"),
    }
    return Corpus(**{**defaults, **fields})  # type: ignore[arg-type]


def content(data: Prepared) -> dict[str, bytes]:
    return {str(path.relative_to(data.folder)): path.read_bytes() for path in sorted(data.folder.rglob("*")) if path.is_file()}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("tokenizer", [ByteBpe(), Bytes()])
def test_every_document_stands_in_one_part_as_it_was(tmp_path: Path, tokenizer: ByteBpe | Bytes) -> None:
    data = prepare(corpus(tmp_path, tokenizer=tokenizer, held_out=0.2), 400)
    train = [data.tokenizer.decode(data.train.document(i)) for i in range(data.train.documents)]
    held_out = [data.held_out_text(i) for i in range(data.held_out.documents)]
    assert sorted(train + held_out) == sorted(TEXTS)
    assert data.held_out_bytes == sum(len(text.encode()) for text in held_out) == data.counts["held_out"]["bytes"]
    assert data.counts["train"] == {
        "documents": len(train),
        "bytes": sum(len(text.encode()) for text in train),
        "tokens": len(data.train.tokens),
        "targets": data.train.targets,
        "too_long": 0,
        "unwritable": 0,
        "cut": 0,
    }
    for tokens in (data.train, data.held_out):
        ends = np.flatnonzero(tokens.tokens == data.tokenizer.end_id)
        assert ends.tolist() == tokens.offsets.tolist()
        assert len(tokens.tokens) == tokens.targets + 1


def test_the_second_time_comes_from_the_cache(tmp_path: Path) -> None:
    spec, calls = corpus(tmp_path), []
    first = prepare(spec, 400, lambda *call: calls.append(call))
    assert first.fresh
    assert {"reading", "training the tokenizer", "tokenizing"} < {label for label, _, _ in calls}
    assert all(0 <= done <= total for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2]
    again = prepare(spec, 400)
    assert not again.fresh
    assert again.folder == first.folder


def test_the_result_depends_on_neither_processes_nor_folder_nor_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers, chunk in ((1, 1 << 18), (1, 300), (1, 1), (2, 1 << 18)):
        monkeypatch.setattr(encode, "CHUNK", chunk)
        monkeypatch.setattr(segment, "CHUNK", chunk)
        monkeypatch.setattr(tasks, "ALONE", 0)
        spec = corpus(tmp_path, workers=workers, cache=str(tmp_path / f"cache{workers}{chunk}"))
        found.append(content(prepare(spec, 400)))
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize(
    ("change", "vocab_size", "same"),
    [
        ({}, 400, True),
        ({"seq_len": 8}, 400, True),
        ({"pack": Document()}, 400, True),
        ({"workers": 1}, 400, True),
        ({"held_out": 0.3}, 400, False),
        ({"held_out_bytes": 10}, 400, False),
        ({"tokenizer": Bytes()}, 400, False),
        ({"tokenizer": ByteBpe(split=Split.gpt2)}, 400, False),
        ({"tokenizer": ByteBpe(train_bytes=1000)}, 400, False),
        ({}, 500, False),
    ],
)
def test_only_what_matters_is_prepared_anew(tmp_path: Path, change: dict[str, object], vocab_size: int, same: bool) -> None:
    first = prepare(corpus(tmp_path), 400).folder
    assert (prepare(corpus(tmp_path, **change), vocab_size).folder == first) is same


def test_changed_text_is_prepared_anew(tmp_path: Path) -> None:
    spec = corpus(tmp_path)
    first = prepare(spec, 400)
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    second = prepare(spec, 400)
    assert second.fresh
    assert second.folder != first.folder


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = prepare(corpus(tmp_path), 400)
    monkeypatch.setattr("llmfactory.data.tokens.dtype_for", lambda size: np.dtype("<u4"))
    monkeypatch.setattr(encode, "dtype_for", lambda size: np.dtype("<u4"))
    monkeypatch.setattr(module, "dtype_for", lambda size: np.dtype("<u4"))
    wide = prepare(corpus(tmp_path, cache=str(tmp_path / "wide")), 400)
    assert wide.train.tokens.dtype == np.dtype("<u4")
    assert wide.train.tokens.tolist() == small.train.tokens.tolist()


FILES = [f"sources/corpus/{name}" for name in ("train.bin", "held_out.offsets")]
FILES += ["tokenizer/tokenizer.json", "manifest.json", "held_out.txt"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["truncated", "altered", "gone"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, file: str, harm: str) -> None:
    if file == "manifest.json" and harm == "altered":
        pytest.skip("the manifest vouches for the others")
    spec = corpus(tmp_path)
    before = content(prepare(spec, 400))
    data = prepare(spec, 400)
    path = data.folder / file
    raw = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(raw[:-3] if harm == "truncated" else raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    again = prepare(spec, 400)
    assert again.fresh
    assert content(again) == before
    assert not prepare(spec, 400).fresh


def test_large_files_are_checked_in_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_module, "BLOCK", 16)
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 40)
    first = checksum_module.checksum(path)
    for place in (0, -1):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        assert checksum_module.checksum(path) != first
        data[place] ^= 1
        path.write_bytes(data)
    assert checksum_module.checksum(path) == first


def _prepare(spec: Corpus, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    data = prepare(spec, 400)
    results.put((data.fresh, int(data.train.tokens.astype(np.int64).sum())))


@pytest.mark.dist
@pytest.mark.parametrize("clean", [{}, {"exact": Exact(), "length": Length()}])
def test_several_processes_at_once_share_the_work(tmp_path: Path, clean: dict[str, CleanSpec]) -> None:
    spec, context = corpus(tmp_path, clean=clean), multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_prepare, args=(spec, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert any(fresh for fresh, _ in found)
    assert [name for name in left_in(tmp_path) if not name.startswith("documents")] == [prepare(spec, 400).folder.name]
    assert not [name for name in left_in(tmp_path) if name.endswith(".work")]
    assert len({total for _, total in found}) == 1


def _hang(spec: Corpus, started: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    def progress(label: str, done: int, total: int) -> None:
        if label == "tokenizing":
            started.put(os.getpid())
            time.sleep(300)

    prepare(spec, 400, progress)


@pytest.mark.dist
def test_a_killed_preparation_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, context = corpus(tmp_path), multiprocessing.get_context("spawn")
    started = context.Queue()
    process = context.Process(target=_hang, args=(spec, started))
    process.start()
    os.kill(started.get(timeout=120), signal.SIGKILL)
    process.join()
    (work,) = [name for name in left_in(tmp_path) if name.endswith(".work") and not name.startswith("documents")]
    done: list[str] = []
    attempt = tasks.attempt

    def counted(phase: tasks.Phase, folder: Path, number: int) -> bool:
        done.append(phase.name)
        return attempt(phase, folder, number)

    monkeypatch.setattr(tasks, "attempt", counted)
    data = prepare(spec, 400)
    assert data.folder.name == work.removesuffix(".work")
    assert done == ["encode", "join"]
    assert left_in(tmp_path) == [data.folder.name]
    fresh = prepare(corpus(tmp_path, cache=str(tmp_path / "other")), 400)
    assert content(fresh) == content(data)


@pytest.mark.parametrize("file", ["texts.bin", "train.bin", "manifest.json"])
def test_a_full_disk_is_said_and_what_is_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    opened = Path.open

    def full(self: Path, *args: object, **options: object) -> object:
        if self.name == file and "w" in str(options.get("mode", args[0] if args else "r")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=rf"cannot write prepared data to {tmp_path / 'cache'}: the disk is full.*data.cache="):
        prepare(corpus(tmp_path), 400)
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    monkeypatch.undo()
    assert prepare(corpus(tmp_path), 400).fresh
    assert len(left_in(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cannot write prepared data to {tmp_path / 'file'}"):
        prepare(corpus(tmp_path, cache=str(tmp_path / "file")), 400)


def test_the_lock_is_exclusive(tmp_path: Path) -> None:
    import fcntl

    with locked(tmp_path / "lock"), (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("text", ["", "  \n\n "])
def test_an_empty_corpus_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(
        UserError,
        match=r"the corpus is empty: data.source.files=\['.*a.txt'\] holds no text; 1 × empty (document|file) \(step read\)",
    ):
        prepare(corpus(tmp_path, source=Files(files=[str(tmp_path / "a.txt")])), 400)
    assert left_in(tmp_path) == []


def test_a_corpus_shorter_than_a_row_is_an_error_where_rows_are_packed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a few words")
    spec = corpus(tmp_path, source=Files(files=[str(tmp_path / "a.txt")]), tokenizer=Bytes(), held_out=0)
    with pytest.raises(UserError, match=r"has 12 tokens, less than one row of data.seq_len=16. Try data.seq_len=3"):
        prepare(spec, 400)
    assert prepare(dataclasses.replace(spec, seq_len=12), 400).train.targets == 12
    assert prepare(dataclasses.replace(spec, pack=Document()), 400).train.targets == 12


def test_nothing_held_out(tmp_path: Path) -> None:
    data = prepare(corpus(tmp_path, held_out=0), 400)
    assert (data.held_out.documents, data.held_out.targets, data.held_out_bytes) == (0, 0, 0)
    assert data.train.documents == len(TEXTS)


def test_dropped_records_are_counted_with_samples(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{\n" * 7)
    counts = prepare(corpus(tmp_path, source=Files(files=[str(path)], bad_share=0.1)), 400).counts
    dropped = counts["steps"]["read"]["dropped"]["invalid JSON"]
    assert dropped["documents"] == 7
    assert len(dropped["samples"]) == 5
    assert all(f"{path}, line 12" in sample["name"] for sample in dropped["samples"])
    assert counts["sources"]["corpus"]["read"] == {
        "units": 1,
        "records": len(TEXTS) + 7,
        "bad": 7,
        "documents": len(TEXTS),
        "bytes": sum(len(text.encode()) for text in TEXTS),
    }


def test_a_bad_corpus_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{')
    with pytest.raises(UserError, match=f"{path}, line 2"):
        prepare(corpus(tmp_path, source=Files(files=[str(path)])), 400)
    assert left_in(tmp_path) == []


def test_the_cache_is_in_the_user_s_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(corpus(tmp_path, cache=None), 400).folder.parent == tmp_path / "xdg" / "llmfactory" / "prepared"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert module.cache_folder(corpus(tmp_path, cache=None)) == tmp_path / "home" / ".cache" / "llmfactory" / "prepared"


def test_the_tokenizer_learns_from_a_sample_of_documents_spread_over_the_corpus(tmp_path: Path) -> None:
    spec = corpus(tmp_path, tokenizer=ByteBpe(train_bytes=2000), held_out=0)
    seen: list[str] = []

    def make(self: object, texts: object) -> object:
        seen.extend(texts)  # type: ignore[call-overload]
        return original(self, seen)  # type: ignore[arg-type]

    from llmfactory.data.tokenizer.byte_bpe import BytePairTrainer

    original = BytePairTrainer.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BytePairTrainer, "make", make)
        prepare(spec, 300)
    places = [TEXTS.index(text) for text in seen]
    assert 2000 <= sum(map(len, seen)) < 2600
    assert places == sorted(places)
    assert max(np.diff([0, *places, len(TEXTS)])) < 40


def test_pycode_is_prepared(tmp_path: Path) -> None:
    data = prepare(corpus(tmp_path, source=Pycode(), tokenizer=ByteBpe(train_bytes=200_000)), 500)
    assert data.counts["train"]["bytes"] > 4_000_000
    assert 0.02 < data.held_out_bytes / data.counts["train"]["bytes"] < 0.08


def test_sources_are_prepared_together(tmp_path: Path) -> None:
    """One tokenizer, a token file each, a share of each held out."""
    files = {}
    for name, texts in {"one": TEXTS[:70], "two": TEXTS[70:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        files[name] = Files(files=[str(tmp_path / f"{name}.jsonl")])
    spec = Mixture(
        sources=files,
        tokenizer=ByteBpe(),
        pack=Concat(),
        seq_len=16,
        held_out=0.2,
        cache=str(tmp_path / "cache"),
        form=TextForm(),
    )
    data = prepare(spec, 400)
    assert list(data.sources) == ["one", "two"]
    found = []
    for name, source in data.sources.items():
        parts = [
            [data.tokenizer.decode(tokens.document(i)) for i in range(tokens.documents)]
            for tokens in (source.train, source.held_out)
        ]
        sizes = [sum(map(len, part)) for part in parts]
        assert 0.1 < sizes[1] / sum(sizes) < 0.3
        assert source.counts["train"]["documents"] == len(parts[0])
        assert data.counts["sources"][name]["read"]["documents"] == sum(map(len, parts))
        found += [*parts[0], *parts[1]]
    assert sorted(found) == sorted(TEXTS)
    assert data.counts["train"]["documents"] + data.counts["held_out"]["documents"] == len(TEXTS)
    assert data.held_out_text(data.sources["one"].held_out.documents) == data.tokenizer.decode(
        data.sources["two"].held_out.document(0)
    )
    with pytest.raises(IndexError):
        data.held_out_text(len(TEXTS))
