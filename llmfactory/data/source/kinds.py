"""What a file is, by the end of its name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from llmfactory.data.source.spec import Format
from llmfactory.data.source.streams import Compression

SUFFIXES: dict[Format, tuple[str, ...]] = {
    Format.text: (".txt", ".md", ".rst", ".text", ".markdown"),
    Format.html: (".html", ".htm", ".xhtml"),
    Format.jsonl: (".jsonl", ".ndjson"),
    Format.json: (".json",),
    Format.csv: (".csv",),
    Format.tsv: (".tsv", ".tab"),
    Format.parquet: (".parquet", ".pq"),
    Format.arrow: (".arrow", ".feather", ".ipc"),
    Format.warc: (".warc", ".wet"),
}
SEEKING = (Format.parquet, Format.arrow)
"""Are read from a file of their own: their index stands at the end, and they compress themselves."""


class Container(Enum):
    zip = ".zip"
    tar = ".tar"


SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst", ".zstd": ".zst", ".gzip": ".gz"}


@dataclass(frozen=True, slots=True)
class Kind:
    format: Format | None
    """None: its name does not say."""
    compression: Compression | None
    container: Container | None


def kind(name: str, forced: Format | None) -> Kind:
    """`forced`: how it is read whatever its name says; what packs it is always told by the name."""
    name = name.lower()
    for short, long in SHORT.items():
        name = name.removesuffix(short) + long if name.endswith(short) else name
    compression = next((it for it in Compression if name.endswith(it.value)), None)
    name = name.removesuffix(compression.value) if compression else name
    container = next((it for it in Container if name.endswith(it.value)), None)
    said = next((format for format, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)
    return Kind(None if container else forced or said, compression, container)


def suffixes(format: Format | None) -> tuple[str, ...]:
    """Of the files that are taken from a folder: of the format, or all that are known; compressed ones and archives too."""
    plain = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes] if format is None else list(SUFFIXES[format])
    if format is Format.jsonl:
        plain += SUFFIXES[Format.json]
    found = [*plain, *(suffix + it.value for suffix in plain for it in Compression)]
    if format is None:
        packed = [it.value for it in Container]
        found += [*packed, *(".tar" + it.value for it in Compression), *SHORT]
    return tuple(found)
