"""Files of every format and packing, in pieces, and every way in which a file can be bad: an error or a bad record, with its name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import llmfactory.data.source.digest as digest
import llmfactory.data.source.files as files
import llmfactory.data.source.plain as plain
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.source.account import Account
from llmfactory.data.source.spec import Files, Format
from llmfactory.data.source.streams import zstd
from tests.data.source.conftest import Read

TEXTS = ["one\nline", "zwei: äöü", "三 🙂"]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


CONTENT = {
    "a.txt": "\n---\n".join(TEXTS).encode(),
    "a.md": "\n---\n".join(TEXTS).encode(),
    "a.jsonl": jsonl(*TEXTS),
    "a.ndjson": jsonl(*TEXTS),
    "a.json": json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False).encode(),
    "a.csv": ("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS))).encode(),
    "a.tsv": ("id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS) if "\n" not in text)).encode(),
}


def expected(name: str) -> list[str]:
    return {"txt": ["one\nline\n", "zwei: äöü\n", "三 🙂"], "tsv": TEXTS[1:]}.get(name.split(".")[1].replace("md", "txt"), TEXTS)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", CONTENT)
def test_every_text_format_in_every_packing(read: Read, tmp_path: Path, name: str, packing: str) -> None:
    path = tmp_path / (name + packing)
    path.write_bytes(PACK[packing](CONTENT[name]))
    documents, account = read(Files(files=[str(path)], split_on="---"))
    assert [d.text for d in documents] == expected(name)
    assert all(d.name.startswith(str(path)) for d in documents)
    assert not account.drops.by_reason


def archive(path: Path, members: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    packing = path.suffix if path.suffix != ".tar" else ""
    path.write_bytes(PACK[".gz" if packing == ".tgz" else packing](packed.getvalue()))


ARCHIVES = ["a.zip", "a.tar", "a.tgz", *("a.tar" + packing for packing in PACK if packing)]


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_of_archives_are_read_by_their_names(read: Read, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    members = {"in/a.txt": b"text", "b.jsonl.gz": gzip.compress(jsonl("packed")), "c.html": b"<p>page", "d.png": b"\x89PNG"}
    archive(path, {**members, "e.zip": b"PK"})
    documents, account = read(Files(files=[str(path)], bad_share=0.5))
    assert [(d.name, d.text) for d in documents] == [
        (f"{path}: in/a.txt", "text"),
        (f"{path}: b.jsonl.gz, line 1", "packed"),
        (f"{path}: c.html", "<p>page"),
    ]
    assert account.drops.by_reason["of no known format"].samples == [f"{path}: d.png"]
    assert [(bad.where, bad.reason) for bad in account.bads] == [(f"{path}: e.zip", "cannot be read within an archive")]


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_member_that_leads_out_is_refused_and_nothing_is_written(
    read: Read, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    path = Path(name)
    wrong = ["../up.txt", "/tmp/absolute.txt", "a/../../b.txt", "C:/drive.txt"]
    archive(path, {**dict.fromkeys(wrong, b"bad"), "fine..txt": b"fine"})
    with pytest.raises(UserError, match=rf"{name}: \.\./up\.txt: a path outside of the archive"):
        read(Files(files=[name]))
    documents, account = read(Files(files=[name], bad_share=1.0))
    assert [d.text for d in documents] == ["fine"]
    assert sorted(bad.where for bad in account.bads) == sorted(f"{name}: {member}" for member in wrong)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [name, "within"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.jsonl.bz2", "a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_a_truncated_file_is_named_and_what_came_before_it_is_kept(read: Read, tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    content = jsonl(*(f"{i} {os.urandom(40).hex()}" for i in range(500)))
    if "tar" in name or "zip" in name:
        archive(path, {f"{i}.jsonl": jsonl(f"{i} {os.urandom(40).hex()}") for i in range(500)})
    else:
        path.write_bytes(PACK["." + name.rsplit(".", 1)[1]](content))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"{path}.*(truncated|no zip archive)"):
        read(Files(files=[str(path)]))
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [d.text.split()[0] for d in documents] == [str(i) for i in range(len(documents))]
    assert len(account.bads) in (1, 2)  # a line may be cut, too
    if documents and "tar" not in name:
        assert f"what follows {documents[-1].name} is lost" in account.bads[-1].detail


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.jsonl.zst", "bomb.jsonl.xz", "bomb.zip", "bomb.tar.gz", "bomb.txt.gz"])
def test_a_bomb_is_stopped(read: Read, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = b'{"text": "a"}\n' + b" " * (70 << 20)
    if "jsonl" in name or "txt" in name:
        path.write_bytes(PACK["." + name.rsplit(".", 1)[1]](content))
    else:
        archive(path, {"bomb.jsonl": content, "after.txt": b"after"})
    with pytest.raises(UserError, match=rf"{path}.*unpacks to too much.*more than \d+.*max_expansion=30"):
        read(Files(files=[str(path)], max_expansion=3, max_record_bytes=128 << 20))
    _, account = read(Files(files=[str(path)], max_expansion=3, bad_share=1.0, max_record_bytes=128 << 20))
    assert "unpacks to too much" in {bad.reason for bad in account.bads}
    documents, account = read(Files(files=[str(path)], max_expansion=100_000, max_record_bytes=128 << 20))
    assert documents[0].text.strip() in ("a", '{"text": "a"}')
    assert not account.bads


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "1"}\n{"text": "' + b"x" * 200 + b'"}\n{"text": "2"}\n'),
        ("a.txt", b"1\n" + b"x" * 200 + b"\n2\n"),
        ("a.csv", b"text\n1\n" + b"x" * 200 + b"\n2\n"),
        ("a.csv", b'text\n1\n"' + b"x\n" * 100 + b'"\n2\n'),
        ("a.tsv", b"text\n1\n" + b"x" * 200 + b"\n2\n"),
        ("a.json", b'[{"text": "1"}, {"text": "' + b"x" * 200 + b'"}, {"text": "2"}]'),
        ("a.html", b"<p>" + b"x" * 200),
        ("a.txt", b"1\n---\n" + b"x\n" * 100 + b"---\n2\n"),
    ],
)
def test_a_record_that_is_too_long_is_set_aside(read: Read, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    limits = {"max_record_bytes": 100, "split_on": "---" if b"---" in content else None}
    with pytest.raises(UserError, match=rf"{path}.*(too long|field larger than field limit)"):
        read(Files(files=[str(path)], **limits))  # type: ignore[arg-type]
    documents, account = read(Files(files=[str(path)], bad_share=1.0, **limits))  # type: ignore[arg-type]
    assert "".join(d.text for d in documents).replace("\n", "")[:1] in ("1", "")
    assert "".join(d.text for d in documents).replace("\n", "")[-1:] in ("2", "")
    assert account.bads
    assert all(len(bad.content) <= 500 for bad in account.bads)
    assert not read(Files(files=[str(path)], split_on=limits["split_on"]))[1].bads  # type: ignore[arg-type]


def test_a_line_of_100_mb_is_one_bad_record_in_bounded_memory(read: Read, tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "1"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "2"}\n')
    tracemalloc.start()
    documents, account = read(Files(files=[str(path)], bad_share=0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(d.name, d.text) for d in documents] == [(f"{path}, line 1", "1"), (f"{path}, line 3", "2")]
    assert [(bad.where, bad.reason) for bad in account.bads] == [(f"{path}, line 2", "too long")]
    assert account.drops.by_reason["too long"].bytes == (100 << 20) + 13
    assert peak < 70 << 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", ['{"text": "x"}\n']),
        ("a.txt", ['{"text": "x"}\n']),
        ("a", ['{"text": "x"}\n']),
        ("a.txt.gz", ['{"text": "x"}\n']),
    ],
)
def test_the_format_goes_by_the_name_or_by_what_is_said(read: Read, tmp_path: Path, name: str, expected: list[str]) -> None:
    path = tmp_path / name
    content = b'{"text": "x"}\n'
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [d.text for d in read(Files(files=[str(path)], format=Format.text))[0]] == expected
    assert [d.text for d in read(Files(files=[str(path)], format=Format.jsonl))[0]] == ["x"]
    if name == "a":
        with pytest.raises(UserError, match=f"{path}: its name does not say what it is: data.source.format=text"):
            read(Files(files=[str(path)]))


def test_a_folder_gives_what_is_known_or_what_is_said(read: Read, tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.zip", "d.bin", "e.md.gz"):
        (tmp_path / name).write_bytes(b"")

    def names(format: Format | None = None) -> list[str]:
        account = read(Files(files=[str(tmp_path)], format=format))[1]
        return [sample.split("/")[-1] for sample in account.drops.by_reason["empty file"].samples]

    assert names() == ["a.txt", "b.jsonl", "c.zip", "e.md.gz"]
    assert names(format=Format.text) == ["a.txt", "e.md.gz"]
    assert names(format=Format.jsonl) == ["b.jsonl"]


def test_what_cannot_be_read_packed_is_refused(tmp_path: Path) -> None:
    for name in ("a.parquet.gz", "a.zip.xz", "a.arrow.zst"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match="unpack it first"):
            Files(files=[str(tmp_path / name)]).build()


@pytest.mark.parametrize("unit", [1, 7, 40, 1000, 1 << 26])
@pytest.mark.parametrize("name", ["a.jsonl", "split.txt", "plain.txt"])
def test_pieces_of_a_file_give_what_the_whole_gives(
    read: Read, tmp_path: Path, name: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    lines = [f"line {i} {'x' * (i * 7 % 23)}{'é' * (i % 3)}" for i in range(60)]
    if name == "a.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([jsonl(line).strip() for line in lines]) + b"\n\n{bad\n" + jsonl("last"))
    else:
        path.write_text("\n".join("---" if i % 7 == 6 and name == "split.txt" else line for i, line in enumerate(lines)))
    spec = Files(files=[str(path)], split_on="---" if name == "split.txt" else None, bad_share=1.0)
    whole, one = read(spec)
    for module in (digest, files):
        monkeypatch.setattr(module, "UNIT", unit)
    monkeypatch.setattr(digest, "BLOCK", min(unit, digest.BLOCK))
    source = spec.build()
    assert len(source.units()) == max(1, -(-path.stat().st_size // unit))
    assert sum(part.size for part in source.units()) == path.stat().st_size
    pieces, several = read(spec)
    if name == "plain.txt":  # a piece is a document
        assert "".join(d.text for d in pieces) == whole[0].text
    else:
        assert pieces == whole
    assert [(bad.where, bad.reason) for bad in several.bads] == [(bad.where, bad.reason) for bad in one.bads]
    assert several.good == one.good
    copy = pickle.loads(pickle.dumps((source, source.units())))
    assert [d for part in copy[1] for d in copy[0].documents(part, Account(1.0))] == pieces


def test_small_files_are_read_together(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i:02}")
    (tmp_path / "10.jsonl").write_bytes(jsonl(*"abcdefgh"))
    spec = Files(files=[str(tmp_path)])
    whole = read(spec)[0]
    assert len(spec.build().units()) == 1
    monkeypatch.setattr(files, "TOGETHER", 30)
    monkeypatch.setattr(files, "UNIT", 40)
    monkeypatch.setattr(digest, "UNIT", 40)
    monkeypatch.setattr(digest, "BLOCK", 40)
    units = spec.build().units()
    assert [len(unit.place) for unit in units] == [4, 4, 2, 1, 1, 1, 4, 4, 4, 4, 4]
    assert sum(unit.size for unit in units) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert read(spec)[0] == whole


def test_a_long_text_is_cut_where_a_paragraph_ends(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "PIECE", 50)
    path = tmp_path / "a.txt"
    text = "".join(f"paragraph {i}\nof two lines\n\n" for i in range(10)) + "x\n" * 100
    path.write_text(text)
    documents, account = read(Files(files=[str(path)]))
    assert "".join(d.text for d in documents) == text
    assert len(documents) > 4
    assert all(d.text.startswith("paragraph") for d in documents[:5])
    assert all(len(d.text) <= 100 for d in documents)
    assert documents[1].name == f"{path}, line {documents[0].text.count(chr(10)) + 1}"
    assert account.good == text.count("\n")


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*"abc"))
    source = Files(files=[str(path)]).build()
    (unit,) = source.units()
    reading = source.documents(unit, Account(0.0))
    next(reading)
    path.write_bytes(jsonl(*"abcd"))
    with pytest.raises(UserError, match=f"{path} has changed while it was being read"):
        list(reading)
    with pytest.raises(UserError, match=f"{path} has changed"):
        list(source.documents(unit, Account(0.0)))
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read {path}: No such file"):
        list(source.documents(unit, Account(0.0)))


def test_an_empty_file_is_told(read: Read, tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.parquet", "a.arrow", "a.zip", "a.tar", "a.warc", "a.csv", "a.json", "a.txt.gz"):
        (tmp_path / name).write_bytes(b"")
    documents, account = read(Files(files=[str(tmp_path)]))
    assert documents == []
    assert account.drops.by_reason["empty file"].documents == 10


def test_several_encodings_in_one_file(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Grüße\n".encode() + "Grüße\n".encode("latin-1") + b"Ende\n" + "Grüße\n".encode("utf-16-le"))
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [d.text for d in documents] == ["Grüße\nEnde\n"]
    assert sorted((bad.where, bad.reason) for bad in account.bads) == [
        (f"{path}, line 2", "invalid utf-8"),
        (f"{path}, line 4", "a zero byte"),
        (f"{path}, line 5", "a zero byte"),
    ]
    assert account.good == 2


def test_the_fingerprint_is_of_contents_options_and_formats(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_bytes(jsonl("x"))
    first = Files(files=[str(tmp_path / "one")]).build().fingerprint()
    assert Files(files=[str(tmp_path / "two" / "*")]).build().fingerprint() == first
    changed = [
        {"field": None},
        {"format": Format.jsonl},
        {"encoding": "latin-1"},
        {"split_on": "x"},
        {"bad_share": 0.1},
        {"max_record_bytes": 5},
        {"max_expansion": 5.0},
    ]
    found = {Files(files=[str(tmp_path / "one")], **fields).build().fingerprint() for fields in changed}  # type: ignore[arg-type]
    assert len(found | {first}) == 1 + len(changed)
    (tmp_path / "two" / "a.json").rename(tmp_path / "two" / "a.txt")
    assert Files(files=[str(tmp_path / "two")]).build().fingerprint() != first


def test_wrong_settings_are_told_with_repairs() -> None:
    with pytest.raises(ConfigError) as found:
        Files(files=[], encoding="utf-9", bad_share=2.0, max_record_bytes=0, max_expansion=0.5)
    assert {problem.path for problem in found.value.problems} == {
        "files",
        "encoding",
        "bad_share",
        "max_record_bytes",
        "max_expansion",
    }
