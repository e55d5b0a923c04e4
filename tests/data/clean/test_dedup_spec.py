"""Options of deduplication: each builds its part and gives it what the config says."""

from __future__ import annotations

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.data.clean.comparison import Comparison
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Step

OPTIONS = {
    "exact": "ignore_case=true",
    "lines": "min_characters=7",
    "lines_ccnet": "documents=5",
    "paragraphs": "min_left=0.5",
    "minhash": "verify=sketch",
    "minhash_fineweb": "ngram=13",
    "minhash_refinedweb": "unit=characters",
    "simhash": "distance=4",
    "substring": "min_bytes=100",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_built(option: str) -> None:
    plain, changed = (
        compose_job([f"data/clean=[{option}]", *line]).job.data.clean[option].build(None)  # type: ignore[attr-defined]
        for line in ([], [f"data.clean.{option}.{OPTIONS[option]}"])
    )
    assert isinstance(plain, Comparison if option != "substring" else Step)
    assert type(plain).__name__.lower().startswith(option.partition("_")[0].rstrip("s"))
    assert plain.fingerprint() != changed.fingerprint()


def test_published_settings() -> None:
    """Penedo et al. 2024, section 3.4: 112 hashes in 14 buckets of 8; Lee et al. 2022, appendix A: 9,000 in 450 buckets of 20."""
    for option, bands in (("minhash_fineweb", 14), ("minhash_refinedweb", 450)):
        comparison = compose_job([f"data/clean=[{option}]"]).job.data.clean[option].build(None)  # type: ignore[attr-defined]
        keys = comparison.keys([Page("", "some words of a text that is long enough")])
        assert len(keys.key) == bands
        assert keys.evidence is None
        assert len(comparison.factors) == {14: 112, 450: 9000}[bands]
