"""What the processes of a mutation run do. The project is imported from the mutated copy, so only within functions."""

from __future__ import annotations

from pathlib import Path

Names = tuple[str, str, str, str]


def world_of(names: Names) -> int:
    """Processes of a case's layout."""
    from cases import LAYOUTS

    return LAYOUTS[names[0]].world


def refer(names: Names, folder: Path) -> None:
    """Train the reference of a case, with unmutated code."""
    from cases import Case
    from proof import reference

    reference(Case(*names), folder)


def attempt(names: Names, folder: Path) -> dict[str, float]:
    """How far a case is from its reference."""
    from cases import Case
    from proof import prove

    return prove(Case(*names), folder)
