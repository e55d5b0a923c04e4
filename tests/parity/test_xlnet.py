"""Equal logits, losses and gradients with `transformers`: float32, 1e-5 of the largest value."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.config.compose import compose_job
from llmfactory.core.context import Context, FullMask, SegmentMask
from llmfactory.core.errors import UserError
from llmfactory.inference.cache import KvCache
from llmfactory.model.count import parameters


def xlnet(**changes):
    from transformers import XLNetConfig, XLNetLMHeadModel

    sizes = {"vocab_size": 103, "d_model": 48, "n_layer": 3, "n_head": 4, "d_inner": 80, "dropout": 0.0}
    return XLNetLMHeadModel(XLNetConfig(**{**sizes, **changes}))


@pytest.fixture(params=[-1, 3], ids=["", "clamped"])
def pair(make_pair, request):
    torch.manual_seed(0)
    return make_pair(xlnet(clamp_len=request.param))


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def ids(*shape, seed=1):
    return torch.randint(3, 103, shape, generator=torch.Generator().manual_seed(seed))


def batch_of(tokens, **more):
    return {
        "tokens": tokens,
        "positions": torch.arange(tokens.shape[1]).repeat(len(tokens), 1),
        "segments": torch.ones_like(tokens),
        **more,
    }


def logits(model, batch, isolated=True):
    return model.head(model(batch["tokens"], model.context(batch, isolated)))


def order_of(*rows):
    """Two rows: a random order of the last tokens; 0 for those that are given."""
    order = torch.zeros(len(rows), 9, dtype=torch.long)
    for row, places in enumerate(rows):
        for number, place in enumerate(places):
            order[row, place] = number + 1
    return order


def perm_mask(order):
    """1 where the query stream's i must not see j. The content stream sees itself besides; given tokens see each other."""
    predicted = order[:, :, None] > 0
    return ((order[:, :, None] < order[:, None, :]) | ((order[:, :, None] == order[:, None, :]) & predicted)).float()


def test_without_an_order_all_is_seen(pair):
    tokens = ids(3, 17)
    want = pair.theirs(tokens).logits
    close(logits(pair.ours, batch_of(tokens)), want)
    close(logits(pair.ours, batch_of(tokens), isolated=False), want)


def test_kinds_of_text(pair):
    tokens, types = ids(2, 9), torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [1] * 2])
    want = pair.theirs(tokens, token_type_ids=types).logits
    close(logits(pair.ours, batch_of(tokens, types=types)), want)
    assert not torch.allclose(want, pair.theirs(tokens).logits, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair, side):
    tokens, real = ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    for row, length in enumerate((12, 5, 9)):
        real[row, length:] = 0
    real = real.flip(1) if side == "left" else real
    want = pair.theirs(tokens, attention_mask=real.float()).logits
    got = logits(pair.ours, {**batch_of(tokens), "segments": real})
    close(got[real == 1], want[real == 1])


@pytest.mark.parametrize("typed", [False, True])
def test_the_query_stream_of_an_order(pair, typed):
    """Against `perm_mask` and a `target_mapping` of all tokens. What is given is not predicted, so not compared: theirs has the
    given tokens see themselves in the query stream."""
    tokens, order = ids(2, 9), order_of([7, 3, 5], [0, 8, 1, 2])
    more = {"types": torch.tensor([[0] * 4 + [1] * 5] * 2)} if typed else {}
    want = pair.theirs(
        tokens,
        perm_mask=perm_mask(order),
        target_mapping=torch.eye(9).expand(2, 9, 9),
        token_type_ids=more.get("types"),
    ).logits
    got = logits(pair.ours, batch_of(tokens, order=order, **more))
    close(got[order > 0], want[order > 0])


def test_loss_and_gradients(pair):
    tokens, order = ids(2, 9), order_of([7, 3, 5], [0, 8, 1, 2])
    labels = torch.where(order > 0, tokens, -100)
    types = torch.tensor([[0] * 4 + [1] * 5] * 2)
    theirs = pair.theirs(
        tokens, perm_mask=perm_mask(order), target_mapping=torch.eye(9).expand(2, 9, 9), token_type_ids=types
    ).logits
    want = F.cross_entropy(theirs.flatten(0, 1), labels.flatten())
    want.backward()
    got = F.cross_entropy(logits(pair.ours, batch_of(tokens, order=order, types=types)).flatten(0, 1), labels.flatten())
    got.backward()
    close(got, want)
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        atol = max(1e-5 * float(gradients[name].abs().max()), 1e-7 * largest)
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=atol, msg=name)


def test_memory(pair):
    """A second piece of text that sees the first one's content, layer by layer."""
    first, second = ids(2, 6), ids(2, 5, seed=2)
    mems = pair.theirs(first, use_mems=True).mems
    want = pair.theirs(second, mems=mems, use_mems=True).logits
    state = KvCache(11)
    places = torch.arange(11).expand(2, 11)
    pair.ours(first, Context(places[:, :6], FullMask(), state=state))
    got = pair.ours.head(pair.ours(second, Context(places[:, 6:], FullMask(), state=state, key_positions=places)))
    close(got, want)


def test_memory_beside_kinds_of_text(pair):
    first, second = ids(2, 6), ids(2, 5, seed=2)
    types = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    want = pair.theirs(second, mems=pair.theirs(first, use_mems=True).mems, token_type_ids=types, use_mems=True).logits
    state, places = KvCache(11), torch.arange(11).expand(2, 11)
    pair.ours(first, Context(places[:, :6], FullMask(), state=state, types=torch.zeros_like(first)))
    context = Context(
        places[:, 6:], SegmentMask(torch.ones(2, 5), torch.ones(2, 11)), state=state, key_positions=places, types=types
    )
    close(pair.ours.head(pair.ours(second, context)), want)


def test_back_into_transformers(pair, tmp_path):
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoConfig.for_model(**pair.family.config(pair.ours.spec)).save_pretrained(tmp_path)
    tensors = dict(to_theirs(pair.family.entries(pair.ours.spec), dict(pair.ours.named_parameters())))
    save_file(
        {name: tensor.detach().clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = ids(2, 8)
    close(theirs(tokens).logits, logits(pair.ours, batch_of(tokens)))


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("xlnet_base", {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072}), ("xlnet_large", {})],
)
def test_presets_are_the_published_models(preset, sizes):
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = XLNetConfig(**sizes)
    spec = compose_job([f"model={preset}", "stage=describe"]).job.model
    assert family_of(config.to_dict()).spec(config.to_dict()) == spec
    with torch.device("meta"):
        assert parameters(spec.build()) == sum(p.numel() for p in XLNetLMHeadModel(config).parameters())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_type", "uni"),
        ("bi_data", True),
        ("same_length", True),
        ("untie_r", False),
        ("d_head", 7),
        ("tie_word_embeddings", False),
    ],
)
def test_configs_that_we_have_no_part_for(key, value):
    config = xlnet().config.to_dict() | {key: value}
    with pytest.raises(UserError, match=f"{key}=.*has no counterpart"):
        family_of(config).spec(config)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("attention", {"head_dim": 8}),
        ("ffn", {"bias": False}),
        ("norm", {"bias": False}),
        ("head", {"bias": False}),
        ("head", {"softcap": 3.0}),
        ("embedding", {"scale": 2.0}),
    ],
)
def test_what_xlnet_cannot_say_is_not_exported(part, changes):
    family = family_of({"model_type": "xlnet"})
    spec = family.spec(xlnet().config.to_dict())
    with pytest.raises(Inexpressible):
        family.config(dataclasses.replace(spec, **{part: dataclasses.replace(getattr(spec, part), **changes)}))
