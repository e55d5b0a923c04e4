"""Parts of a run with batches of their own, the last one with the full batch."""

from __future__ import annotations

from llmfactory.core.sizes import Sizes
from llmfactory.run.batch_ramp.spec import Staged


def staged(spec: Staged, batch_size: int) -> Sizes:
    return Sizes(list(zip([0, *spec.until], [*spec.rows, batch_size], strict=True)))
