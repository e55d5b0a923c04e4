"""Mamba of `transformers` with random weights: equal logits, loss and gradients, padded, token by token, and greedy tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.core.errors import UserError
from llmfactory.inference.cache import KvCache
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.mixer.spec import Lstm
from llmfactory.model.norm.spec import RmsNorm

VARIANTS = {
    "usual": {},
    "biased": {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "time_step_rank": 3, "expand": 1},
}


def theirs(**changes: Any) -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 5, "conv_kernel": 4}
    return MambaForCausalLM(MambaConfig(**{**sizes, **changes}, pad_token_id=0, bos_token_id=0, eos_token_id=0))


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, make_pair) -> Any:
    return make_pair(theirs(**VARIANTS[request.param]))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.detach().abs().max()))


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, 103, shape, generator=torch.Generator().manual_seed(1))


def logits(model, tokens, segments=None, state=None):
    length = tokens.shape[1]
    mask = CausalMask(length) if segments is None else DocumentMask(segments)
    return model.head(model(tokens, Context(torch.zeros_like(tokens), mask, state, segments)))


def test_logits(pair):
    tokens = ids(3, 40)
    close(logits(pair.ours, tokens), pair.theirs(tokens).logits)


def test_loss_and_gradients(pair):
    tokens = ids(3, 20)
    want = pair.theirs(tokens, labels=tokens).loss
    want.backward()
    got = F.cross_entropy(logits(pair.ours, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    got.backward()
    close(got, want)
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    for name, parameter in pair.ours.named_parameters():
        close(parameter.grad, gradients[name])


def test_left_padding(pair):
    tokens, real = ids(3, 12), torch.ones(3, 12, dtype=torch.int64)
    real[1, :7], real[2, :2] = 0, 0
    got = logits(pair.ours, tokens, real)
    for row in range(3):  # a row alone: with use_bias, theirs lets the bias of padding into the convolution
        inside = real[row] == 1
        close(got[row, inside], pair.theirs(tokens[row, inside][None]).logits[0])
    if not pair.theirs.config.use_bias:
        close(got[real == 1], pair.theirs(tokens, attention_mask=real).logits[real == 1])


def test_packed_documents_are_those_alone(pair):
    tokens = ids(1, 12)
    segments = torch.tensor([[1] * 5 + [2] * 4 + [3] * 3])
    packed = logits(pair.ours, tokens, segments)
    for number in (1, 2, 3):
        inside = segments[0] == number
        close(packed[:, inside], pair.theirs(tokens[:, inside]).logits)


def test_token_by_token(pair):
    tokens, state = ids(2, 9), KvCache(9)
    pieces = [logits(pair.ours, tokens[:, :4], state=state)]
    pieces += [logits(pair.ours, tokens[:, t : t + 1], state=state) for t in range(4, 9)]
    close(torch.cat(pieces, 1), pair.theirs(tokens).logits)


def test_greedy_tokens(pair):
    prompts = [ids(7).tolist(), ids(9)[2:].tolist()]
    want = pair.theirs.generate(torch.tensor(prompts), max_new_tokens=12, min_new_tokens=12, do_sample=False)[:, 7:]
    # min_new_tokens forbids token 0, the end: so does a bias here.
    pair.ours.head.register_forward_hook(lambda module, inputs, output: output.index_fill(-1, torch.tensor([0]), float("-inf")))
    assert generate(pair.ours, prompts, max_tokens=12, sampling=GREEDY) == want.tolist()


def config(**changes: Any) -> dict[str, Any]:
    return {**theirs().config.to_dict(), **changes}


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"time_step_scale": 2.0}, {"time_step_init_scheme": "constant"}])
def test_what_it_cannot_read_is_refused_by_name(change):
    with pytest.raises(UserError, match=next(iter(change))):
        family_of(config()).spec(config(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"residual": False},
        {"ffn": Mlp(hidden=4, activation=Activation.relu)},
        {"mixer": Lstm()},
        {"norm": RmsNorm(offset=1.0)},
    ],
)
def test_what_it_cannot_say_is_refused(change):
    import dataclasses

    family = family_of(config())
    spec = dataclasses.replace(family.spec(config()), **change)
    with pytest.raises(Inexpressible):
        family.config(spec)


def test_exported_weights_are_read_as_they_are(tmp_path):
    """Scaling the start of the layers by depth is said by no key that reading would obey a second time."""
    from transformers import MambaForCausalLM

    from llmfactory.model.embedding.spec import Token
    from llmfactory.model.head.spec import Lm
    from llmfactory.model.mixer.spec import Mamba
    from llmfactory.model.spec import Recurrent

    spec = Recurrent(
        vocab_size=103, dim=32, max_positions=64, n_layers=3, embedding=Token(), mixer=Mamba(expand=2, state=4, conv=4), norm=RmsNorm(), head=Lm(tied=True),
        residual=True, depth_scaled_init=True,
    )  # fmt: skip
    family = family_of({"model_type": "mamba"})
    reference = MambaForCausalLM.from_pretrained(saved(family.config(spec), tmp_path))
    before = reference.config.to_dict() | {"rescale_prenorm_residual": False}
    again = MambaForCausalLM(type(reference.config)(**before))
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    tokens = ids(2, 20)
    torch.testing.assert_close(reference(tokens).logits, again(tokens).logits, rtol=0, atol=0)


def saved(config, folder):
    """A folder with a config and random weights for it."""
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(**config))
    torch.save(model.state_dict(), folder / "weights.pt")
    model.save_pretrained(folder)
    return folder
