"""What the steps of an iteration learn from, against loops over single answers: what is drawn, how likely it is, what it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_job import learning
from toy_job import filled

from llmfactory.core.batch import IGNORE
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.data.prepared import Prepared
from llmfactory.inference.sampler import draw
from llmfactory.objective.policy_spec import ActorCritic
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import build_stage
from llmfactory.stage.grader.exact_match import ExactMatchGrader
from llmfactory.stage.grader.grader import Answer
from llmfactory.stage.iteration import Graded, Iteration, Rounds, insist_near
from llmfactory.stage.rl_spec import Ppo
from llmfactory.stage.rollout import Written
from llmfactory.stage.rows import packed_rows, read_data

HOT = ["stage.objective.temperature=0.7", "precision=fp64", "seed=5", "stage.max_tokens=4", "model.dropout=0.3"]
Floats = list[float]


def worth(self: ExactMatchGrader, answers: Sequence[Answer]) -> Floats:
    """Different for different answers, and of a prompt in three the same for all."""
    return [0.5 if sum(one.prompt) % 3 == 0 else math.sin(3.0 * sum(one.tokens) + len(one.tokens)) for one in answers]


@pytest.fixture(autouse=True)
def _worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExactMatchGrader, "grade", worth)


def rounds_of(folder: Path, stage: str, *overrides: str) -> Rounds:
    """With a model whose answers end, and are far from those of its reference and from what its critic expects."""
    job = learning(folder, stage, "model/head=lm", *HOT, *overrides)
    data = read_data(job, None, job.stage.objective.specials())  # type: ignore[attr-defined]
    assert isinstance(data, Prepared)
    model = filled(build_stage(job, isolated=False)).model.eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            parameter.add_(0.3 * noise)
        usual = torch.stack([vectors(model, data.tokenizer.encode(text))[-1] for text in ("012=", "321=", "330=")]).mean(0)
        for end in data.tokenizer.usage.stop_ids:
            model.head.weight[end] = 6 * usual / usual.square().sum()  # about one token in three
    rows = packed_rows(job, data, "train", job.data.seq_len)  # type: ignore[union-attr]
    return Rounds(job, rows, data.tokenizer, World(torch.device("cpu")), nullcontext, lambda: model)


def made_by(rounds: Rounds, drawn: int, kl_coef: float) -> Iteration:
    """An iteration of a model that is in the midst of its training: nothing is dropped while it writes and is asked."""
    model = rounds.current().train()
    found = rounds.next(drawn, kl_coef)
    assert model.training
    model.eval()
    return found


@torch.no_grad()
def vectors(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """[T, D], of a row by itself."""
    length = len(tokens)
    context = Context(torch.arange(length)[None], CausalMask(length))
    return model(torch.tensor([tokens]), context)[0]  # type: ignore[no-any-return]


@torch.no_grad()
def drawn(rounds: Rounds, prompt: list[int], number: int, answer: int) -> tuple[list[int], list[int], bool]:
    """Token by token, by a full forward each; also without the token that ends it, and whether there is one."""
    generator = torch.Generator().manual_seed(name_seed(rounds.job.seed, f"answer {answer} to prompt {number}"))
    found: list[int] = []
    while len(found) < rounds.spec.max_tokens:
        logits = rounds.model.head(vectors(rounds.model, prompt + found)[-1:])[:, : rounds.tokenizer.vocab_size]
        uniform = torch.rand((1,), generator=generator, dtype=torch.float64)
        found.append(int(draw((logits / rounds.objective.temperature).softmax(-1), uniform)))
        if found[-1] in rounds.tokenizer.usage.stop_ids:
            return found, found[:-1], True
    return found, found, False


@torch.no_grad()
def likelihoods(model: Any, prompt: list[int], answer: list[int], temperature: float) -> Floats:
    logits = model.head(vectors(model, (prompt + answer)[:-1])) / temperature
    return [float(logits[len(prompt) - 1 + at].log_softmax(-1)[token]) for at, token in enumerate(answer)]


@torch.no_grad()
def first_step(rounds: Rounds, found: Iteration) -> dict[str, float]:
    """What the objective makes of all answers, by the weights that have written them."""
    objective = rounds.job.stage.trained(rounds.job)  # type: ignore[attr-defined]
    outputs = objective.outputs(rounds.model, found.rows, rounds.model.context(found.rows, isolated=False))
    return {name: float(total / count) for name, (total, count) in objective(outputs, found.rows).items()}


def answers_of(rounds: Rounds, found: Iteration, first: int, cut_off: bool = True) -> list[tuple[list[int], list[int], float]]:
    """Of each row its prompt, its answer, and what that is worth; rows are those that are drawn one after the other.

    `cut_off`: answers that did not end are learned from.
    """
    made = []
    for row in range(rounds.answers):
        number, answer = first + row // rounds.group, row % rounds.group
        (asked,) = rounds.ask([number])
        tokens, text, ended = drawn(rounds, asked.tokens, number, answer)
        start, whole = len(asked.tokens) - 1, asked.tokens + tokens
        assert found.rows["tokens"][row, : len(whole) - 1].tolist() == whole[:-1]
        labels = torch.full_like(found.rows["labels"][row], IGNORE)
        if ended or cut_off:
            labels[start : start + len(tokens)] = torch.tensor(tokens)
        assert torch.equal(found.rows["labels"][row], labels)
        made.append((asked.tokens, tokens, worth(None, [Answer(asked.tokens, "", text, "", ended, {})])[0]))  # type: ignore[arg-type]
    return made


def close(field: torch.Tensor, row: int, prompt: list[int], wanted: Floats) -> None:
    """The numbers stand at the answer's tokens, and zeros elsewhere."""
    start = len(prompt) - 1
    whole = [0.0] * start + wanted + [0.0] * (field.shape[1] - start - len(wanted))
    assert field[row].tolist() == pytest.approx(whole, rel=1e-9, abs=1e-11)


