"""Tables that are cut along the vocabulary: rows are looked up where they lie, and a loss is computed from cut logits.

The softmax over a cut vocabulary needs three numbers of each token from everybody: the largest logit, the sum of the
exponentials and the label's logit (Shoeybi et al. 2019, section 3). As in `kernel/linear_cross_entropy.py`, tokens are taken in
chunks, and gradients are computed at once. The gradient with respect to the hidden vectors is partial, as that of any copy is
(`collectives.py`).

Shapes: N tokens, C of them in a chunk, V rows of this process, W of all, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmfactory.core.batch import IGNORE
from llmfactory.kernel.embedding import embedding
from llmfactory.kernel.linear_cross_entropy import add_product_, chunk_logits, chunk_size, turned_over
from llmfactory.kernel.product import product
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.head.lm import VocabularyHead
from llmfactory.parallel.collectives import Group, gather, total, total_


class _Rows:
    own = False


@contextmanager
def own_rows() -> Iterator[None]:
    """Within it, parameters that are cut along the vocabulary are seen as this process's rows, elsewhere as all, gathered."""
    before, _Rows.own = _Rows.own, True
    try:
        yield
    finally:
        _Rows.own = before


def gathered_rows(local: Tensor, group: Group) -> Tensor:
    """What a forward sees of such a parameter."""
    return local if _Rows.own else gather(local, 0, group)


def cut_look_up(table: TokenTable, group: Group, tokens: Tensor) -> Tensor:
    """`TokenTable.look_up`: each process gives the rows that it has and zeros for the others."""
    with own_rows():
        weight_VD = table.weight
    rows = weight_VD.shape[0]
    places = tokens - group.rank() * rows
    here = (places >= 0) & (places < rows)
    found = embedding(places.where(here, 0), weight_VD) * here[..., None].to(weight_VD.dtype)
    return total(found, group)


def cut_cross_entropy(
    head: VocabularyHead,
    group: Group,
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z: float = 0.0,
) -> Tensor:
    """`Head.cross_entropy` where the vocabulary is cut; the same number on every process."""
    features = head.features(hidden)
    with own_rows():
        weight_VD, bias_V = head.weight, head.bias
    labels_N = labels.flatten()
    kept_N = labels_N != IGNORE
    exact = torch.promote_types(features.dtype, torch.float32)
    scale_N = kept_N.to(exact) if weights is None else weights.flatten().to(exact) * kept_N
    return _CutCrossEntropy.apply(  # type: ignore[no-any-return,no-untyped-call]
        features.flatten(0, -2), weight_VD, bias_V, labels_N.where(kept_N, 0), scale_N, label_smoothing, head.softcap, z, group
    )


