"""Catalogue of stages that make a pretrained model useful: instructions, rewards, preferences."""

from __future__ import annotations

from dataclasses import dataclass

from llmfactory.stage.base_spec import TrainingSpec


@dataclass(kw_only=True, slots=True)
class Sft(TrainingSpec):
    """Supervised fine-tuning: learn from conversations to write what the assistant writes (Wei et al. 2022; Ouyang et al. 2022)."""


@dataclass(kw_only=True, slots=True)
class Reward(TrainingSpec):
    """Learn to judge: a model with one number as its answer learns from answers that are compared, ranked or scored."""


@dataclass(kw_only=True, slots=True)
class Preference(TrainingSpec):
    """Learn from answers that are compared or labelled, without a reward model (Rafailov et al. 2023)."""
