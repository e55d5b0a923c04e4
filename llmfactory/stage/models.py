"""The trained models that steps of data/clean ask, by name. What opens them stands in judges.py, and is imported when one is asked:
a process that prepares data without any must not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmfactory.data.clean.models import Models


class TrainedModels(Models):
    """Names of runs, checkpoints and published models, relative to where the command runs."""

    def likelihood(self, init: str) -> Callable[[Sequence[str]], list[tuple[float, int]]]:
        from llmfactory.stage.judges import find, likelihood_of

        return likelihood_of(find(init)).measure

    def classifier(self, init: str) -> Callable[[Sequence[str]], list[dict[str, float]]]:
        from llmfactory.stage.judges import classifier_of, find

        return classifier_of(find(init)).probabilities

    def fingerprint(self, init: str) -> str:
        from llmfactory.stage.judges import content_of, find

        return content_of(find(init))
