"""Which cases the suite proves: a pairwise cover, asked of the rules, kept in plan.json so that collecting tests costs nothing.

Factors are the layout, the skeleton, the objective, how rows are made, and the variant of training. All their pairs count, except
those of one layout with one objective: an objective sees what an axis of a layout does to rows, tokens or logits, not which of the
products of that axis it is in. So objectives pair with the kinds of layouts instead; `-m matrix` runs them under all. The products of
axes, the largest runs, count as one preset, of which each takes a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cases import LAYOUTS, PACKINGS, PRODUCTS, VARIANTS, WORKLOADS, Case, refusals
from covering import Pair, Row, cover

FILE = Path(__file__).with_name("plan.json")


def kind_of(layout: str) -> str:
    """Of what is special about a layout."""
    axes = LAYOUTS[layout].axes
    if layout in PRODUCTS or len(set(axes) - {"dp_replicate", "dp_shard", "sp", "ep"}) > 1:
        return "product"
    for kind in ("ep", "pp", "cp", "sp", "tp"):
        if kind in axes:
            return kind
    return "data"


def cases() -> Iterator[Case]:
    """The full cross, legal or not."""
    for layout in LAYOUTS:
        for workload, work in WORKLOADS.items():
            for packing in PACKINGS if work.task is None else ["padded"]:
                for variant in VARIANTS:
                    yield Case(layout, workload, packing, variant)


def row_of(case: Case) -> Row:
    work = WORKLOADS[case.workload]
    return {
        "layout": case.layout,
        "skeleton": work.skeleton,
        "preset": "product" if case.layout in PRODUCTS or case.layout == "survey_3d" else case.layout,  # the axes of 3d
        "variant": case.variant,
        "packing": case.packing,
        "kind": kind_of(case.layout),
        "objective": work.objective,
        "workload": case.workload,
    }


def wanted(one: str, other: str) -> bool:
    if "workload" in (one, other):
        return {one, other} in ({"workload", "packing"}, {"workload", "variant"}, {"workload", "kind"})
    if "preset" in (one, other):
        return bool({one, other} & {"skeleton", "variant", "packing"})
    if "layout" in (one, other):
        return {one, other} == {"layout", "kind"}  # each at least once
    return "kind" not in (one, other) or {one, other} == {"kind", "objective"}


def case_of(row: Row) -> Case:
    return Case(row["layout"], row["workload"], row["packing"], row["variant"])


def make_plan(folder: Path) -> dict[str, Any]:
    """The cases to prove, and for each refused pair the rules that refuse it."""
    known: dict[Case, list[str]] = {}

    def rules_against(case: Case) -> list[str]:
        if case not in known:
            known[case] = sorted({rule_of(problem.reason) for problem in refusals(case, folder)})
        return known[case]

    candidates = [row_of(case) for case in cases()]
    rows, impossible = cover(candidates, lambda row: not rules_against(case_of(row)), wanted)
    chosen = sorted((case_of(row) for row in rows), key=lambda case: list(LAYOUTS).index(case.layout))
    return {
        "cases": [[case.layout, case.workload, case.packing, case.variant] for case in chosen],
        "refused": [_refused(pair, candidates, rules_against) for pair in impossible if _shown(pair)],
    }


def _shown(pair: Pair) -> bool:
    return "workload" not in (pair[0][0], pair[1][0])


def _refused(pair: Pair, candidates: list[Row], rules_against: Any) -> dict[str, Any]:
    having = [case_of(row) for row in candidates if dict(pair).items() <= dict(row).items()]
    return {"pair": [list(value) for value in pair], "rules": sorted({rule for case in having for rule in rules_against(case)})}


def rule_of(reason: str) -> str:
    """The name that a refusal ends with."""
    found = re.search(r"\(rule (\w+)\)$", reason)
    return found.group(1) if found else reason


def read_plan() -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return plan


def planned() -> list[Case]:
    """The cases that the suite proves, those of one layout together."""
    return [Case(*case) for case in read_plan()["cases"]]


def text_of(plan: dict[str, Any]) -> str:
    """plan.json, one entry a line."""
    parts = []
    for key, entries in plan.items():
        lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
        parts.append(f'"{key}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"
