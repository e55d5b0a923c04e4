"""Encoders of `transformers` beside ours: logits of every head, padding, packed rows, loss and gradients. float32, 1e-5 of the largest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.core.errors import UserError

SIZES = {
    "vocab_size": 103,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
}
HEADS = {
    "bert": ("ForMaskedLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    "roberta": ("ForMaskedLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    "albert": ("ForMaskedLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    "electra": (
        "ForPreTraining",
        "ForMaskedLM",
        "Model",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
}
CASES = [(family, head) for family, heads in HEADS.items() for head in heads]
OWN = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "albert": {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "electra": {"embedding_size": 16},
}
"""Keys of a family besides the sizes."""


def theirs(family: str, head: str, **changes: Any) -> Any:
    import transformers

    title = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert", "electra": "Electra"}[family]
    classes = {} if head == "ForQuestionAnswering" else {"num_labels": 5}
    config = getattr(transformers, f"{title}Config")(**{**SIZES, **OWN[family], **classes, **changes})
    return getattr(transformers, f"{title}{head}")(config)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.detach().abs().max()))


def batch_of(segments: torch.Tensor, seed: int = 1) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    positions = torch.zeros_like(segments)
    for t in range(1, segments.shape[1]):
        positions[:, t] = torch.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    # From 3 on, so that no token is the reference's padding, whose embedding gets no gradient there.
    tokens = torch.randint(3, 103, segments.shape, generator=make)
    types = torch.randint(0, 3, segments.shape, generator=make)
    return {"tokens": tokens, "positions": positions, "segments": segments, "types": types}


def wants(model: Any, batch: dict[str, torch.Tensor], mask: torch.Tensor, offset: int) -> Any:
    return model(batch["tokens"], attention_mask=mask, token_type_ids=batch["types"], position_ids=batch["positions"] + offset)


def answer(head: str, family: str, output: Any) -> torch.Tensor:
    """What our head's logits are called there."""
    if head == "Model":
        return output.last_hidden_state[:, 0] if family == "electra" else output.pooler_output
    if head == "ForQuestionAnswering":
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits[..., None] if head == "ForPreTraining" else output.logits


def ours_of(model: Any, batch: dict[str, torch.Tensor], documents: int) -> torch.Tensor:
    hidden = model(batch["tokens"], model.context(batch))
    return model.head(model.head.pool(hidden, batch["segments"], documents))


@pytest.fixture(params=CASES, ids=[f"{family}-{head}" for family, head in CASES])
def case(request: pytest.FixtureRequest, make_pair: Any) -> Any:
    family, head = request.param
    torch.manual_seed(0)
    pair = make_pair(theirs(family, head))
    return pair, family, head, 2 if family == "roberta" else 0


def test_logits_with_padding(case: Any) -> None:
    pair, family, head, offset = case
    segments = torch.tensor([[1] * 12, [1] * 5 + [0] * 7, [1] * 9 + [0] * 3])
    batch = batch_of(segments)
    want = answer(head, family, wants(pair.theirs, batch, segments, offset))
    got = ours_of(pair.ours, batch, 1)
    per_document = want.dim() == 2
    close(got[:, 0] if per_document else got[segments == 1], want if per_document else want[segments == 1])


def test_packed_documents(case: Any) -> None:
    """Documents of one row against the reference's one document a row."""
    pair, family, head, offset = case
    lengths = (4, 7, 1)
    segments = torch.tensor([[1] * 4 + [2] * 7 + [3] * 1])
    batch = batch_of(segments)
    got, start = ours_of(pair.ours, batch, 3), 0
    for number, length in enumerate(lengths):
        part = {name: field[:, start : start + length] for name, field in batch.items()}
        want = answer(head, family, wants(pair.theirs, part, torch.ones(1, length), offset))
        close(got[:, number] if want.dim() == 2 else got[:, start : start + length], want)
        start += length


@pytest.mark.parametrize("family", HEADS)
def test_loss_and_gradients_of_the_masked_head(family: str, make_pair: Any) -> None:
    torch.manual_seed(0)
    pair, offset = make_pair(theirs(family, "ForMaskedLM")), 2 if family == "roberta" else 0
    segments = torch.tensor([[1] * 12, [1] * 5 + [0] * 7])
    batch = batch_of(segments)
    labels = torch.full_like(batch["tokens"], -100)
    labels[0, [2, 5]], labels[1, 3] = batch["tokens"][0, [1, 7]], 9
    want = F.cross_entropy(wants(pair.theirs, batch, segments, offset).logits.flatten(0, 1), labels.flatten())
    want.backward()
    got = F.cross_entropy(ours_of(pair.ours, batch, 1).flatten(0, 1), labels.flatten())
    got.backward()
    close(got, want)
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    rows = torch.ones(103, dtype=torch.bool)
    rows[1 if family == "roberta" else 0] = False  # the reference's padding row gets no gradient from the embedding
    for name, parameter in pair.ours.named_parameters():
        one, other = parameter.grad, gradients[name]
        if name == "embedding.weight":
            one, other = one[rows], other[rows]
        # A bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
        torch.testing.assert_close(one, other, rtol=0, atol=max(1e-5 * float(other.abs().max()), 1e-7 * largest))


def test_the_reference_s_own_positions_of_roberta(make_pair: Any) -> None:
    """Those that it counts itself, from 2 on behind padding's row, are ours from 0 on."""
    torch.manual_seed(0)
    pair = make_pair(theirs("roberta", "ForMaskedLM"))
    segments = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    batch = batch_of(segments)
    tokens = batch["tokens"].where(segments == 1, 1)
    want = pair.theirs(tokens, attention_mask=segments, token_type_ids=batch["types"]).logits
    close(ours_of(pair.ours, {**batch, "tokens": tokens}, 1)[segments == 1], want[segments == 1])
    assert pair.ours.spec.max_positions == 38


