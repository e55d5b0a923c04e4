"""The page docs/proofs.md: which pairs are proven, which are refused and by which rule, and what the full cross gave last."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cases import LAYOUTS, PRESETS, PRODUCTS, SAME, VARIANTS, WORKLOADS, Case
from plan import kind_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "proofs.md"
RESULTS = ROOT / "docs" / "proofs_matrix.csv"
"""What `-m matrix` gave: one line for each layout of each run."""
COLUMNS = ("date", "commit", "shard", "layout", "proven", "failed")
SKELETONS = tuple(dict.fromkeys(work.skeleton for work in WORKLOADS.values()))
KINDS = ("data", "tp", "sp", "cp", "pp", "ep", "product")
MADE = ("packed", "padded")

INTRODUCTION = """\
# Proofs

Every layout is compared with a single process that takes each step whole: {cases} trainings in {runs} runs (a run is one start of a
layout's processes), chosen so that the pairs below are covered. Each is five optimizer steps of AdamW with weight decay, clipping at
work at every step, seven rows a step in micro-batches, documents of uneven length, and a held-out loss after the third. The loss and
gradient norm of each step, the held-out loss and every weight at the end, on every process, must equal those of the single process
to 1e-9 in float64. `bf16_mixed` is compared with a single process in bf16_mixed, to {bf16:g} (see `tests/distributed/test_proofs.py`);
`lora` is a stand-in: most weights are frozen, by name, and a few are trained in every layer. Besides, the loss and norm of every
preset equal those of the single process to 1e-5 in float32.

`pytest --update-golden tests/distributed/test_proof_plan.py` makes this page from what the rules say; a test compares them.

## Layouts and skeletons

A cell names the objectives that ran, or the rules that refuse the pair while composing. {same}. Of products, the largest runs, the
suite tries each with a few and all skeletons with some; a dash is a pair that only `-m matrix` tries or that a rule refuses.
"""


def page(plan: dict[str, Any], bf16: float) -> str:
    """The page of a plan (`plan.make_plan`)."""
    cases = [Case(*case) for case in plan["cases"]]
    refused = {tuple(map(tuple, entry["pair"])): entry["rules"] for entry in plan["refused"]}
    same = "; ".join(f"`{one}` is `{other}` by another name" for one, other in SAME.items())
    runs = len({case.layout for case in cases})
    text = [INTRODUCTION.format(cases=len(cases), runs=runs, bf16=bf16, same=same)]
    numbers: dict[str, int] = {}
    for group, title in ((PRESETS, "preset"), (PRODUCTS, "product")):
        text.append(_table([title, "processes", *SKELETONS], (_skeletons(name, cases, refused, numbers) for name in group)))
    text.append("".join(f"{number}. `{rule}`\n" for rule, number in numbers.items()))
    text.append("## Layouts, variants and rows\n")
    text.append(_table(["layout", *VARIANTS, *MADE], (_variants(name, cases, refused) for name in LAYOUTS)))
    text.append("## Objectives and kinds of layouts\n\nThe kinds: data parallel and ZeRO, tensor, sequence, context, pipeline,")
    text.append("expert parallel, and products.\n")
    objectives = dict.fromkeys(work.objective for work in WORKLOADS.values())
    text.append(_table(["objective", *KINDS], (_kinds(name, cases) for name in objectives)))
    text.append("## The full cross\n")
    text.append(_results())
    return "\n".join(part.rstrip("\n") + "\n" for part in text)


def _skeletons(layout: str, cases: list[Case], refused: dict[Any, list[str]], numbers: dict[str, int]) -> list[str]:
    row = [layout, str(LAYOUTS[layout].world)]
    for skeleton in SKELETONS:
        found = [WORKLOADS[c.workload] for c in cases if c.layout == layout and WORKLOADS[c.workload].skeleton == skeleton]
        preset = (("preset", layout), ("skeleton", skeleton))
        rules = refused.get(preset, refused.get(preset[::-1], []))
        marks = [f"[{numbers.setdefault(rule, len(numbers) + 1)}]" for rule in rules]
        ran = ", ".join(dict.fromkeys(work.objective for work in found))
        row.append(ran or (f"refused {' '.join(marks)}" if rules else "-"))
    return row


def _variants(layout: str, cases: list[Case], refused: dict[Any, list[str]]) -> list[str]:
    own = [case for case in cases if case.layout == layout]
    row = [layout]
    for factor, values in (("variant", VARIANTS), ("packing", MADE)):
        for value in values:
            count = sum(getattr(case, factor) == value for case in own)
            row.append(str(count) if count else "-")
    return row


def _kinds(objective: str, cases: list[Case]) -> list[str]:
    counts = [sum(kind_of(c.layout) == kind and WORKLOADS[c.workload].objective == objective for c in cases) for kind in KINDS]
    return [objective, *(str(count) if count else "refused" for count in counts)]


def _results() -> str:
    command = "`pytest -m matrix tests/distributed --shard 3/20` runs every legal case of a twentieth of the cross"
    if not RESULTS.exists():
        return f"{command}; it has not been run yet.\n"
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    head = f"{command} and adds its lines here.\n"
    return head + "\n" + _table(list(COLUMNS), ([row[name] for name in COLUMNS] for row in rows))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, [":--"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
