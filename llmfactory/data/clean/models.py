"""Trained models of this project, for steps that ask one. `data` stands below what opens them, so they are handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from llmfactory.core.errors import UserError


class Models(Protocol):
    """Can be sent to another process, and opens a model only when it is asked for."""

    def likelihood(self, init: str) -> Callable[[Sequence[str]], list[tuple[float, int]]]:
        """`init` of a causal or n-gram model -> a function of texts: for each -log p in nats, and its number of tokens."""

    def classifier(self, init: str) -> Callable[[Sequence[str]], list[dict[str, float]]]:
        """`init` of a trained classifier -> a function of texts: for each the probability of every class."""

    def fingerprint(self, init: str) -> str:
        """Hash of the model's weights and tokenizer."""


class NoModels:
    """Where nobody hands in any."""

    def likelihood(self, init: str) -> NoReturn:
        raise UserError(f"nothing here can open the model {init}")

    classifier = fingerprint = likelihood
