"""guard.jsonl: what a guard decided in a run, a line each, and what of it holds for the rest of the run.

A run that goes on from a checkpoint makes its later decisions again, so their lines are dropped. Rewinds stay: they say which
samples are never read again, and which checkpoints are of a course that was given up. A rewind is written down before anything
else happens, so that a process that is killed at any moment finds out where it stands.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfactory.checkpoint import io
from llmfactory.checkpoint.files import discard
from llmfactory.core.errors import UserError
from llmfactory.data.order import Stretch, joined
from llmfactory.guard.remedy import Action
from llmfactory.parallel.mesh import World
from llmfactory.run.plain_file import write_whole

FILE = "guard.jsonl"
STATE = "guard"
"""Key of a checkpoint's state."""
Line = dict[str, Any]


@dataclass(slots=True)
class Decisions:
    """Of a run, on every process. `lines` is what the file holds."""

    path: Path
    lines: list[Line] = field(default_factory=list)

    @property
    def rewinds(self) -> list[Line]:
        return [line for line in self.lines if line["action"] == Action.rewind.name]

    @property
    def left_out(self) -> tuple[Stretch, ...]:
        """Samples that are not read, ascending and apart."""
        return joined((line["left_out"][0], line["left_out"][1]) for line in self.rewinds)

    def add(self, line: Mapping[str, Any], world: World) -> None:
        """Called by every process; it is on the disk when this returns."""
        self.lines.append(plain(dict(line)))
        world.once(self._write)

    def counted(self) -> dict[str, Any]:
        """The account: decisions by action, samples that were read and not learned from, samples that were left out."""
        if not self.lines:
            return {}
        unlearned = [line for line in self.lines if line.get("withheld") and line["action"] != Action.rewind.name]
        return {
            "decisions": dict(Counter(line["action"] for line in self.lines)),
            "samples_not_learned": sum(len(line.get("rows", ())) for line in unlearned),
            "samples_left_out": sum(last - first for first, last in self.left_out),
        }

    def table(self) -> list[list[str]]:
        """For the report."""
        rows = [["step", "what", "loss", "gradient norm", "samples", "action", "worst rows (documents)"]]
        for line in self.lines:
            worst = "; ".join(f"{row['row']} ({', '.join(map(str, row['documents'][:4]))})" for row in line.get("worst", [])[:4])
            values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in (line["loss"], line["grad_norm"]))
            samples = "{} to {}".format(*line["samples"]) if line.get("samples") else ""
            rows.append([str(line["step"]), line["what"], *values, samples, line["action"], worst])
        return rows

    def _write(self) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)
        if text or self.path.exists():
            write_whole(self.path, text)


def open_decisions(folder: Path, world: World) -> Decisions:
    """Those that hold for the run in `folder` as it goes on; checkpoints that a rewind has given up are gone then."""

    def settle() -> list[Line]:
        found = Decisions(folder / FILE, read_lines(folder / FILE))
        checkpoints = io.checkpoints(folder / "checkpoints")
        if found.rewinds:
            for path in checkpoints:
                if any(io.step_of(path) > one["to"] for one in found.rewinds[len(_rewinds(path)) :]):
                    discard(path)
        newest = io.latest(folder / "checkpoints")
        known = [] if newest is None else _rewinds(newest)
        step = 0 if newest is None else io.step_of(newest)
        kept = [line for line in found.lines if line["action"] == Action.rewind.name or line["step"] <= step]
        if len(known) > len(found.rewinds):  # the file was lost
            kept = known
        if kept != found.lines:
            Decisions(found.path, kept)._write()
        return kept

    lines: list[Line] = []
    world.once(lambda: lines.extend(settle()))
    return Decisions(folder / FILE, world.broadcast(lines))


def _rewinds(checkpoint: Path) -> list[Line]:
    found: list[Line] = io.read_state(checkpoint).get(STATE, {}).get("rewinds", [])
    return found


def read_lines(path: Path) -> list[Line]:
    """Raises UserError: it is not what was written."""
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            Action[line["action"]], int(line["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}, is no decision of a guard ({type(error).__name__}: {error}); restore the file, or delete it: "
                "then the run goes on by what its last checkpoint knows"
            ) from error
        lines.append(line)
    return lines


def plain(value: Any) -> Any:
    """JSON knows no infinity: such numbers become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
