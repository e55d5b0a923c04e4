"""From sources to the documents that are left of them: every segment and comparison in turn; once for each content, in the cache.

A folder of documents is named after the hash of all that it depends on. It appears whole, by a rename. Until then the finished
tasks stand in `<folder>.work`, from where a process that was killed, or several at once, go on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.checksum import Damaged
from llmfactory.data.clean.comparison import Comparison
from llmfactory.data.clean.models import Models
from llmfactory.data.clean.spec import CleanSpec
from llmfactory.data.clean.step import Step
from llmfactory.data.form.spec import FormSpec
from llmfactory.data.grouping import Grouping, Settling, partitions_for
from llmfactory.data.lock import shared, tried
from llmfactory.data.segment import FORM, QUARANTINE, Part, Segment, cut
from llmfactory.data.shard import Shard, Shards, check_about, forget_texts, read_about, write_about
from llmfactory.data.source.account import insist_on_share
from llmfactory.data.source.document import Source
from llmfactory.data.source.spec import SourceSpec
from llmfactory.data.spec import key_of
from llmfactory.data.tally import READ, Tally
from llmfactory.data.tasks import Interrupted, Progress, Publication, Workers, run

FORMAT = 2
"""Version of what stands in the folder; part of its hash."""
SHARDS, SUMMARY = "shards", "summary"


@dataclass(frozen=True, slots=True)
class Plan:
    """What documents are made of, opened once."""

    specs: Mapping[str, SourceSpec]
    clean: Mapping[str, CleanSpec]
    form: FormSpec
    models: Models
    sources: Mapping[str, Source]
    steps: Mapping[str, Step | Comparison]

    @property
    def described(self) -> str:
        """The sources in words."""
        named = [(name, getattr(source, "files", None), type(source).__name__) for name, source in self.specs.items()]
        words = (f"files={files}" if files else kind for _, files, kind in named)
        keys = (key_of(name, self.specs) for name in self.specs)
        return ", ".join(f"{key}.{what}" if "=" in what else f"{key} ({what})" for key, what in zip(keys, words, strict=True))

    @classmethod
    def of(cls, specs: Mapping[str, SourceSpec], clean: Mapping[str, CleanSpec], form: FormSpec, models: Models) -> Plan:
        sources = {name: spec.build() for name, spec in specs.items()}
        return cls(specs, clean, form, models, sources, {name: spec.build(models) for name, spec in clean.items()})

    def fingerprint(self) -> str:
        """Hash of everything that the documents depend on. How many processes work is not among it."""
        parts = [
            FORMAT,
            [[name, type(self.specs[name]).__name__, source.fingerprint()] for name, source in self.sources.items()],
            [[name, self.clean[name].sources, step.fingerprint()] for name, step in self.steps.items()],
            self.form.build().fingerprint(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a corpus, on disk."""

    folder: Path
    shards: Shards
    tally: Tally
    about: dict[str, Any]
    """What the summary says besides: units, records and bad ones by source, clusters of copies by comparison."""

    @property
    def name(self) -> str:
        return self.folder.name


def open_documents(folder: Path) -> Documents:
    """Raises Damaged."""
    about = check_about(folder)
    shards = [Shard(path, check_about(path)) for path in sorted((folder / SHARDS).iterdir())]
    if len(shards) != about["shards"]:
        raise Damaged(f"{folder} has {len(shards)} shards instead of {about['shards']}")
    return Documents(folder, Shards(shards), Tally.of(about["tally"]), about)


def make_documents(plan: Plan, folder: Path, workers: Workers, progress: Progress) -> Documents:
    """Those of the folder, made now where they are not there. Several processes may call it at once, and share the work."""

    def make(work: Path) -> None:
        parts = cut(plan.steps)
        before: Path | None = None
        verdicts: Path | None = None
        found: dict[str, Any] = {}
        made: list[Path] = []
        for number, part in enumerate(parts):
            segment = _segment(plan, number, part, before, verdicts)
            before = run(segment, work, workers, progress)
            made.append(before)
            if number in (0, len(parts) - 1):
                insist_on_shares(plan, [Shards.of(one) for one in dict.fromkeys((made[0], before))])
            verdicts = None
            if part.after is not None:
                verdicts = _compare(plan, number, part.after, before, work, workers, progress)
                found[part.after] = read_about(verdicts)["clusters"]
            if number:  # nobody reads the texts of the segment before any more
                for shard in Shards.of(made[-2]).shards:
                    forget_texts(shard.folder)
        assert before is not None
        run(
            Publishing(
                name="publish",
                plan_order=tuple(plan.steps),
                made=tuple(made),
                target=folder,
                found=found,
                described=plan.described,
            ),
            work,
            workers,
            progress,
        )

    def opened() -> Documents | None:
        try:
            return open_documents(folder) if folder.is_dir() else None
        except Damaged:
            return None

    documents: Documents = publish(folder, opened, make)
    return documents


def publish(folder: Path, opened: Callable[[], Any], make: Callable[[Path], None]) -> Any:
    """What `opened` finds in the folder; where it finds nothing, `make` is given a place to work in, and must put the folder there.

    Several processes may be in here for the same folder; the last one out clears the working place away.
    """
    if (found := opened()) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, work = folder.with_name(f"{folder.name}.lock"), folder.with_name(f"{folder.name}.work")
    keep = True
    try:
        with shared(lock):
            if (found := opened()) is None:
                if folder.is_dir() and opened() is None:  # damaged; somebody may have finished it between two looks
                    shutil.rmtree(folder)
                work.mkdir(exist_ok=True)
                make(work)
        if found is None and (found := opened()) is None:
            raise UserError(f"{folder} was made and is damaged already: is the disk all right?")
        keep = False
    except Interrupted:
        raise
    except UserError:  # something is wrong with the data: mended, they will have another name
        keep = False
        raise
    finally:
        if not keep:
            clear(lock, work)
    return found