def spread(numbers: Sequence[Floats]) -> tuple[float, float]:
    """Mean and standard deviation over all tokens."""
    flat = torch.tensor([one for some in numbers for one in some], dtype=torch.float64)
    return float(flat.mean()), math.sqrt(float(flat.var(correction=0)) + 1e-8)


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_ppo(tmp_path: Path, whiten_rewards: bool) -> None:
    """Ouyang et al. 2022, equation 2; Schulman et al. 2016, equation 16; Ziegler et al. 2019, section 2.2."""
    options = ["stage.gamma=0.9", "stage.lam=0.8", "stage.objective.kl_coef=0.3", "stage.kl_target=0.5", "stage.clip_reward=0.3"]
    more = ["stage.max_kl=null", "trainer.batch_size=6", "trainer.micro_batch_size=4", f"stage.whiten_rewards={whiten_rewards}"]
    rounds = rounds_of(tmp_path, "ppo", *options, *more)
    found = made_by(rounds, 5, 0.25)
    made, rows, model = answers_of(rounds, found, 5), found.rows, rounds.model
    logps = [likelihoods(model, prompt, tokens, 0.7) for prompt, tokens, _ in made]
    others = [likelihoods(model.reference, prompt, tokens, 0.7) for prompt, tokens, _ in made]
    values = [
        model.critic.head(vectors(model.critic, (prompt + tokens)[:-1]))[len(prompt) - 1 :, 0].tolist()  # type: ignore[operator,union-attr]
        for prompt, tokens, _ in made
    ]
    gaps = [[one - other for one, other in zip(*pair, strict=True)] for pair in zip(logps, others, strict=True)]
    rewards = [[-0.25 * gap for gap in some] for some in gaps]
    for some, (_, _, score) in zip(rewards, made, strict=True):
        some[-1] += min(max(score, -0.3), 0.3)
    if whiten_rewards:
        mean, std = spread(rewards)
        rewards = [[(one - mean) / std + mean for one in some] for some in rewards]
    advantages = []
    for some, expected in zip(rewards, values, strict=True):
        errors = [r + 0.9 * v - own for r, v, own in zip(some, [*expected[1:], 0.0], expected, strict=True)]
        advantages.append([sum((0.9 * 0.8) ** away * e for away, e in enumerate(errors[t:])) for t in range(len(errors))])
    mean, std = spread(advantages)
    for row, (prompt, _, _) in enumerate(made):
        close(rows["old_logps"], row, prompt, logps[row])
        close(rows["reference_token_logps"], row, prompt, others[row])
        close(rows["old_values"], row, prompt, values[row])
        close(rows["returns"], row, prompt, [a + v for a, v in zip(advantages[row], values[row], strict=True)])
        close(rows["advantages"], row, prompt, [(one - mean) / std for one in advantages[row]])
        close(rows["weights"], row, prompt, [1.0] * len(advantages[row]))
    tokens = sum(map(len, gaps))
    kl = sum(map(sum, gaps)) / tokens
    assert len({len(tokens) for _, tokens, _ in made}) > 1
    scores = [score for *_, score in made]
    assert min(scores) < -0.3 < 0.3 < max(scores)
    assert found.metrics["kl_to_reference"] == pytest.approx(kl)
    assert found.metrics["kl_coef"] == 0.25
    assert found.kl_coef == pytest.approx(0.25 * (1 + 0.1 * min(max(kl / 0.5 - 1, -0.2), 0.2)))
    assert (found.drawn, found.metrics["answer_tokens"]) == (11, pytest.approx(tokens / 6))
    targets = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(advantages, values, strict=True)]
    assert found.metrics["value_explained"] == pytest.approx(1 - (std / spread(targets)[1]) ** 2, rel=1e-5)
    learned = first_step(rounds, found)
    assert (learned["moved"], learned["clipped"]) == (pytest.approx(0, abs=1e-12), 0.0)
    errors = [one * one for some in advantages for one in some]
    assert learned["value"] == pytest.approx(0.1 * sum(errors) / 2 / tokens), "of what is expected from what came"


