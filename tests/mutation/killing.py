"""Plant bugs one by one in private copies of the package, and see which proof finds each.

The processes are forked by a server that has imported torch and lightning, but nothing of this project: each imports it from the
copy that it is given. References are trained once, with the code as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "distributed"), str(ROOT / "tests" / "mutation")]

import pool  # noqa: E402
import proving  # noqa: E402
from bugs import BUGS, Bug, Proof  # noqa: E402

LIMIT_S = 120.0
"""A proof that takes longer has found a bug: processes wait for each other."""
EXACT = 1e-9
PAGE = ROOT / "docs" / "mutations.md"
HEAD = """\
# Planted bugs

Bugs planted one by one in a private copy of the package, and what found each: a case of the proofs (docs/proofs.md), compared with a
single process, or a test. Made by `python -m tests.mutation` at commit {commit}, {date}: {killed} of {all} were found.

| bug | file | proof | found by |
| :-- | :-- | :-- | :-- |
"""


@dataclass(frozen=True)
class Outcome:
    bug: Bug
    proof: Proof
    found: str | None
    """How it was found; None: it was not."""


def copy_of_package(folder: Path, bug: Bug | None = None) -> Path:
    """A folder to import the project from, with the bug in it."""
    shutil.copytree(ROOT / "llmfactory", folder / "llmfactory", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conf").symlink_to(ROOT / "conf")
    if bug is not None:
        path = folder / "llmfactory" / bug.file
        text = path.read_text(encoding="utf-8")
        assert text.count(bug.old) == 1, f"{bug.name}: its text stands {text.count(bug.old)} times in {bug.file}"
        path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
    return folder


class Hunt:
    """Bugs against proofs, in a folder for copies, data and references."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Before the first process: the server must not know this project.
        pool.CONTEXT.set_forkserver_preload(["torch", "lightning.pytorch"])
        self.clean = copy_of_package(folder / "clean")
        (folder / "references").mkdir()
        self._sound: set[str] = set()
        """Tests that pass without a bug."""

    def kill(self, bug: Bug) -> Outcome:
        """Run the bug's proofs until one finds it."""
        package = copy_of_package(self.folder / f"bug_{BUGS.index(bug)}", bug)
        for proof in bug.proofs:
            found = self._test(proof, package) if isinstance(proof, str) else self._case(proof, package)
            if found is not None:
                break
        shutil.rmtree(package)
        return Outcome(bug, proof, found)

    def _case(self, names: tuple[str, str, str, str], package: Path) -> str | None:
        world = self._reference(names)
        crew = pool.Crew(world, package)
        try:
            results = crew.run(proving.attempt, names, self.folder / "references", timeout=LIMIT_S)
        except AssertionError as error:
            last = str(error).strip().splitlines()[-1]
            return "a hang" if "did not finish" in last else f"an error: {last[:100]}"
        finally:
            crew.close()
        worst = {name: max(found[name] for found in results) for name in ("loss", "norm", "held_out", "weights")}
        wrong = [f"{name} by {apart:.1e}" for name, apart in worst.items() if not apart <= EXACT]
        return ", ".join(wrong) or None

    def _reference(self, names: tuple[str, str, str, str]) -> int:
        crew = pool.Crew(1, self.clean)
        try:
            (world,) = crew.run(proving.world_of, names, timeout=LIMIT_S)
            crew.run(proving.refer, names, self.folder / "references", timeout=LIMIT_S)
        finally:
            crew.close()
        return int(world)

    def _test(self, name: str, package: Path) -> str | None:
        if name not in self._sound:
            assert self._run(name, self.clean) is None, f"{name} fails without a bug"
            self._sound.add(name)
        return self._run(name, package)

    def _run(self, name: str, package: Path) -> str | None:
        # Python's path begins with the working folder: that must be the copy.
        settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-x", *settings, str(ROOT / name)]
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=2 * LIMIT_S)
        except subprocess.TimeoutExpired:
            return "a hang"
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{name} could not run: {done.stdout[-2000:]}")
        return "the test fails" if done.returncode else None


def page(outcomes: list[Outcome]) -> str:
    """docs/mutations.md."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    killed = sum(outcome.found is not None for outcome in outcomes)
    found = {"commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"), "killed": killed, "all": len(outcomes)}
    return HEAD.format(**found) + "".join(f"| {' | '.join(line_of(outcome))} |\n" for outcome in outcomes)


def line_of(outcome: Outcome) -> list[str]:
    """Cells of a bug's line."""
    proof = outcome.proof.rpartition("/")[2] if isinstance(outcome.proof, str) else ", ".join(outcome.proof)
    found = outcome.found or "**nothing**"
    return [outcome.bug.name, f"`{outcome.bug.file}`", proof, found.replace("|", "\\|").replace("held_out", "held-out loss")]
