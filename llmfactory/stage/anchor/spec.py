"""Catalogue of anchors: penalties that hold a model near the one it starts from, so that it forgets less of what it could."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above

if TYPE_CHECKING:
    from llmfactory.stage.anchor.anchor import Anchor

FISHER = "fisher.safetensors"
"""The file that stage=fisher writes into the folder of init."""


@dataclass(kw_only=True, slots=True)
class AnchorSpec(Spec):
    """Base of the anchors."""

    def build(self, init: Path | None, checkpoint: Path | None) -> Anchor | None:
        """`init`: the folder that the job names; `checkpoint`: whose weights are held on to. None: nothing is held."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage/anchor")


@dataclass(kw_only=True, slots=True)
class None_(AnchorSpec):
    """Weights go wherever the objective leads them."""

    def build(self, init: Path | None, checkpoint: Path | None) -> Anchor | None:
        return None


@dataclass(kw_only=True, slots=True)
class L2Sp(AnchorSpec):
    """strength / 2 |w - w*|^2, w* the weights at the start (Li et al. 2018, equation 3)."""

    strength: float = 0.01
    """Weight of the penalty beside the objective's loss."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "strength", repair=0.01)

    def build(self, init: Path | None, checkpoint: Path | None) -> Anchor | None:
        from llmfactory.stage.anchor.l2_sp import L2SpAnchor

        return L2SpAnchor(self.strength)


@dataclass(kw_only=True, slots=True)
class Ewc(AnchorSpec):
    """Elastic weight consolidation: strength / 2 sum_i F_i (w_i - w*_i)^2, F the diagonal of the Fisher information on the old data,
    as stage=fisher measures it (Kirkpatrick et al. 2017, equation 3)."""

    strength: float = 1000.0
    """Weight of the penalty. F is the curvature of the mean loss over tokens, so that near the start, and only there, 1 lets what the
    old data lose count like what the new ones win; farther off they lose more than that curvature says."""
    file: str | None = None
    """What stage=fisher has written; None: fisher.safetensors in the folder of init."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "strength", repair=1000.0)

    def place(self, init: Path) -> Path:
        """The file, for a job that starts from `init`."""
        return fisher_of(init) if self.file is None else Path(self.file).expanduser()

    def build(self, init: Path | None, checkpoint: Path | None) -> Anchor | None:
        from llmfactory.stage.anchor.ewc import EwcAnchor

        assert init is not None  # a rule says so
        assert checkpoint is not None
        return EwcAnchor(self.strength, self.place(init), checkpoint)


def fisher_of(init: Path) -> Path:
    """Where stage=fisher puts its file: into the folder of the run, or beside the published model's file."""
    if init.is_file():
        return init.with_name(FISHER)
    runs = (folder for folder in (init, *list(init.absolute().parents)[:2]) if (folder / "checkpoints").is_dir())
    return next(runs, init) / FISHER
