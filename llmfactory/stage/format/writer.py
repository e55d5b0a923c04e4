"""The interface of formats to export to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    files: Mapping[str, Path] = field(default_factory=dict)
    """Of a published folder that it comes from: tokenizer files by name, to be copied as they are."""
    ids: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the config.json that it comes from that name tokens (`pad_token_id`)."""

    def described(self) -> dict[str, Tensor]:
        """Tensors under the target's names, without their content."""
        empty = {name: tensor.to("meta") for name, tensor in self.tensors.items()}
        return dict(to_theirs(self.target.family.entries(self.spec), empty))


class Writer(ABC):
    """Writes one format."""

    @abstractmethod
    def write(self, model: Exported, path: Path) -> None:
        """Everything or, on an error, nothing. `path` does not exist yet."""
