"""The interface of formats to export to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmfactory.checkpoint.names.target import Target
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Exported:
    """A model on its way out."""

    spec: ModelSpec
    target: Target
    tensors: Mapping[str, Tensor]
    """Under our names, in the format in which they are stored."""
    tokenizer: HfTokenizer
    files: Mapping[str, Path]
    """Of a published folder that it comes from: tokenizer files by name, to be copied as they are."""

    def described(self) -> dict[str, Tensor]:
        """Tensors under the target's names, without their content."""
        empty = {name: tensor.to("meta") for name, tensor in self.tensors.items()}
        return dict(to_theirs(self.target.family.entries(self.spec), empty))


class Writer(ABC):
    """Writes one format."""

    @abstractmethod
    def write(self, model: Exported, path: Path) -> None:
        """Everything or, on an error, nothing. `path` does not exist yet."""
