"""PPO as TRL's PPOTrainer did it (trl/trainer/ppo_trainer.py, which TRL 1.16 has no more), as a plain loop for benchmarks/rl.py.

An iteration: answers by `generate`, whose scores are kept and give the old log-probabilities; one forward pass of the reference and one
of the value model over prompts with answers; a score for each answer at its last token, less kl_coef (log p - log q) at each; GAE;
then `epochs` passes of policy and value model together with clipped losses, each with an AdamW step. Policy and value model are two
networks; log-probabilities come from whole logits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    answers: int
    tokens: int
    kl_coef: float
    epochs: int
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_coef: float = 0.1
    temperature: float = 1.0
    lr: float = 1e-6


def log_probs(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    return F.log_softmax(logits_BTV, -1).gather(-1, ids_BT[..., None])[..., 0]


def advantages(rewards_BT: Tensor, values_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Whitened advantages, and returns."""
    last, found = torch.zeros_like(rewards_BT[:, 0]), []
    for t in reversed(range(rewards_BT.shape[1])):
        after = values_BT[:, t + 1] if t + 1 < values_BT.shape[1] else torch.zeros_like(last)
        last = rewards_BT[:, t] + gamma * after - values_BT[:, t] + gamma * lam * last
        found.append(last)
    adv_BT = torch.stack(found[::-1], 1)
    return (adv_BT - adv_BT.mean()) / (adv_BT.std() + 1e-8), adv_BT + values_BT


def train(
    config: Any, prompts_NP: Tensor, reward: Callable[[list[int]], float], steps: int, spec: Settings
) -> tuple[list[float], dict[str, float]]:
    """CPU seconds of each iteration but the first, and the share of each part."""
    from transformers import LlamaForCausalLM, LlamaForTokenClassification

    policy = LlamaForCausalLM(config)
    reference = LlamaForCausalLM(config).requires_grad_(False).eval()
    reference.load_state_dict(policy.state_dict())
    config.num_labels = 1
    critic = LlamaForTokenClassification(config)
    optimizer = torch.optim.AdamW([*policy.parameters(), *critic.parameters()], lr=spec.lr)
    spent = {"rollout": 0.0, "score": 0.0, "update": 0.0}
    times = [time.process_time()]
    for step in range(steps):
        asked = torch.arange(step * spec.answers, (step + 1) * spec.answers) % len(prompts_NP)
        begin = time.process_time()
        ids, old = rollout(policy, prompts_NP[asked], config.eos_token_id, spec)
        after = time.process_time()
        batch = scored(ids, old, prompts_NP.shape[1], reference, critic, reward, config.eos_token_id, spec)
        then = time.process_time()
        for _ in range(spec.epochs):
            loss = loss_of(policy, critic, batch, prompts_NP.shape[1], spec)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        times.append(time.process_time())
        for name, part in zip(spent, (after - begin, then - after, times[-1] - then), strict=True):
            spent[name] += part
    whole = sum(spent.values())
    return [b - a for a, b in itertools.pairwise(times[1:])], {name: part / whole for name, part in spent.items()}


@torch.no_grad()
def rollout(policy: Any, prompts_BP: Tensor, end: int, spec: Settings) -> tuple[Tensor, Tensor]:
    """Prompts with answers [B, P + T], and the log-probabilities of the answers' tokens [B, T]."""
    policy.eval()
    found = policy.generate(
        prompts_BP,
        attention_mask=torch.ones_like(prompts_BP),
        max_new_tokens=spec.tokens,
        do_sample=True,
        temperature=spec.temperature,
        top_k=0,
        pad_token_id=end,
        output_scores=True,
        return_dict_in_generate=True,
    )
    policy.train()
    written = found.sequences[:, prompts_BP.shape[1] :]
    return found.sequences, log_probs(torch.stack(found.scores, 1), written)


@torch.no_grad()
def scored(
    ids: Tensor,
    old_BT: Tensor,
    begin: int,
    reference: Any,
    critic: Any,
    reward: Callable[[list[int]], float],
    end: int,
    spec: Settings,
) -> dict[str, Tensor]:
    written = ids[:, begin:]
    ended_BT = ((written == end).cumsum(1) - (written == end).long()) > 0  # behind the end
    known_BT = log_probs(reference(ids).logits[:, begin - 1 : -1] / spec.temperature, written)
    values_BT = critic(ids).logits[:, begin - 1 : -1, 0].masked_fill(ended_BT, 0)
    rewards_BT = (-spec.kl_coef * (old_BT - known_BT)).masked_fill(ended_BT, 0)
    last = (~ended_BT).sum(1) - 1
    scores = torch.tensor([reward(row[: size + 1].tolist()) for row, size in zip(written, last.tolist(), strict=True)])
    rewards_BT[torch.arange(len(ids)), last] += scores
    adv_BT, returns_BT = advantages(rewards_BT, values_BT, spec.gamma, spec.lam)
    return {"ids": ids, "old": old_BT, "values": values_BT, "adv": adv_BT, "returns": returns_BT, "kept": (~ended_BT).float()}


def loss_of(policy: Any, critic: Any, batch: dict[str, Tensor], begin: int, spec: Settings) -> Tensor:
    ids, kept_BT = batch["ids"], batch["kept"]
    new_BT = log_probs(policy(ids).logits[:, begin - 1 : -1] / spec.temperature, ids[:, begin:])
    values_BT = critic(ids).logits[:, begin - 1 : -1, 0]
    near_BT = batch["values"] + (values_BT - batch["values"]).clamp(-spec.clip, spec.clip)
    value_BT = 0.5 * torch.maximum((values_BT - batch["returns"]).square(), (near_BT - batch["returns"]).square())
    ratio_BT = (new_BT - batch["old"]).exp()
    policy_BT = torch.maximum(-batch["adv"] * ratio_BT, -batch["adv"] * ratio_BT.clamp(1 - spec.clip, 1 + spec.clip))
    return ((policy_BT + spec.value_coef * value_BT) * kept_BT).sum() / kept_BT.sum()
