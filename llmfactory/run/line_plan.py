"""The steps of a line, all composed and checked before the first starts, and the name that each one's outcome has.

A step's key is a hash of everything that its outcome depends on: its resolved config without names, resume-safe keys and layouts
(run/resume.py), the contents of its data, and the keys of the steps that it names. So the run folders of steps are found again by
whoever would make the same, and one change renames a step and the steps below it, no others.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llmfactory.config.arguments import override, parse
from llmfactory.config.compose import Composed, compose_job
from llmfactory.config.plain import from_plain
from llmfactory.config.saved import CONFIG
from llmfactory.config.tree import COMMAND_LINE
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.core.spec import stem
from llmfactory.data.documents import Plan
from llmfactory.data.examples import SUFFIXES
from llmfactory.data.source.digest import digests
from llmfactory.data.source.paths import resolve
from llmfactory.data.spec import DataSpec, DocumentsSpec, Labelled
from llmfactory.run.plain_file import write_yaml
from llmfactory.run.resume import ROUNDING, SAFE, flatten, matches
from llmfactory.stage.judges import content_of, find
from llmfactory.stage.models import TrainedModels
from llmfactory.stage.spec import Describe, Line

FORMAT = 1
"""Version of what keys are made of; part of each."""
CHECKPOINTS = "checkpoints"
STEPS = "steps"
"""Folder of the steps of all lines, below output_dir."""
MATTERS = ("trainer.max_steps", "trainer.patience", "trainer.eval_every")
"""Resume-safe keys that the outcome depends on all the same: they say where a run ends."""
OWN = {"name", "output_dir", "resume", "experiment", "stage"}
"""What an override of a line may be about: the line itself. All others go to its steps."""
EXPERIMENT = re.compile(r"(^|[/ ])experiment/")
"""In where a value came from."""
NAMED = re.compile(r"(?<![^\s\[,{:'\"])@([A-Za-z]\w*)")
"""A step named in a value."""


@dataclass(frozen=True, slots=True)
class Step:
    """One job of a line."""

    name: str
    seed: int
    key: str
    composed: Composed
    """Its config names its run folder, and those of its ancestors."""
    ancestors: tuple[str, ...]
    """Names of the steps that it names itself."""
    data: str | None
    """Hash of the contents of its data; None: an earlier step makes them."""

    @property
    def folder(self) -> Path:
        return Path(self.composed.plain["output_dir"], self.composed.plain["name"]).expanduser()


def plan(line: Composed) -> list[list[Step]]:
    """The steps for each seed, in order. Raises one ConfigError with every problem of every step."""
    spec = line.job.stage
    assert isinstance(spec, Line)
    problems = list(_lost(line))
    seeds: list[int | None] = [*spec.seeds] or [None]
    planned = [_of_seed(line, spec, seed, problems) for seed in seeds]
    if problems:
        raise ConfigError({str(problem): problem for problem in problems}.values())
    return planned


def _lost(line: Composed) -> Iterator[Problem]:
    """Values that an experiment sets beside the line's own: no step would see them."""
    for key, origin in line.origins.items():
        own = key.split(".")[0] in OWN
        if not own and EXPERIMENT.search(origin):
            reason = f"{origin} sets it for the line, whose steps do not see it: put it into those that need it"
            yield Problem(key.rstrip("."), "set", reason)


def passed_on(overrides: Sequence[str]) -> list[str]:
    """Those of the line's overrides that go to all steps."""
    arguments, _ = parse(overrides)
    return [one.text for one in arguments if re.split(r"[./@]", one.key)[0] not in OWN and not one.is_hydras]


def _of_seed(line: Composed, spec: Line, seed: int | None, problems: list[Problem]) -> list[Step]:
    root = Path(line.plain["output_dir"], STEPS)
    every = [*passed_on(line.overrides), *([] if seed is None else [f"seed={seed}"])]
    steps: dict[str, Step] = {}
    failed: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="llmfactory_line_") as scratch:
        for name, own in spec.steps.items():
            told = [*own, *every, *spec.changes.get(name, ())]
            unknown = list(_unknown(name, told, spec))
            problems += [_of_step(name, problem) for problem in unknown]
            named = sorted({step for text in told for step in _named(text)} & {*steps, *failed})
            if unknown or failed.intersection(named):  # what stands on a wrong step cannot be told from it
                failed.add(name)
                continue
            try:
                composed = compose_job([_filled(text, lambda step: str(Path(scratch, step))) for text in told], line.config_dirs)
                wrong = list(_unfit(composed))
                found = None if wrong else _step(name, composed, scratch, root, steps)
            except ConfigError as error:
                wrong, found = list(error.problems), None
            except UserError as error:
                wrong, found = [Problem("data", stem(type(composed.job.data)), str(error))], None
            problems += [_of_step(name, replace(problem, value=_shown(problem.value, scratch))) for problem in wrong]
            if found is None:
                failed.add(name)
                continue
            place = Path(scratch, name)
            place.mkdir()
            write_yaml(place / CONFIG, composed.plain)
            steps[name] = replace(found, composed=replace(found.composed, overrides=told))
    return list(steps.values())


