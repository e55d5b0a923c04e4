"""Datasets of the Hugging Face hub, streamed: nothing of them is kept on disk but the prepared tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.data.source.account import Account
from llmfactory.data.source.digest import digests
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.files import LocalFiles
from llmfactory.data.source.hf_disk import is_saved, saved
from llmfactory.data.source.kinds import suffixes
from llmfactory.data.source.paths import resolve, walk
from llmfactory.data.source.reading import Texts
from llmfactory.data.source.record import from_fields
from llmfactory.data.source.spec import Files, Format, HfDisk, Hub

ROWS = (Format.jsonl, Format.json, Format.csv, Format.tsv, Format.parquet, Format.arrow)
"""Formats that hold rows. A page that describes the dataset stands beside them often enough."""
CARDS = ("dataset_info.json", "dataset_infos.json")
SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|dev|eval)(?![a-z])")
COMMIT = re.compile("[0-9a-f]{40}")


def copied(spec: Hub, path: str) -> LocalFiles:
    """The dataset's local copy: its files, or a folder that `save_to_disk` has made."""
    folder = Path(path).expanduser()
    if is_saved(folder):
        return saved(HfDisk(path=path, split=spec.split, field=spec.field, bad_share=spec.bad_share))
    files = [str(file) for file in _chosen(spec, folder)] if folder.is_dir() else [path]
    return LocalFiles(Files(files=files, field=spec.field, bad_share=spec.bad_share))


def _chosen(spec: Hub, folder: Path) -> list[Path]:
    """Of a folder the files that hold the dataset's rows: those that are asked for, else those of the split, by their names."""
    if asked := [file for pattern in spec.data_files for file in sorted(folder.glob(pattern))]:
        return asked
    rows = [suffix for format in ROWS for suffix in suffixes(format)]
    files = [file for file in resolve([str(folder)], rows) if file.name not in CARDS]
    splits = {file: {*SPLIT.findall(f"/{file.relative_to(folder).as_posix()}")} for file in files}
    named = [
        file for file in files if re.search(rf"(?<![a-z]){re.escape(spec.split)}(?![a-z])", file.relative_to(folder).as_posix())
    ]
    if not named and any(splits.values()):
        found = sorted(set().union(*splits.values()))
        raise UserError(
            f"data.source.path={folder} has no files of the split {spec.split!r}, but of {found}: data.source.split={found[0]}"
        )
    return named or files


class HubDataset(Source):
    def __init__(self, spec: Hub) -> None:
        self.spec, self.bad_share = spec, spec.bad_share
        self.folder = Path(spec.id).expanduser()

    def fingerprint(self) -> str:
        spec = self.spec
        options = (spec.name, spec.split, spec.data_files, spec.field, spec.bad_share)
        return f"hub {hashlib.sha256(repr((self.version, options)).encode()).hexdigest()}"

    @cached_property
    def version(self) -> str:
        """The commit on the hub, so that a run goes on with what it has begun with; of a folder a hash of its contents."""
        if self.folder.is_dir():
            return repr([(path.name, digest.content) for path, digest in zip(self._files, digests(self._files), strict=True)])
        if self.spec.revision and COMMIT.fullmatch(self.spec.revision):
            return self.spec.revision
        hub = _package("huggingface_hub")
        try:
            return str(hub.HfApi().dataset_info(self.spec.id, revision=self.spec.revision).sha)
        except Exception as error:  # whatever a library of the network raises
            raise self._failed(error) from error

    @cached_property
    def _files(self) -> list[Path]:
        return sorted(path for path in walk(self.folder) if not any(part.startswith(".") for part in path.parts))

    @cached_property
    def dataset(self) -> Any:
        """An `IterableDataset`."""
        spec, datasets = self.spec, _package("datasets")
        try:
            found = datasets.load_dataset(
                str(self.folder) if self.folder.is_dir() else spec.id,
                spec.name,
                split=spec.split,
                revision=None if self.folder.is_dir() else self.version,
                data_files=spec.data_files or None,
                streaming=True,
            )
            names = found.column_names or list(next(iter(found), {}))
        except UserError:
            raise
        except Exception as error:  # likewise
            raise self._failed(error) from error
        if spec.field is None:
            return found
        column = spec.field if spec.field in names else spec.field.split(".")[0]
        if column not in names:
            raise UserError(f"{spec.id} has no column {spec.field!r} among {names}: data.source.field=...")
        return found.select_columns([column])

    def units(self) -> list[Unit]:
        """A unit is a file on the hub, or some of its row groups."""
        count = self.dataset.num_shards
        size = (self.dataset.info.download_size or 0) // count
        return [Unit(f"{self.spec.id}, part {i + 1} of {count}", size, (i, count)) for i in range(count)]

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        for name, text in self._texts(unit, account):
            yield Document(name, text, sha256(text.encode()).hexdigest())

    def _texts(self, unit: Unit, account: Account) -> Texts:
        index, count = unit.place
        rows = iter(self.dataset.shard(count, index))
        number = 0
        while True:
            number += 1
            name = f"{unit.name}, row {number}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # likewise
                raise UserError(f"{name}: cannot be read: {error}") from error
            found = from_fields(row, self.spec.field)
            if isinstance(found, tuple):
                account.bad(name, *found, 0, repr(row)[:1000])
                continue
            account.good += 1
            if found.strip():
                yield name, found
            else:
                account.left_out("empty document", name)

    def _failed(self, error: Exception) -> UserError:
        spec = self.spec
        what = ", ".join([spec.id, *([spec.name] if spec.name else []), f"split {spec.split}"])
        return UserError(
            f"cannot load {what} from the Hugging Face hub: {type(error).__name__}: {error}. It takes a network, and for a dataset "
            "with terms a login (hf auth login); offline read a copy of its files: data.source.path=my_copy"
        )


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(name, "data", "data/source=hub") from error
