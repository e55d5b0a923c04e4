"""How fast files become documents, beside the shortest loops over the same files: CPU seconds for 100 MB of text on one core.

    python benchmarks/read_files.py --rounds 5

Ours checks every record, names it, hashes it for the split and counts it; the plain loops (`json.loads`, `csv.reader`,
`to_pylist`) do nothing but get the field. Files are made of documentation of this Python, 3,000 characters a record.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import interleave

SIZE = 60_000_000
"""Characters of text a file."""
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "txt", "parquet", "arrow")


def texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    everything = "".join(topics.values())
    for i in range(SIZE // 3000):
        start = i * 1237 % (len(everything) - 3000)
        yield everything[start : start + 3000]


def write(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    from llmfactory.data.source.streams import zstd

    rows = [{"id": i, "text": text, "url": f"http://a.b/{i}"} for i, text in enumerate(texts())]
    lines = [json.dumps(row) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    (folder / "a.jsonl").write_bytes(content)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(content, 6))
    (folder / "a.jsonl.zst").write_bytes(zstd.compress(content))
    (folder / "a.json").write_text("[" + ",\n".join(lines) + "]")
    (folder / "a.txt").write_text("\n".join(f"{row['text']}\n<end>" for row in rows))
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, folder / "a.parquet", row_group_size=10_000)
    pa.feather.write_feather(table, folder / "a.arrow", chunksize=1000)


def ours(path: Path) -> Iterator[str]:
    from llmfactory.data.source.account import Account
    from llmfactory.data.source.spec import Files

    source = Files(files=[str(path)], split_on="<end>").build()
    for unit in source.units():
        yield from (document.text for document in source.documents(unit, Account(0.0)))


def plain(path: Path) -> Iterator[str]:
    import pyarrow.feather
    import pyarrow.parquet

    name = path.name
    if name.endswith("zst"):
        from llmfactory.data.source.streams import zstd

        with zstd.open(path, "rb") as file:
            yield from (json.loads(line)["text"] for line in file)
    elif name.endswith("gz"):
        with gzip.open(path, "rb") as file:
            yield from (json.loads(line)["text"] for line in file)
    elif name.endswith("jsonl"):
        with path.open("rb") as file:
            yield from (json.loads(line)["text"] for line in file)
    elif name.endswith("json"):
        yield from (row["text"] for row in json.loads(path.read_bytes()))
    elif name.endswith("csv"):
        with path.open(newline="") as file:
            yield from (row["text"] for row in csv.DictReader(file))
    elif name.endswith("txt"):
        yield from path.read_text().split("\n<end>\n")
    elif name.endswith("parquet"):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000, columns=["text"]):
            yield from batch.column(0).to_pylist()
    else:
        reader = pyarrow.ipc.open_file(path)
        for batch in map(reader.get_batch, range(reader.num_record_batches)):
            yield from batch.column("text").to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, help="a sample: ours or plain, and the file")
    args = parser.parse_args()
    if args.one:
        side, path = args.one
        read = {"ours": ours, "plain": plain}[side]
        if side == "ours":
            from llmfactory.data.source.digest import digests

            digests([Path(path)])  # is kept from one run to the next
        next(read(Path(path)))
        begin = time.process_time()
        size = sum(map(len, read(Path(path))))
        print((time.process_time() - begin) / size * 1e8)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name in FORMATS:
            print(f"\n### {name}\n")
            path = str(Path(folder) / f"a.{name}")
            variants = {side: [__file__, "--one", side, path] for side in ("plain", "ours")}
            interleave(
                variants,
                "plain",
                args.rounds,
                "CPU s/100 MB",
                {"XDG_CACHE_HOME": folder, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