def test_untyped_rows_are_of_the_first_type(make_pair: Any) -> None:
    pair = make_pair(theirs("bert", "ForMaskedLM"))
    batch = batch_of(torch.ones(2, 9, dtype=torch.long))
    del batch["types"]
    close(ours_of(pair.ours, batch, 1), pair.theirs(batch["tokens"]).logits)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("electra", {"embedding_size": 48}),
        ("albert", {"embedding_size": 48, "num_hidden_groups": 1}),
        ("albert", {"num_hidden_groups": 4, "hidden_act": "relu"}),
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
        ("roberta", {"hidden_act": "gelu_new", "type_vocab_size": 3, "pad_token_id": 4}),
    ],
)
def test_other_values_of_keys(family: str, changes: dict[str, Any], make_pair: Any) -> None:
    torch.manual_seed(0)
    pair = make_pair(theirs(family, "ForMaskedLM", **changes))
    offset = 1 + changes.get("pad_token_id", 1) if family == "roberta" else 0
    batch = batch_of(torch.ones(2, 9, dtype=torch.long))
    close(ours_of(pair.ours, batch, 1), wants(pair.theirs, batch, batch["segments"], offset).logits)


def test_xlm_roberta_is_roberta(make_pair: Any) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaForTokenClassification

    torch.manual_seed(0)
    pair = make_pair(XLMRobertaForTokenClassification(XLMRobertaConfig(**SIZES, num_labels=5)))
    batch = batch_of(torch.ones(2, 9, dtype=torch.long))
    close(ours_of(pair.ours, batch, 1), wants(pair.theirs, batch, batch["segments"], 2).logits)


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder=True"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads="),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("bert", {"hidden_act": "mish"}, "the activation 'mish'"),
        ("bert", {"architectures": ["BertForNextSentencePrediction"]}, "BertForNextSentencePrediction"),
        ("bert", {"architectures": ["BertForPreTraining"]}, "BertForPreTraining"),
        ("bert", {"architectures": ["BertForQuestionAnswering"], "id2label": {"0": "a", "1": "b", "2": "c"}}, "3 labels"),
        ("albert", {"inner_group_num": 2}, "inner_group_num=2"),
        ("albert", {"num_hidden_groups": 3}, "num_hidden_groups=3"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(family: str, changes: dict[str, Any], word: str) -> None:
    config = {**SIZES, **OWN[family], "model_type": family, **changes}
    with pytest.raises(UserError, match=word):
        family_of(config).spec(config)


def test_what_a_family_cannot_say_is_refused() -> None:
    from dataclasses import replace

    from llmfactory.model.head.spec import Lm
    from llmfactory.model.norm.spec import RmsNorm
    from llmfactory.model.position.spec import Learned

    config = {**SIZES, "model_type": "bert"}
    bert, roberta, albert = (family_of({"model_type": name}) for name in ("bert", "roberta", "albert"))
    spec = bert.spec(config)
    for change in (
        {"embedding_norm": False},
        {"unique_layers": 1},
        {"norm": RmsNorm()},
        {"position": Learned(offset=2)},
        {"head": Lm(tied=True)},
    ):
        with pytest.raises(Inexpressible):
            bert.config(replace(spec, **change))
    with pytest.raises(Inexpressible, match="first row of the table"):
        roberta.config(spec)
    with pytest.raises(Inexpressible, match="the model's width"):
        albert.config(spec)


def test_names_of_the_first_years() -> None:
    bert = family_of({"model_type": "bert"})
    assert bert.today("bert.encoder.layer.0.output.LayerNorm.gamma") == "bert.encoder.layer.0.output.LayerNorm.weight"
    assert bert.today("bert.embeddings.LayerNorm.beta") == "bert.embeddings.LayerNorm.bias"
    assert bert.today("bert.pooler.dense.bias") == "bert.pooler.dense.bias"


def test_a_folder_of_the_first_years(tmp_path: Any) -> None:
    """Norms with gamma and beta, a buffer of positions, copies of tied tensors, a pooler and a head that nobody asked for."""
    import json

    from safetensors.torch import save_file

    from llmfactory.checkpoint.names.published import open_published
    from llmfactory.checkpoint.published import load_published

    torch.manual_seed(0)
    model = theirs("bert", "ForMaskedLM").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in old
    old |= {
        "bert.embeddings.position_ids": torch.arange(40)[None],
        "bert.pooler.dense.weight": torch.zeros(48, 48),
        "bert.pooler.dense.bias": torch.zeros(48),
        "cls.seq_relationship.weight": torch.zeros(2, 48),
        "cls.seq_relationship.bias": torch.zeros(2),
    }
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**model.config.to_dict(), "architectures": ["BertForMaskedLM"]}))
    published = open_published(tmp_path)
    ours = published.spec.build()
    load_published(published, ours)
    batch = batch_of(torch.ones(2, 9, dtype=torch.long))
    close(ours_of(ours.eval(), batch, 1), wants(model, batch, batch["segments"], 0).logits)
    del old["bert.encoder.layer.1.output.LayerNorm.gamma"]
    save_file({**old, "stranger": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: bert.encoder.layer.1.output.LayerNorm.weight\n  unexpected: stranger"):
        open_published(tmp_path)
