"""Elastic weight consolidation: each weight is held as firmly as the old data need it (Kirkpatrick et al. 2017)."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from llmfactory.core.errors import UserError
from llmfactory.parallel.weights import box, cut, local
from llmfactory.stage.anchor.anchor import Anchor

CHECKPOINT = "checkpoint"
"""Key of the file's metadata: the name of the checkpoint whose Fisher information it is."""


class EwcAnchor(Anchor):
    def __init__(self, strength: float, path: Path, checkpoint: Path) -> None:
        super().__init__(strength)
        self.path = path
        try:
            self.file = safe_open(path, "pt")
            self.names = set(self.file.keys())  # type: ignore[no-untyped-call]
        except Exception as error:
            raise UserError(f"{path} cannot be read: {error}; stage=fisher init=... writes such a file") from error
        known = (self.file.metadata() or {}).get(CHECKPOINT)  # type: ignore[no-untyped-call]
        if known != checkpoint.name:
            raise UserError(
                f"{path} was measured at the checkpoint {known}, and this run starts from {checkpoint}: run stage=fisher again"
            )

    def importance(self, name: str, parameter: nn.Parameter) -> Tensor:
        if name not in self.names:
            raise UserError(f"{self.path} has nothing of {name}: it is of another model; run stage=fisher again")
        whole: Tensor = self.file.get_tensor(name)  # type: ignore[no-untyped-call]
        if whole.shape != parameter.shape:
            raise UserError(f"{self.path}: {name} is {list(whole.shape)}, and {list(parameter.shape)} in the model")
        if not bool((whole.isfinite() & (whole >= 0)).all()):
            raise UserError(f"{self.path}: {name} holds numbers that are negative, infinite or none at all")
        here = local(parameter)
        return cut(whole, box(parameter)).to(here.device, here.dtype, copy=True)
