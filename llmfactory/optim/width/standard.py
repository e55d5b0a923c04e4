"""The standard parametrization: what parts declare is taken as it is."""

from __future__ import annotations

from llmfactory.core.sharding import Parameter
from llmfactory.model.declarations import declarations
from llmfactory.model.skeleton import Skeleton


def standard(model: Skeleton) -> dict[str, Parameter]:
    return declarations(model)
