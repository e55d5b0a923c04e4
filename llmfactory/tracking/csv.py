"""metrics.csv: a row a logged step, numbers in full precision (the shortest text that reads back as the same float).

A row is on its way to the disk as soon as its step is logged; a second call for the same step replaces it in place. So a
killed process loses at most its last row, and half a last line is dropped when the file is read again. A metric that was
never seen before adds a column: the whole file is rewritten under another name and renamed.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.tracking.tracker import Tracker

STEP = "step"


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv as text, empty cells left out; an unfinished last line is ignored."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(io.StringIO(whole))]


def line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


class CsvTracker(Tracker):
    """Appends to the file that is there; `rewind` drops what a resumed run will do again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.rows = read_metrics(self.path)
        self.columns = list(dict.fromkeys([STEP, *(key for row in self.rows for key in row)]))
        self._start_of_last = self._end = 0
        self._rewrite()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        cells = {key: repr(value) if isinstance(value, int) else repr(float(value)) for key, value in metrics.items()}
        if self.rows and self.rows[-1][STEP] == str(step):
            self.rows[-1].update(cells)
        else:
            self.rows.append({STEP: str(step), **cells})
            self._start_of_last = self._end
        new = [key for key in cells if key not in self.columns]
        self.columns += new
        if new:
            self._rewrite()
        else:
            self._write_last()

    def rewind(self, step: int) -> None:
        self.rows = [row for row in self.rows if int(row[STEP]) <= step]
        self._rewrite()

    def finish(self, summary: dict[str, float]) -> None:
        pass

    def _line(self, row: dict[str, str]) -> bytes:
        return line([row.get(column, "") for column in self.columns]).encode()

    def _write_last(self) -> None:
        data = self._line(self.rows[-1])
        try:
            with open(self.path, "r+b") as file:
                file.seek(self._start_of_last)
                file.write(data)
                file.truncate()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._end = self._start_of_last + len(data)

    def _rewrite(self) -> None:
        lines = [line(self.columns).encode(), *map(self._line, self.rows)]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._end = sum(map(len, lines))
        self._start_of_last = self._end - len(lines[-1]) if self.rows else self._end
