from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, FullMask
from llmfactory.core.errors import UserError
from llmfactory.inference import sampler
from llmfactory.inference.cache import KvCache
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import Sampling, sample
from llmfactory.model.position.spec import Learned

PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3, 2], [11, 12, 13, 14, 15]]
GREEDY = {"max_tokens": 12, "sampling": sampler.GREEDY}
SAMPLED = {"max_tokens": 12, "sampling": Sampling(temperature=1.5, top_k=20, top_p=0.95), "seed": 4}


def full_logits(model, tokens):
    """Of the last position, by a full forward without cache."""
    length = len(tokens)
    hidden = model(torch.tensor([tokens]), Context(torch.arange(length)[None], CausalMask(length)))
    return model.head(hidden[:, -1])


def reference(model, prompt, max_tokens, end_id=None):
    """Greedy decoding by a full forward a token."""
    new = []
    while len(new) < max_tokens:
        token = int(full_logits(model, prompt + new).argmax())
        if token == end_id:
            break
        new.append(token)
    return new


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_step_by_step_logits_equal_the_full_forward(model, dtype, tolerance):
    model = model.to(dtype)
    tokens = torch.randint(0, 61, (2, 14))
    full = model.head(model(tokens, Context(torch.arange(14).expand(2, 14), CausalMask(14))))
    cache = KvCache(14)
    steps = [model(tokens[:, :5], Context(torch.arange(5).expand(2, 5), CausalMask(5), cache))]
    for t in range(5, 14):
        steps.append(model(tokens[:, t : t + 1], Context(torch.full((2, 1), t), FullMask(), cache)))
    stepped = model.head(torch.cat(steps, 1))
    atol = tolerance * float(full.detach().abs().max())
    torch.testing.assert_close(stepped, full, rtol=0, atol=atol)


@pytest.mark.parametrize("end_id", [None, 17])
def test_greedy_equals_a_full_forward_a_token(model, end_id):
    """With left padding, rows that end early, and the cache cut down to the rows still going."""
    with torch.no_grad():
        if end_id is not None:  # a token that some row really ends with, and not all at once
            end_id = reference(model, PROMPTS[0], 6)[3]
        want = [reference(model, prompt, 12, end_id) for prompt in PROMPTS]
    assert generate(model, PROMPTS, **GREEDY, end_id=end_id) == want
    if end_id is not None:
        assert min(map(len, want)) <= 3


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_the_others(model, options):
    together = generate(model, PROMPTS, **options)
    assert together == [generate(model, [prompt], **options)[0] for prompt in PROMPTS]
    assert list(reversed(together)) == generate(model, PROMPTS[::-1], **options)


def test_sampling_follows_the_distribution(model):
    """First tokens of many equal prompts: frequencies against the sampler's own probabilities."""
    from llmfactory.inference.sampler import distribution

    with torch.no_grad():
        want = distribution(full_logits(model, PROMPTS[0]), Sampling(top_k=4))[0]
    tokens = [row[0] for row in generate(model, [PROMPTS[0]] * 3000, max_tokens=1, sampling=Sampling(top_k=4))]
    got = torch.bincount(torch.tensor(tokens), minlength=61) / 3000
    torch.testing.assert_close(got.double(), want, rtol=0, atol=0.04)


def test_seed(model):
    first = generate(model, [[5, 6]] * 4, **SAMPLED)
    assert first == generate(model, [[5, 6]] * 4, **SAMPLED)
    assert first != generate(model, [[5, 6]] * 4, **{**SAMPLED, "seed": 5})
    assert len({tuple(row) for row in first}) == 4  # equal prompts get different samples


def test_the_global_generator_is_left_alone(model):
    before = torch.random.get_rng_state()
    generate(model, PROMPTS, **SAMPLED)
    assert torch.equal(before, torch.random.get_rng_state())


def test_streams_every_token_as_it_comes(model):
    seen = []
    new = generate(model, PROMPTS, **GREEDY, on_token=lambda row, token: seen.append((row, token)))
    for row, tokens in enumerate(new):
        assert [token for r, token in seen if r == row] == tokens
    assert [row for row, _ in seen[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_does_not_change_the_model(model):
    model.train()
    model.blocks[0].attention.dropout = 0.5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = generate(model, PROMPTS, **GREEDY)
    assert first == generate(model, PROMPTS, **GREEDY)  # no dropout in it
    assert model.training
    assert model.blocks[0].attention.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_to_do(model):
    assert generate(model, [], max_tokens=5) == []
    assert generate(model, [[1], [2]], max_tokens=0) == [[], []]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[1], []], "prompt 1 is empty"), ([[1, 61]], "prompt 0 holds the token 61"), ([[-1]], "prompt 0 holds the token -1")],
)
def test_bad_prompts_are_named(model, prompts, message):
    with pytest.raises(UserError, match=message):
        generate(model, prompts, max_tokens=5)