def clear(lock: Path, folder: Path) -> None:
    """Take a folder away, unless somebody else holds its lock."""
    with tried(lock) as alone:
        if alone:
            shutil.rmtree(folder, ignore_errors=True)


def _segment(plan: Plan, number: int, part: Part, before: Path | None, verdicts: Path | None) -> Segment:
    size = 0 if part.after is None else _size(plan, before)
    return Segment(
        name=f"{number:02d}_documents",
        part=part,
        sources=dict(plan.specs),
        clean=dict(plan.clean),
        form=plan.form,
        models=plan.models,
        partitions=partitions_for(size),
        before=before,
        verdicts=verdicts,
    )


def _size(plan: Plan, before: Path | None) -> int:
    """Bytes that a segment reads; whoever asks gets the same."""
    if before is None:
        return sum(unit.size for source in plan.sources.values() for unit in source.units())
    return Shards.of(before).bytes


def _compare(plan: Plan, number: int, name: str, shards: Path, work: Path, workers: Workers, progress: Progress) -> Path:
    previous = None if number == 0 else shards.parent / f"{number - 1:02d}_documents"
    grouping = Grouping(
        name=f"{number:02d}_groups",
        step=name,
        clean=plan.clean[name],
        models=plan.models,
        shards_folder=shards,
        partitions=partitions_for(_size(plan, previous)),
    )
    groups = run(grouping, work, workers, progress)
    settling = Settling(name=f"{number:02d}_copies", grouping=grouping, groups_folder=groups)
    return run(settling, work, workers, progress) / "00000"


def reasons(tally: Tally) -> str:
    """Why there is nothing left."""
    return "".join(
        f"; {one.documents} × {reason} (step {name})" + (f", for instance {one.samples[0].name}" if one.samples else "")
        for name, step in tally.steps.items()
        for reason, one in step.dropped.items()
    )


def insist_on_shares(plan: Plan, segments: Sequence[Shards]) -> None:
    """Raises UserError where a source has more bad records than it may: those that cannot be read, and, in the last segment,
    those that are not what their form says."""
    for name, source in plan.sources.items():
        its = [shard for shards in segments for shard in shards.shards if shard.source == name]
        bad, total = (sum(shard.about.get(key, 0) for shard in its) for key in ("bad", "records"))
        if not bad:
            continue
        key = f"{key_of(name, plan.sources)}.bad_share"
        insist_on_share(bad, total, source.bad_share, first_bad(its), key)


def first_bad(shards: Sequence[Shard]) -> str:
    """The first record that was set aside, in words."""
    for shard in shards:
        path = shard.folder / QUARANTINE
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                one = json.loads(next(file))
            return ": ".join(part for part in (one["where"], one["reason"], one["detail"]) if part)
    return "unknown"


@dataclass(kw_only=True)
class Publishing(Publication):
    """One task: the last segment's shards under their name, with the account of all."""

    name: str
    plan_order: tuple[str, ...]
    made: tuple[Path, ...]
    """Folders of all segments' shards."""
    found: dict[str, Any]
    described: str
    label: str = "cleaning"

    def fill(self, whole: Path) -> None:
        segments = [Shards.of(made) for made in self.made]
        first, last = segments[0], segments[-1]
        every = [shard for segment in segments for shard in segment.shards]
        tally = Tally({name: Tally().step(name) for name in (READ, *self.plan_order, FORM)})
        for shard in every:
            tally.merge(Tally.of(shard.about["tally"]))
        if not len(last):
            raise UserError(f"the corpus is empty: {self.described} holds no text" + reasons(tally))
        (whole / SHARDS).mkdir()
        _quarantine(every, whole)
        for one in last.shards:
            if len(one):
                _link(one.folder, whole / SHARDS / one.folder.name)
        sources: dict[str, dict[str, int]] = {}
        for shard in first.shards:
            counts = sources.setdefault(shard.source, {"units": 0, "records": 0, "bad": 0, "documents": 0, "bytes": 0})
            counts["units"] += 1
            counts["records"] += shard.about["records"]
        for shard in every:
            sources[shard.source]["bad"] += shard.about["bad"]
        for shard in last.shards:
            sources[shard.source]["documents"] += len(shard)
            sources[shard.source]["bytes"] += shard.bytes
        shards = sum(1 for one in last.shards if len(one))
        write_about(whole, shards=shards, sources=sources, tally=tally.plain(), copies=self.found, format=FORMAT)


def _link(place: Path, to: Path) -> None:
    """Hard links, not renames: whoever is killed here finds everything in its place again."""
    to.mkdir()
    for file in sorted(place.iterdir()):
        try:
            (to / file.name).hardlink_to(file)
        except OSError:  # a file system without such links
            shutil.copyfile(file, to / file.name)


def _quarantine(shards: Sequence[Shard], whole: Path) -> None:
    """All records that were set aside, in order."""
    with (whole / QUARANTINE).open("wb") as out:
        for shard in shards:
            path = shard.folder / QUARANTINE
            if path.is_file():
                out.write(path.read_bytes())