def _shown(value: Any, scratch: str) -> Any:
    return value.replace(f"{scratch}/", "@") if isinstance(value, str) else value


def _named(text: str) -> list[str]:
    return NAMED.findall(text.partition("=")[2])


def _filled(text: str, place: Callable[[str], str]) -> str:
    """An override with the steps' folders in place of their names."""
    key, equals, value = text.partition("=")
    return key + equals + NAMED.sub(lambda found: place(found[1]), value)


def _unknown(name: str, told: Sequence[str], spec: Line) -> Iterator[Problem]:
    names = list(spec.steps)
    before = names[: names.index(name)]
    for text in told:
        for step in _named(text):
            if step not in before:
                where = "it stands behind this one" if step in names else "there is no such step"
                known = f"; before it come {', '.join(before)}" if before else "; none comes before it"
                yield Problem(text.partition("=")[0], f"@{step}", f"{where}{known}")


def _unfit(composed: Composed) -> Iterator[Problem]:
    """Jobs that cannot be a step."""
    stage, launch = composed.job.stage, composed.job.launch
    if isinstance(stage, (Line, Describe)):
        yield Problem("stage", stem(type(stage)), "leaves nothing that a step could stand on: it cannot be one", "stage=pretrain")
    if launch.waits is not None:
        reason = "the next step needs this one's outcome, and this launch returns before there is one"
        yield Problem("launch", stem(type(launch)), reason, launch.waits)
    for key in ("name", "output_dir"):
        if composed.origins.get(key) == COMMAND_LINE:
            yield Problem(
                key, composed.plain[key], "is made from what a step depends on", f"{key}=null" if key == "name" else None
            )


def _of_step(name: str, problem: Problem) -> Problem:
    """A step's problem seen from the line; its repair goes to that step alone."""
    repair = problem.repair
    if repair is not None:
        repair = override(f"stage.changes.{name}", re.split(r" (?=[\w/@.+~]+=)", repair))
    return Problem(problem.path, problem.value, f"{problem.reason} (step {name})", repair)


def _step(name: str, composed: Composed, scratch: str, root: Path, before: Mapping[str, Step]) -> Step:
    folders = {str(Path(scratch, step)): one for step, one in before.items()}
    plain = composed.plain
    ancestors = tuple(sorted({one.name for text in _texts(plain) for place, one in folders.items() if _inside(text, place)}))
    keyed = _replaced(plain, {place: f"@{one.key}" for place, one in folders.items()})
    inside = partial(_inside_any, places=tuple(folders))
    data = None if any(map(inside, _texts(plain["data"]))) else data_key(composed.job.data)
    depends = {key: value for key, value in flatten(keyed) if key in MATTERS or not matches(key, {**SAFE, **ROUNDING})}
    parts = [FORMAT, depends, data, outside(plain, inside)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    placed = _replaced(plain, {place: str(one.folder) for place, one in folders.items()})
    placed |= {"name": f"{plain['stage']['type']}-{key}", "output_dir": str(root)}
    whole = replace(composed, plain=placed, job=from_plain(placed))
    return Step(name, int(plain["seed"]), key, whole, ancestors, data)


def _inside(text: str, place: str) -> bool:
    return text == place or text.startswith(f"{place}/")


def _inside_any(text: str, places: Sequence[str]) -> bool:
    return any(_inside(text, place) for place in places)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _replaced(value: Any, places: Mapping[str, str]) -> Any:
    """The same data with other folders."""
    if isinstance(value, dict):
        return {key: _replaced(one, places) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, places) for one in value]
    if isinstance(value, str):
        return next((new + value[len(old) :] for old, new in places.items() if _inside(value, old)), value)
    return value


def data_key(data: DataSpec) -> str:
    """Hash of the contents that the data have now. The steps of a line share theirs, so each is looked at once."""
    shown = repr(data)
    if shown not in _KEYS:
        _KEYS[shown] = _contents(data)
    return _KEYS[shown]


_KEYS: dict[str, str] = {}
"""Of this process, by what the config says of them."""


def _contents(data: DataSpec) -> str:
    if isinstance(data, DocumentsSpec):
        return Plan.of(data.named(), data.clean, data.form, TrainedModels()).fingerprint()
    assert isinstance(data, Labelled)
    files = resolve([*data.files, *data.held_out_files], SUFFIXES, "data.files")
    return " ".join(one.content for one in digests(files))


def outside(plain: Mapping[str, Any], inside: Callable[[str], bool]) -> dict[str, str]:
    """Hash of each trained model that a config names and no step makes."""
    texts = {text for text in (plain["init"], *_texts(plain["stage"])) if text is not None and not inside(text)}
    runs = [text for text in sorted(texts) if text == plain["init"] or (text and Path(text, CHECKPOINTS).is_dir())]
    return {text: content_of(find(text)) for text in runs}