def test_nan_is_an_error_not_a_token(model):
    model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        generate(model, [[1]], max_tokens=5)


def test_the_last_position_can_be_used(model):
    """The last new token is never read, so a prompt and n new tokens need one position less than their sum."""
    prompt = [token % 61 for token in range(30)]
    with torch.no_grad():
        assert generate(model, [prompt], max_tokens=11, sampling=sampler.GREEDY) == [reference(model, prompt, 11)]


def test_more_tokens_than_positions(model):
    prompt = [token % 61 for token in range(30)]
    if isinstance(model.spec.position, Learned):
        with pytest.raises(UserError, match=r"30 tokens and 12 new ones .* 40 learned positions.* at most 11 tokens"):
            generate(model, [prompt], max_tokens=12)
        return
    # Half of the 41 places stay with the prompt: its last 29 and 12 new ones fit.
    with pytest.warns(UserWarning, match="rows of 40 tokens: prompts keep their last 29"):
        got = generate(model, [prompt, [3]], max_tokens=12, sampling=sampler.GREEDY)
    with torch.no_grad():
        assert got == [reference(model, prompt[-29:], 12), reference(model, [3], 12)]
    with pytest.warns(UserWarning, match="prompts keep their last 20"):
        got = generate(model, [prompt, [3]], max_tokens=500, sampling=sampler.GREEDY)
    assert [len(row) for row in got] == [21, 40]


def test_greedy_sampling_agrees_with_top_k_of_one(model):
    assert generate(model, PROMPTS, max_tokens=8, sampling=Sampling(temperature=0.7, top_k=1)) == generate(
        model, PROMPTS, max_tokens=8, sampling=sampler.GREEDY
    )


def test_uniform_numbers_stay_with_their_row(model):
    """A row that goes on after another has ended draws what it would have drawn alone."""
    first = generate(model, PROMPTS, **SAMPLED)
    end_id = first[0][1]
    cut = [row[: row.index(end_id)] if end_id in row else row for row in first]
    assert generate(model, PROMPTS, **SAMPLED, end_id=end_id) == cut
    assert len({len(row) for row in cut}) > 1
    logits = torch.zeros(1, 4)
    assert sample(logits, torch.tensor([0.6]), Sampling()).tolist() == [2]


def test_ids_beyond_the_tokenizer_are_never_chosen(model):
    """The rest of the vocabulary keeps its odds: the same as if the other rows were not there."""
    rows = generate(model, [[1, 2]] * 20, max_tokens=10, vocab_size=7, seed=1)
    drawn = {token for row in rows for token in row}
    assert drawn <= set(range(7))
    assert len(drawn) > 2
    free = generate(model, [[1, 2]] * 20, max_tokens=10, seed=1)
    assert max(token for row in free for token in row) >= 7


def test_a_row_ends_where_the_caller_says(model):
    """Others go on as if it were not there."""
    whole = generate(model, PROMPTS, **GREEDY)
    ended = generate(model, PROMPTS, **GREEDY, on_token=lambda row, token: row == 1 and token == whole[1][2])
    assert ended == [whole[0], whole[1][: whole[1].index(whole[1][2]) + 1], *whole[2:]]


def test_the_penalty_sees_prompt_and_answer(model):
    """Each step is a full forward, and the tokens of the row so far are penalized."""

    def penalized(prompt):
        new = []
        for _ in range(20):
            logits = full_logits(model, prompt + new)
            for token in set(prompt + new):
                logits[0, token] = logits[0, token] / 3 if logits[0, token] > 0 else logits[0, token] * 3
            new.append(int(logits.argmax()))
        return new

    with torch.no_grad():
        want = [penalized(prompt) for prompt in PROMPTS]
    options = {"max_tokens": 20, "sampling": Sampling(temperature=0.0, repetition_penalty=3.0)}
    assert generate(model, PROMPTS, **options) == want
    assert want != generate(model, PROMPTS, max_tokens=20, sampling=sampler.GREEDY)
