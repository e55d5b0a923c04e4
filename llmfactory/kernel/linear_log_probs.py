"""Log-probability of one label a token under a linear head, and the entropy there, without ever holding all logits.

    log p_n = z_n[label_n] - log sum_v exp z_n[v],     H_n = log sum_v exp z_n[v] - sum_v p_n[v] z_n[v]
    d log p_n / d z_n = onehot(label_n) - p_n,         d H_n / d z_n = -p_n (log p_n + H_n)

Preferences and policies weigh each token by a number that is known only after all of them: unlike that of a cross-entropy, the
gradient cannot be computed along with the value. Forward keeps the log-normalizer of each token, backward computes a chunk's logits
again. Where the head's matrix does not learn (adapters), the gradient of a token's log-probability is a vector that merely waits for
its factor: it is computed at once, and nothing twice.

Logits are z = softcap(h W' + b) / temperature. Products run in autocast's dtype where autocast is on; softmax, results and the
accumulated gradient of the head are at least float32.

Shapes: N tokens, C of them in a chunk, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmfactory.kernel.linear_cross_entropy import accumulator, add_product_, chunk_logits, chunk_size, turned_over
from llmfactory.kernel.product import product_in_graph


def reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The same numbers by plain means: log-probabilities and entropies, [N] each."""
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
    logits_NV = logits_NV.to(accumulator(logits_NV.dtype))
    if softcap is not None:
        logits_NV = softcap * (logits_NV / softcap).tanh()
    logp_NV = (logits_NV / temperature).log_softmax(-1)
    return logp_NV.gather(-1, labels_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1)


def linear_log_probs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(label) of each token [N], and with `entropy` the entropy of its distribution [N], else none [0].

    Every token has a label: whoever has places without one leaves them out before. In float32 or better. Differentiable once, with
    respect to hidden, weight and bias.
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
    else:
        dtype = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    rows = chunk_rows or chunk_size(hidden_ND.device.type, weight_VD.shape[0])
    found: tuple[Tensor, Tensor] = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, labels_N, softcap, temperature, entropy, rows, dtype
    )
    return found


