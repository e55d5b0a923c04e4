"""The plan of the proofs and their page are what the rules of now say. `pytest --update-golden` rewrites both."""

from __future__ import annotations

from pathlib import Path

import proof_page
import pytest
from cases import LAYOUTS, SAME, VARIANTS, WORKLOADS, _mesh
from plan import FILE, make_plan, planned, text_of
from proof import BF16

from llmfactory.config.register import options

HINT = "accept with pytest --update-golden tests/distributed/test_proof_plan.py"
OWN_ENGINE = "deepspeed_"
"""Presets that another engine runs, with tests of their own."""
CHOOSES = ("auto",)
"""Presets that choose one of these layouts."""


@pytest.mark.timeout(600)
def test_the_plan_and_its_page(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plan = make_plan(tmp_path)
    if request.config.getoption("--update-golden"):
        FILE.write_text(text_of(plan), encoding="utf-8")
        proof_page.PAGE.write_text(proof_page.page(plan, BF16), encoding="utf-8")
    assert FILE.read_text(encoding="utf-8") == text_of(plan), f"the rules, layouts or models changed: {HINT}"
    assert proof_page.PAGE.read_text(encoding="utf-8") == proof_page.page(plan, BF16), HINT


def test_every_preset_is_in() -> None:
    for preset in options("parallel"):
        if preset in LAYOUTS or preset in CHOOSES or preset.startswith(OWN_ENGINE):
            continue
        assert _mesh((f"parallel={preset}",)) == _mesh((f"parallel={SAME[preset]}",)), f"{preset} stands in no proof"


def test_layouts_are_as_large_as_they_say() -> None:
    for name, layout in LAYOUTS.items():
        degrees = layout.mesh.degrees_for(layout.world)
        product = degrees["pp"] * degrees["dp_replicate"] * degrees["dp_shard"] * degrees["cp"] * degrees["tp"]
        assert product == layout.world <= 8, name


def test_the_plan_names_everything() -> None:
    cases = planned()
    assert len({case.layout for case in cases}) <= 60
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.workload for case in cases} == set(WORKLOADS)
    assert {case.variant for case in cases} == set(VARIANTS)
