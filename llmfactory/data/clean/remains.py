"""What becomes of a document from which parts were cut."""

from __future__ import annotations

from llmfactory.data.clean.step import Drop, Kept, Outcome


def remains(before: str, after: str, what: str, count: int, min_left: float) -> Outcome:
    """The document with what is left, or none if that is blank or less than `min_left` of it."""
    if not after.strip():
        return Drop(f"nothing but {what}")
    share = len(after) / len(before)
    if share < min_left:
        return Drop(f"little but {what}", f"{share:.0%} left")
    return Kept(after, {what: count})