@pytest.mark.parametrize("unended", ["all", "none"])
@pytest.mark.parametrize("aggregation", ["sequence", "constant"])
def test_grpo(tmp_path: Path, aggregation: str, unended: str) -> None:
    """Shao et al. 2024, section 4.1.2; Yu et al. 2025, equation 13; answers of a group stand together."""
    epochs = 1 if unended == "all" else 2
    options = [
        "trainer.batch_size=12",
        "stage.group=4",
        "stage.long_interval=2",
        f"stage.unended={unended}",
        f"stage.epochs={epochs}",
    ]
    rounds = rounds_of(tmp_path, "grpo", *options, f"stage.objective.aggregation={aggregation}", "stage.objective.kl_coef=0.1")
    first = next(number for number in range(99) if sum(rounds.ask([number])[0].tokens) % 3 == 0)
    found = made_by(rounds, first, 0.0)
    made, rows = answers_of(rounds, found, first, unended == "all"), found.rows
    ends = [tokens[-1] in rounds.tokenizer.usage.stop_ids for _, tokens, _ in made]
    assert ("old_logps" in rows) is (epochs > 1), "the one step of each answer sees it itself"
    scores = [score - max(0, len(tokens) - 2) / 2 for _, tokens, score in made]
    for row, (prompt, tokens, _) in enumerate(made):
        group = scores[row // 4 * 4 : row // 4 * 4 + 4]
        mean = sum(group) / 4
        std = math.sqrt(sum((one - mean) ** 2 for one in group) / 3)
        close(rows["advantages"], row, prompt, [(scores[row] - mean) / (std + 1e-4)] * len(tokens))
        close(rows["weights"], row, prompt, [1 / (len(tokens) if aggregation == "sequence" else 4)] * len(tokens))
        close(rows["reference_token_logps"], row, prompt, likelihoods(rounds.model.reference, prompt, tokens, 0.7))
        if epochs > 1:
            close(rows["old_logps"], row, prompt, likelihoods(rounds.model, prompt, tokens, 0.7))
    learned = first_step(rounds, found)
    assert (learned["moved"], learned["clipped"]) == (pytest.approx(0, abs=1e-12), 0.0)
    seen = [row for row in range(12) if ends[row] or unended == "all"]
    gaps = [
        [
            q - p
            for p, q in zip(
                *(likelihoods(one, *made[row][:2], 0.7) for one in (rounds.model, rounds.model.reference)), strict=True
            )
        ]
        for row in seen
    ]
    divergence = [math.exp(gap) - 1 - gap for some in gaps for gap in some]
    assert learned["kl"] == pytest.approx(sum(divergence) / len(divergence))
    assert 0 < sum(ends) < 12
    assert found.metrics["ended"] == sum(ends) / 12
    texts = [rounds.tokenizer.decode(tokens[: len(tokens) - end]) for (_, tokens, _), end in zip(made, ends, strict=True)]
    empty = sum(not text.strip() for text in texts)
    assert found.metrics["empty"] == empty / 12 > 0
    raw = torch.tensor([score for _, _, score in made], dtype=torch.float64)
    equal = sum(len(set(raw[at : at + 4].tolist())) == 1 for at in (0, 4, 8))
    assert found.metrics["equal_groups"] == pytest.approx(equal / 3)
    assert 0 < equal < 3
    assert found.metrics["reward"] == found.metrics["reward/exact_match"] == pytest.approx(float(raw.mean()))
    assert found.metrics["reward_std"] == pytest.approx(float(raw.std(correction=0)))
    assert found.drawn == first + 3


@pytest.mark.parametrize(("same", "asked"), [({1, 3}, [[7, 8, 9], [10], [11]]), (set(range(100)), None)], ids=["some", "all"])
def test_groups_that_teach_nothing_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: set[int], asked: list[list[int]] | None
) -> None:
    """By answers to the next prompts, a few times; then they are taken as they are (Yu et al. 2025, section 3.2)."""
    rounds = rounds_of(tmp_path, "grpo", "trainer.batch_size=6", "stage.group=2", "stage.skip_equal=true")
    seen: list[list[int]] = []

    def judged(some: Any, each: int) -> tuple[list[Graded], dict[str, int], float]:
        seen.append([one.number for one in some])
        made = [
            Graded(one, Written([5], False), "", "", 1.0 if one.number - 7 in same else float(k), {"exact_match": 1.0})
            for one in some
            for k in range(each)
        ]
        return made, {"x: broken": 2}, 1.0

    monkeypatch.setattr(rounds, "write_and_judge", judged)
    found = rounds.next(7, 0.0)
    assert seen == (asked or [[7 + 3 * place + at for at in range(3)] for place in range(8)])
    count = sum(map(len, seen))
    assert found.drawn == 7 + count
    assert found.metrics["equal_groups"] == pytest.approx(len(same & set(range(count))) / count)
    assert found.failures == {"x: broken": 2 * len(seen)}
    assert found.metrics["ungraded"] == 2 * len(seen)
    assert len(found.rows["tokens"]) == 6
    assert found.rows["advantages"].any(1).all().item() is (asked is not None)
    (first,) = rounds.ask([7])
    assert found.rows["tokens"][0].tolist()[: len(first.tokens)] == first.tokens


@pytest.mark.parametrize("kl", [10.1, math.inf, math.nan])
def test_a_policy_that_has_left_its_reference_is_told_apart(kl: float) -> None:
    insist_near(Ppo(objective=ActorCritic()), 9.9)
    insist_near(Ppo(objective=ActorCritic(), max_kl=None), kl)
    with pytest.raises(UserError, match=r"stage\.max_kl=10"):
        insist_near(Ppo(objective=ActorCritic()), kl)


def test_held_out_prompts_are_judged_by_draws_of_their_own(tmp_path: Path) -> None:
    rounds = rounds_of(tmp_path, "grpo", "trainer.batch_size=8", "stage.group=4")
    graded, failures = rounds.judge(rounds.rows, [3, 0])
    assert failures == {}
    for one, place in zip(graded, (3, 0), strict=True):
        tokens, text, ended = drawn(rounds, one.asked.tokens, -1 - place, 0)
        assert (one.written, one.text) == (Written(tokens, ended), rounds.tokenizer.decode(text))
