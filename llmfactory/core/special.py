"""Special tokens of objectives, by name: they stand for no text.

The tokenizer's own are used where it has one of that name; others take the highest ids of the model's vocabulary.
"""

from __future__ import annotations

Special = tuple[str, ...]
"""How tokenizers spell one special token; the first is its name."""

MASK: Special = ("[MASK]", "<mask>")
SENTENCE_MASK: Special = ("[sMASK]",)
"""GLM: whole sentences are missing here."""
DOCUMENT_MASK: Special = ("[gMASK]", "gmask")
"""GLM: the rest of the text is missing here."""
START_OF_SPAN: Special = ("<|startofpiece|>", "<sop>", "sop")
END_OF_SPAN: Special = ("<|endofpiece|>", "<eop>", "eop")
REGULAR: Special = ("[NLU]", "[R]")
"""UL2: short spans are missing."""
SEQUENTIAL: Special = ("[S2S]", "[S]")
"""UL2: the end of the text is missing."""
EXTREME: Special = ("[NLG]", "[X]")
"""UL2: long spans, or half of the text, are missing."""


def sentinels(count: int) -> tuple[Special, ...]:
    """T5: one for each missing span of a document."""
    return tuple((f"<extra_id_{k}>",) for k in range(count))
