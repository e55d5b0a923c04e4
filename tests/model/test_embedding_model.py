"""Word vectors: their sizes, first values, and what refuses them. What they learn, tests/objective/test_negative_sampling.py."""

from __future__ import annotations

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError
from llmfactory.model.count import parameters
from llmfactory.model.initialize import initialize
from llmfactory.model.spec import EmbeddingModel


def test_published_size() -> None:
    """GoogleNews-vectors-negative300: 3 million words, 300 wide, and as many vectors of neighbours in training."""
    job = compose_job(["model=word2vec_300", "stage/objective=skip_gram"]).job
    with torch.device("meta"):
        assert parameters(job.model.build()) == 2 * 3_000_000 * 300


def test_first_values() -> None:
    model = EmbeddingModel(vocab_size=500, dim=20, max_positions=8, init_std=0.3).build()
    initialize(model, 0)
    assert model.embedding.weight.detach().std() == pytest.approx(0.3, rel=0.05)
    assert not model.head.weight.any()
    model = EmbeddingModel(vocab_size=500, dim=20, max_positions=8, output_std=0.2).build()
    initialize(model, 0)
    assert model.head.weight.detach().std() == pytest.approx(0.2, rel=0.05)
    with pytest.raises(ConfigError, match="output_std"):
        EmbeddingModel(vocab_size=5, dim=2, max_positions=8, output_std=-1.0)


def test_it_is_trained_by_its_own_objectives_alone() -> None:
    with pytest.raises(ConfigError, match="skip_gram"):
        compose_job(["model=word2vec_tiny"])
    with pytest.raises(ConfigError, match="words"):
        compose_job(["model=llama_tiny", "stage/objective=cbow"])
    with pytest.raises(ConfigError, match="max_positions=1024"):
        compose_job(["model=word2vec_tiny", "stage/objective=cbow", "data.seq_len=1025"])
