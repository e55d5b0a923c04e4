"""Parquet and Arrow files (IPC files, feather among them, and IPC streams), some rows at a time, only the column that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.record import as_text, from_fields
from llmfactory.data.source.streams import Damaged, too_long

ROWS = 1024
"""That are looked at together at most."""
BYTES = 8 << 20
"""That they take together at most, on average."""
Pieces = list[tuple[int, int, int]]
"""(first row group or batch, last + 1, number of the first row)"""


def arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", "reading parquet and arrow files") from error
    return pyarrow


def parquet_pieces(path: Path, size: int) -> Pieces:
    """Runs of row groups of about `size` bytes."""
    with _parquet(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        return _runs([(group.total_byte_size, group.num_rows) for group in groups], size)


def arrow_pieces(path: Path, size: int) -> Pieces:
    """Runs of batches of about `size` bytes."""
    return _runs([(batch.get_total_buffer_size(), batch.num_rows) for batch in _batches(path)], size)


def _runs(parts: list[tuple[int, int]], size: int) -> Pieces:
    runs: Pieces = []
    first, row, taken, before = 0, 1, 0, 1
    for i, (part, rows) in enumerate(parts):
        taken, row = taken + part, row + rows
        if taken >= size or i == len(parts) - 1:
            runs.append((first, i + 1, before))
            first, taken, before = i + 1, 0, row
    return runs


def parquet(path: Path, first: int, last: int, reading: Reading) -> Texts:
    with _parquet(path) as file:
        try:
            columns = _columns(file.schema_arrow.names, reading)
            groups = range(first, min(last, file.metadata.num_row_groups))
            total = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            rows = sum(file.metadata.row_group(i).num_rows for i in groups)
            at_once = max(1, min(ROWS, BYTES * rows // max(1, total)))
            yield from _rows(map(sound, file.iter_batches(at_once, row_groups=list(groups), columns=columns)), reading)
        except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:
            raise Damaged("damaged parquet data", str(error)) from error


def ipc(path: Path, first: int, last: int, reading: Reading) -> Texts:
    def chosen() -> Iterator[Any]:
        for i, batch in enumerate(_batches(path)):
            if first <= i < last:
                columns = _columns(batch.schema.names, reading)
                batch = sound(batch if columns is None else batch.select(columns))
                at_once = max(1, min(ROWS, BYTES * batch.num_rows // max(1, batch.get_total_buffer_size())))
                yield from (batch.slice(row, at_once) for row in range(0, batch.num_rows, at_once))

    try:
        yield from _rows(chosen(), reading)
    except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:  # also a column's name may be damaged
        raise Damaged("damaged arrow data", str(error)) from error


def _parquet(path: Path) -> Any:
    arrow()
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:
        raise Damaged("no parquet file, or a truncated one", str(error)) from error


def _batches(path: Path) -> Iterator[Any]:
    """Of an IPC file or stream, mapped into memory rather than read."""
    pa = arrow()
    try:
        with pa.memory_map(str(path)) as file:
            if path.stat().st_size == 0:
                return
            if file.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(file)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                file.seek(0)
                yield from pa.ipc.open_stream(file)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise Damaged("damaged arrow data", str(error)) from error


def _columns(names: list[str], reading: Reading) -> list[str] | None:
    """The one that holds the field; None: all."""
    field = reading.spec.field
    if field is None:
        return None
    name = field if field in names else field.split(".")[0]
    if name not in names:
        raise UserError(f"{reading.where} has no column {field!r} among {names[:20]}: data.source.field=...")
    return [name]


def sound(batch: Any) -> Any:
    """The batch. Raises `Damaged` where it points out of its own bytes: Arrow would follow that, and end the process."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except arrow().ArrowInvalid as error:
            flat = arrow().types.is_string(column.type) or arrow().types.is_large_string(column.type)
            if not (flat and "UTF8" in str(error)):  # which is found last, and of which each row has its own account
                raise Damaged("damaged data", f"column {name!r}: {error}") from error
    return batch


def _rows(batches: Iterator[Any], reading: Reading) -> Texts:
    spec, number = reading.spec, reading.line
    for batch in batches:
        for value in _values(batch):
            name = f"{reading.where}, row {number}"
            number += 1
            if isinstance(value, UnicodeDecodeError):
                reading.bad(name, ("invalid utf-8", f"{value.reason} at byte {value.start}"), len(value.object), value.object)
                continue
            plain = spec.field is not None and spec.field in value
            found = as_text(value[spec.field], str(spec.field)) if plain else from_fields(value, spec.field)
            size = len(found) if isinstance(found, str) else 0
            if size > spec.max_record_bytes:
                found, content = too_long(spec.max_record_bytes), found[:1000]
                reading.bad(name, found, size, str(content))
                continue
            yield from reading.text(name, found, size, repr(value)[:1000] if isinstance(found, tuple) else "")


def _values(batch: Any) -> Iterator[Any]:
    """A dictionary of each row, or the error that its text makes."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield {name: column[i].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            except UnicodeDecodeError as error:
                yield error
