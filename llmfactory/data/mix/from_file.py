"""Weights that another run has found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmfactory.core.errors import UserError
from llmfactory.data.mix.spec import matched, weighed

if TYPE_CHECKING:
    from llmfactory.data.mix.spec import FromFile, Knot


def knots(spec: FromFile, tokens: Mapping[str, int]) -> list[Knot]:
    """Raises UserError: the file is missing, or holds no weights, or those of other sources."""
    named = f"data.mix.file={spec.file}"
    try:
        found = json.loads(Path(spec.file).expanduser().read_text(encoding="utf-8"))
        weights = {str(name): float(weight) for name, weight in found["weights"].items()}
    except OSError as error:
        raise UserError(f"{named}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{named} holds no weights by source, as stage=reweight writes them") from error
    problems = [*weighed("weights", weights), *matched("weights", weights, list(tokens))]
    if problems or not weights:
        raise UserError(f"{named}: {problems[0].reason if problems else 'it names no source'}")
    return [(0.0, weights)]