def cut_log_probs(
    head: VocabularyHead, group: Group, hidden_ND: Tensor, labels_N: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    """`Head.token_log_probs` where the vocabulary is cut; the same numbers on every process."""
    features = head.features(hidden_ND)
    with own_rows():
        weight_VD, bias_V = head.weight, head.bias
    return _CutLogProbs.apply(  # type: ignore[no-any-return,no-untyped-call]
        features, weight_VD, bias_V, labels_N, head.softcap, temperature, entropy, group
    )


def cut_losses(model: nn.Module, group: Group) -> None:
    """Let the vocabulary heads of `model` compute their losses from cut logits, in place."""
    for part in model.modules():
        if isinstance(part, VocabularyHead):
            part.cross_entropy = partial(cut_cross_entropy, part, group)  # type: ignore[method-assign]
            part.token_log_probs = partial(cut_log_probs, part, group)  # type: ignore[method-assign]


class _CutCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scale_N: Tensor,
        smoothing: float,
        softcap: float | None,
        z: float,
        group: Group,
    ) -> Tensor:
        device, exact = hidden_ND.device.type, scale_N.dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        h_ND, w_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        rows, first = w_VD.shape[0], group.rank() * w_VD.shape[0]
        whole = rows * group.size()
        grad_hidden, grad_weight = torch.empty_like(h_ND), w_VD.new_zeros(w_VD.shape[::-1], dtype=exact)  # [N, D], [D, V]
        grad_bias = None if bias_V is None else torch.zeros(rows, dtype=exact, device=w_VD.device)
        loss = torch.zeros((), dtype=exact, device=w_VD.device)
        with torch.autocast(device, enabled=False):
            for cut in _chunks(h_ND, whole):
                h_CD, scale_C1 = h_ND[cut], scale_N[cut, None]
                logits_CV, slope_CV = chunk_logits(h_CD, w_VD, bias_V, softcap, exact, slope=True)
                logits_CV = logits_CV.to(exact)
                place_C1, here_C1 = _own_places(target_N[cut] - first, rows, exact)
                largest_C1 = logits_CV.max(-1, keepdim=True).values
                dist.all_reduce(largest_C1, dist.ReduceOp.MAX, group=group)
                exp_CV = (logits_CV - largest_C1).exp_()
                parts_C3 = torch.cat(
                    (exp_CV.sum(-1, keepdim=True), logits_CV.gather(-1, place_C1) * here_C1, logits_CV.sum(-1, keepdim=True)), 1
                )
                sum_C1, label_C1, all_C1 = total_(parts_C3, group).chunk(3, 1)
                normalizer_C1 = largest_C1 + sum_C1.log()
                loss_C1 = (1 - smoothing) * (normalizer_C1 - label_C1) + smoothing * (normalizer_C1 - all_C1 / whole)
                if z:
                    loss_C1 += z * normalizer_C1.square()
                loss += (loss_C1 * scale_C1).sum()
                grad_CV = exp_CV.div_(sum_C1)
                if z:
                    grad_CV *= 1 + 2 * z * normalizer_C1
                if smoothing:
                    grad_CV -= smoothing / whole
                grad_CV.scatter_add_(-1, place_C1, here_C1 * (smoothing - 1))
                if slope_CV is not None:
                    grad_CV *= slope_CV
                grad_CV *= scale_C1
                low_CV = grad_CV.to(dtype)
                grad_hidden[cut] = product(low_CV, w_VD.t())
                add_product_(grad_weight, h_CD, low_CV)
                if grad_bias is not None:
                    grad_bias += grad_CV.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.group, ctx.dtypes = group, (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # All processes return the same loss, so its gradient is what all of them say together.
        grad_loss = total_(grad_loss.clone(), ctx.group)
        grad_hidden, grad_weight_DV, grad_bias = ctx.saved_tensors
        hidden_as, weight_as, bias_as = ctx.dtypes
        return (
            (grad_hidden * grad_loss.to(grad_hidden.dtype)).to(hidden_as),
            turned_over(grad_weight_DV, grad_weight_DV.dtype).mul_(grad_loss.to(grad_weight_DV.dtype)).to(weight_as),
            None if grad_bias is None else (grad_bias * grad_loss.to(grad_bias.dtype)).to(bias_as),
            *(None,) * 6,
        )


class _CutLogProbs(torch.autograd.Function):
    """`kernel/linear_log_probs.py` of cut logits: forward keeps the normalizers, backward computes a chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        softcap: float | None,
        temperature: float,
        entropy: bool,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        device, exact = hidden_ND.device.type, torch.promote_types(hidden_ND.dtype, torch.float32)
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        ctx.group, ctx.softcap, ctx.temperature, ctx.entropy = group, softcap, temperature, entropy
        h_ND, w_VD = hidden_ND.to(ctx.dtype), weight_VD.to(ctx.dtype)
        n, first = h_ND.shape[0], group.rank() * w_VD.shape[0]
        logp_N, normalizer_N = (torch.empty(n, dtype=exact, device=h_ND.device) for _ in range(2))
        entropy_N = torch.empty(n if entropy else 0, dtype=exact, device=h_ND.device)
        with torch.autocast(device, enabled=False):
            for cut in _chunks(h_ND, w_VD.shape[0] * group.size()):
                logits_CV, _ = chunk_logits(h_ND[cut], w_VD, bias_V, softcap, exact, slope=False)
                logits_CV = logits_CV.to(exact) / temperature
                place_C1, here_C1 = _own_places(labels_N[cut] - first, w_VD.shape[0], exact)
                largest_C1 = logits_CV.max(-1, keepdim=True).values
                dist.all_reduce(largest_C1, dist.ReduceOp.MAX, group=group)
                exp_CV = (logits_CV - largest_C1).exp_()
                parts = [exp_CV.sum(-1, keepdim=True), logits_CV.gather(-1, place_C1) * here_C1]
                parts += [(exp_CV * logits_CV).sum(-1, keepdim=True)] if entropy else []
                sum_C1, label_C1, *weighed = total_(torch.cat(parts, 1), group).chunk(len(parts), 1)
                normalizer_C1 = largest_C1 + sum_C1.log()
                logp_N[cut], normalizer_N[cut] = (label_C1 - normalizer_C1)[:, 0], normalizer_C1[:, 0]
                if entropy:
                    entropy_N[cut] = (normalizer_C1 - weighed[0] / sum_C1)[:, 0]
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, normalizer_N, entropy_N)
        return logp_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, labels_N, normalizer_N, entropy_N = ctx.saved_tensors
        exact = normalizer_N.dtype
        # All processes return the same numbers, so their gradients are what all of them say together.
        factor_N = total_(grad_logp_N.contiguous().clone(), ctx.group)
        spread_N = total_(grad_entropy_N.contiguous().clone(), ctx.group) if ctx.entropy else None
        h_ND, w_VD = hidden_ND.to(ctx.dtype), weight_VD.to(ctx.dtype)
        first = ctx.group.rank() * w_VD.shape[0]
        grad_hidden, grad_weight = torch.empty_like(h_ND), w_VD.new_zeros(w_VD.shape[::-1], dtype=exact)  # [N, D], [D, V]
        grad_bias = None if bias_V is None else torch.zeros(w_VD.shape[0], dtype=exact, device=w_VD.device)
        with torch.autocast(h_ND.device.type, enabled=False):
            for cut in _chunks(h_ND, w_VD.shape[0] * ctx.group.size()):
                logits_CV, slope_CV = chunk_logits(h_ND[cut], w_VD, bias_V, ctx.softcap, exact, slope=True)
                logits_CV = logits_CV.to(exact) / ctx.temperature
                place_C1, here_C1 = _own_places(labels_N[cut] - first, w_VD.shape[0], exact)
                logp_CV, factor_C1 = logits_CV - normalizer_N[cut, None], factor_N[cut, None]
                weight_CV = factor_C1 if spread_N is None else factor_C1 + spread_N[cut, None] * (logp_CV + entropy_N[cut, None])
                grad_CV = -logp_CV.exp() * weight_CV
                grad_CV.scatter_add_(-1, place_C1, here_C1 * factor_C1)
                if slope_CV is not None:
                    grad_CV *= slope_CV
                low_CV = (grad_CV / ctx.temperature).to(ctx.dtype)
                grad_hidden[cut] = product(low_CV, w_VD.t())
                add_product_(grad_weight, h_ND[cut], low_CV)
                if grad_bias is not None:
                    grad_bias += grad_CV.sum(0) / ctx.temperature
        return (
            grad_hidden.to(hidden_ND.dtype),
            turned_over(grad_weight, weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            *(None,) * 5,
        )


def _chunks(h_ND: Tensor, vocabulary: int) -> Iterator[slice]:
    step = chunk_size(h_ND.device.type, vocabulary)
    yield from (slice(start, start + step) for start in range(0, h_ND.shape[0], step))


def _own_places(place_C: Tensor, rows: int, exact: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which of its rows each label is, and 1 where it is one of them, else 0."""
    here_C = (place_C >= 0) & (place_C < rows)
    return place_C.where(here_C, 0)[:, None], here_C[:, None].to(exact)
