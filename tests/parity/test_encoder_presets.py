"""Presets of encoders say what the published `config.json` says, and have the reference's number of parameters, to one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmfactory.checkpoint.names.families import family_of
from llmfactory.config.compose import compose_job
from llmfactory.model.count import parameters

BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30522, "max_position_embeddings": 512}
ROBERTA = {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
ALBERT = {
    "model_type": "albert",
    "architectures": ["AlbertForMaskedLM"],
    "vocab_size": 30000,
    "embedding_size": 128,
    "max_position_embeddings": 512,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
}
ELECTRA = {"model_type": "electra", "vocab_size": 30522, "max_position_embeddings": 512}
DISCRIMINATOR, GENERATOR = {"architectures": ["ElectraForPreTraining"]}, {"architectures": ["ElectraForMaskedLM"]}


def sizes(dim: int, layers: int, heads: int, hidden: int) -> dict[str, int]:
    return {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": hidden}


# The configs at huggingface.co; the number of parameters is that of the class in `architectures`.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "bert_base": ({**BERT, **sizes(768, 12, 12, 3072)}, 109_514_298),
    "bert_large": ({**BERT, **sizes(1024, 24, 16, 4096)}, 335_174_458),
    "minilm": ({**BERT, **sizes(384, 6, 12, 1536), "architectures": ["BertModel"]}, 22_713_216),
    "minilm_l12": ({**BERT, **sizes(384, 12, 12, 1536), "architectures": ["BertModel"]}, 33_360_000),
    "roberta_base": ({**ROBERTA, **sizes(768, 12, 12, 3072)}, 124_697_433),
    "roberta_large": ({**ROBERTA, **sizes(1024, 24, 16, 4096)}, 355_412_057),
    "albert_base": ({**ALBERT, **sizes(768, 12, 12, 3072)}, 11_221_680),
    "albert_large": ({**ALBERT, **sizes(1024, 24, 16, 4096)}, 16_795_824),
    "albert_xlarge": ({**ALBERT, **sizes(2048, 24, 16, 8192)}, 54_821_040),
    "albert_xxlarge": ({**ALBERT, **sizes(4096, 12, 64, 16384)}, 206_368_944),
    "electra_small": ({**ELECTRA, **sizes(256, 12, 4, 1024), **DISCRIMINATOR, "embedding_size": 128}, 13_549_057),
    "electra_small_generator": ({**ELECTRA, **sizes(256, 12, 4, 1024), **GENERATOR, "embedding_size": 128}, 13_546_682),
    "electra_base": ({**ELECTRA, **sizes(768, 12, 12, 3072), **DISCRIMINATOR, "embedding_size": 768}, 109_483_009),
    "electra_base_generator": ({**ELECTRA, **sizes(256, 12, 4, 1024), **GENERATOR, "embedding_size": 768}, 33_740_602),
    "electra_large": ({**ELECTRA, **sizes(1024, 24, 16, 4096), **DISCRIMINATOR, "embedding_size": 1024}, 335_142_913),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_preset_is_what_the_published_config_says(preset: str) -> None:
    config, count = PUBLISHED[preset]
    spec = compose_job([f"model={preset}", "stage=describe"]).job.model
    assert spec == family_of(config).spec(config)
    with torch.device("meta"):
        assert parameters(spec.build()) == count


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_number_is_the_reference_s(preset: str) -> None:
    import transformers

    config, count = PUBLISHED[preset]
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    name = config["architectures"][0]
    kind = getattr(transformers, name.partition("For")[0].removesuffix("Model") + "Config")
    with torch.device("meta"):
        theirs = getattr(transformers, name)(kind(**values))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == count