class _LinearLogProbs(torch.autograd.Function):
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
        rows: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        exact = accumulator(dtype)
        h_ND, w_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        n = h_ND.shape[0]
        logp_N = torch.empty(n, dtype=exact, device=h_ND.device)
        normalizer_N1 = torch.empty(n, 1, dtype=exact, device=h_ND.device)
        entropy_N = torch.empty(n if entropy else 0, dtype=exact, device=h_ND.device)
        at_once = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3]) and not entropy
        ready_ND = torch.empty_like(h_ND) if at_once else None
        with torch.autocast(h_ND.device.type, enabled=False):
            for start in range(0, n, rows):
                cut = slice(start, start + rows)
                logits_CV, slope_CV = _logits(h_ND[cut], w_VD, bias_V, softcap, temperature, exact, slope=at_once)
                label_C1 = labels_N[cut, None]
                normalizer_C1 = normalizer_N1[cut] = logits_CV.logsumexp(-1, keepdim=True)
                logp_N[cut] = (logits_CV.gather(-1, label_C1) - normalizer_C1)[:, 0]
                if not (entropy or at_once):
                    continue
                if entropy:
                    shares_CV = (logits_CV - normalizer_C1).exp_()
                    entropy_N[cut] = normalizer_C1[:, 0] - (shares_CV.mul_(logits_CV)).sum(-1)
                else:
                    shares_CV = logits_CV.sub_(normalizer_C1).exp_()
                    grad_CV = _of_labels(shares_CV, label_C1, slope_CV, temperature)
                    assert ready_ND is not None
                    ready_ND[cut] = product_in_graph(grad_CV.to(dtype), w_VD.t())
        if at_once:
            ctx.save_for_backward(ready_ND)
        else:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, normalizer_N1, entropy_N)
        ctx.at_once, ctx.entropy, ctx.rows, ctx.dtype = at_once, entropy, rows, dtype
        ctx.softcap, ctx.temperature, ctx.wanted = softcap, temperature, hidden_ND.dtype
        ctx.set_materialize_grads(False)  # entropies that are only looked at cost nothing on the way back
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * 6
        if grad_logp_N is None:
            if grad_entropy_N is None:
                return (None, None, None, *rest)
            grad_logp_N = torch.zeros_like(grad_entropy_N)
        if ctx.at_once:
            (ready_ND,) = ctx.saved_tensors
            return (ready_ND * grad_logp_N[:, None].to(ready_ND.dtype)).to(ctx.wanted), None, None, *rest
        hidden_ND, weight_VD, bias_V, labels_N, normalizer_N1, entropy_N = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype, exact = ctx.dtype, accumulator(ctx.dtype)
        h_ND, w_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        grad_hidden = torch.empty_like(h_ND) if need_hidden else None
        grad_weight = w_VD.new_zeros(w_VD.shape[::-1], dtype=exact) if need_weight else None  # [D, V]
        grad_bias = torch.zeros_like(bias_V, dtype=exact) if need_bias and bias_V is not None else None
        with torch.autocast(h_ND.device.type, enabled=False):
            for start in range(0, h_ND.shape[0], ctx.rows):
                cut = slice(start, start + ctx.rows)
                logits_CV, slope_CV = _logits(h_ND[cut], w_VD, bias_V, ctx.softcap, ctx.temperature, exact, slope=True)
                logp_CV = logits_CV.sub_(normalizer_N1[cut])
                factor_C1 = grad_logp_N[cut, None]
                if ctx.entropy and grad_entropy_N is not None:
                    factor_CV = factor_C1 + grad_entropy_N[cut, None] * (logp_CV + entropy_N[cut, None])
                    grad_CV = logp_CV.exp_().mul_(factor_CV).neg_()
                    grad_CV.scatter_add_(-1, labels_N[cut, None], factor_C1.to(exact))
                    grad_CV = _through(grad_CV, slope_CV, ctx.temperature)
                    factor_C1 = torch.ones_like(factor_C1)
                else:
                    grad_CV = _of_labels(logp_CV.exp_(), labels_N[cut, None], slope_CV, ctx.temperature)
                low_CV = grad_CV.to(dtype)
                # The factor of a token scales D numbers here instead of V there.
                if grad_hidden is not None:
                    grad_hidden[cut] = product_in_graph(low_CV, w_VD.t()) * factor_C1.to(dtype)
                if grad_weight is not None:
                    add_product_(grad_weight, h_ND[cut] * factor_C1.to(dtype), low_CV)
                if grad_bias is not None:
                    grad_bias += (grad_CV.t() @ factor_C1.to(exact))[:, 0]
        return (
            None if grad_hidden is None else grad_hidden.to(hidden_ND.dtype),
            None if grad_weight is None else turned_over(grad_weight, weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            *rest,
        )


def _logits(
    h_CD: Tensor,
    w_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    temperature: float,
    exact: torch.dtype,
    *,
    slope: bool,
) -> tuple[Tensor, Tensor | None]:
    """Logits of a chunk in `exact`, divided by the temperature, and where they are capped, with `slope`, the cap's derivative."""
    logits_CV, slope_CV = chunk_logits(h_CD, w_VD, bias_V, softcap, exact, slope=slope)
    logits_CV = logits_CV.to(exact)
    return (logits_CV if temperature == 1 else logits_CV.div_(temperature)), slope_CV


def _of_labels(shares_CV: Tensor, label_C1: Tensor, slope_CV: Tensor | None, temperature: float) -> Tensor:
    """onehot(label) - p, with respect to what is capped and divided by the temperature; in place."""
    grad_CV = shares_CV.neg_()
    grad_CV.scatter_add_(-1, label_C1, torch.ones_like(label_C1, dtype=grad_CV.dtype))
    return _through(grad_CV, slope_CV, temperature)


def _through(grad_CV: Tensor, slope_CV: Tensor | None, temperature: float) -> Tensor:
    if slope_CV is not None:
        grad_CV *= slope_CV
    return grad_CV if temperature == 1 else grad_CV / temperature
