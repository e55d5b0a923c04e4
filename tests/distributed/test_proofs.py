"""Every layout computes what a single process computes: the cases of plan.json, and with `-m matrix` all that rules admit.

See proof.py for what is compared, cases.py for what is crossed, plan.py for what is chosen, docs/proofs.md for the outcome.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
from pathlib import Path

import pool
import proof
import proof_page
import pytest
from cases import LAYOUTS, PRESETS, Case, make, refusals
from plan import cases, planned
from proof import ALL, BF16, EXACT, FLOAT32, WHAT, insist, reference

pytestmark = pytest.mark.dist


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of data and references, for all proofs of the session."""
    return tmp_path_factory.mktemp("proofs")


def prove(case: Case, folder: Path, precision: str = "fp64") -> list[dict[str, float]]:
    job, known = make(case, folder, precision), reference(case, folder, precision)
    return pool.run(LAYOUTS[case.layout].world, proof.prove, case, folder, precision, job, known)


def by_layout() -> list[tuple[Case, str]]:
    """All that is proven of a layout one after the other: the planned cases, and then the first plain one of them in float32."""
    first = {case.layout: case for case in reversed(planned()) if case.variant == "plain" and case.layout in PRESETS}
    exact = [(case, "fp64") for case in planned()]
    return sorted([*exact, *((case, "fp32") for case in first.values())], key=lambda pair: list(LAYOUTS).index(pair[0].layout))


@pytest.mark.parametrize(("case", "precision"), by_layout(), ids=lambda value: value if isinstance(value, str) else value.name)
def test_the_same_numbers_as_a_single_process(case: Case, precision: str, folder: Path) -> None:
    """In float32 losses and norms only: Adam makes steps of full size of gradients that are nothing but rounding."""
    for found in prove(case, folder, precision):
        if precision == "fp32":
            insist(found, FLOAT32, ("loss", "norm", "held_out"))
        else:
            insist(found, BF16 if case.variant == "bf16_mixed" else EXACT, WHAT.get(case.variant, ALL))


def test_every_preset_is_proven_in_float32() -> None:
    assert {case.layout for case, precision in by_layout() if precision == "fp32"} >= set(PRESETS) - {"survey_3d"}


@pytest.mark.parametrize("workload", ["llama, causal", "electra, replaced", "mixture, causal"])
def test_what_the_order_of_sums_does_in_bf16(workload: str, folder: Path) -> None:
    """One process, in micro-batches and whole: the same sums in another order. The tolerance is a few times what that does."""
    case = Case("single", workload, "padded", "bf16_mixed")
    found = proof.prove(case, folder)
    assert 0.0 < max(found[name] for name in WHAT["bf16_mixed"]) < BF16 / 2


@pytest.mark.matrix
@pytest.mark.timeout(0)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_full_cross(layout: str, request: pytest.FixtureRequest, folder: Path) -> None:
    """Every legal case of a layout that falls into the shard. One line of the outcome goes to docs/proofs_matrix.csv."""
    number, of = (int(part) for part in request.config.getoption("--shard").split("/"))
    assert 1 <= number <= of, "a shard is given as 3/20"
    wrong, proven = [], 0
    for index, case in enumerate(cases()):
        if case.layout != layout or index % of != number - 1 or refusals(case, folder):
            continue
        try:
            test_the_same_numbers_as_a_single_process(case, "fp64", folder)
            proven += 1
        except AssertionError as error:
            wrong.append(f"{case.name}: {str(error)[-2000:]}")
    if proven or wrong:
        record({"shard": f"{number}/{of}", "layout": layout, "proven": proven, "failed": len(wrong)})
    assert not wrong, "\n".join(wrong)


def record(outcome: dict[str, object]) -> None:
    """Add a line to the results, with commit and date; `+`: files had changed since the commit."""
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    new = not proof_page.RESULTS.exists()
    with proof_page.RESULTS.open("a", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, proof_page.COLUMNS, lineterminator="\n")
        if new:
            lines.writeheader()
        lines.writerow({"date": datetime.date.today().isoformat(), "commit": commit, **outcome})


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(proof_page.ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
