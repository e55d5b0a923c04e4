"""What every step's spec is; the pages of the catalogue (spec.py, <theme>_spec.py) stand on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.data.clean.comparison import Comparison
    from llmfactory.data.clean.models import Models
    from llmfactory.data.clean.step import Step


@dataclass(kw_only=True, slots=True)
class CleanSpec(Spec):
    """Base of the steps."""

    whole: ClassVar[bool] = False
    """It takes documents or leaves them, and looks at them as they are: so it works on records, too, which are JSON."""
    sources: list[str] = field(default_factory=list)
    """Names of the sources of a mixture that it works on; empty: all."""

    def build(self, models: Models) -> Step | Comparison:
        raise TypeError(f"{type(self).__name__} is a base: pick options of data/clean")
