"""What LSTM, GRU and RNN share: rows of packed documents through PyTorch's recurrent kernels.

The kernels know no documents. So rows are cut into runs (a stretch of one document within one row, padding left out), the
runs are sorted by length and their tokens by step, which is the kernels' packed form: step t works on exactly those runs that
are longer than t. The work is that of the tokens that there are, and no run sees another.

Legend: N tokens that are no padding, P runs, H width of the state.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.kernel.linear import matrix_of
from llmfactory.model.frame import Site
from llmfactory.model.mixer.documents import Documents, documents
from llmfactory.model.part import Part, declare_linear


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a batch, longest first."""

    token_N: Tensor
    """Place of each token in the flattened rows [B * T], in the order of the packed form."""
    sizes: Tensor
    """Runs that step t works on, for each t; on the CPU, as the kernels want it."""
    row_P: Tensor
    """Row of each run."""
    continues_P: Tensor
    """Bool: the run goes on with the state of the call before."""
    last_B: Tensor
    """Number of each row's last run; -1: the row has none."""


def runs(found: Documents) -> Runs:
    """Cut rows into runs."""
    B, T = found.real_BT.shape
    starts_BT, real_BT = found.starts_BT, found.real_BT
    first_BT = real_BT & (real_BT.cumsum(1) == 1)
    token_N = real_BT.flatten().nonzero()[:, 0]
    begins_N = (starts_BT | first_BT).flatten()[token_N]
    run_N = begins_N.cumsum(0) - 1
    begin_P = begins_N.nonzero()[:, 0]
    step_N = torch.ones_like(run_N).cumsum(0) - 1 - begin_P[run_N]
    length_P = run_N.bincount()
    order_P = length_P.argsort(descending=True, stable=True)
    place_P = order_P.argsort()
    packed_N = (step_N * len(order_P) + place_P[run_N]).argsort()
    row_P = token_N[begin_P] // T
    count_B = row_P.bincount(minlength=B)
    none = place_P.new_full((1,), -1)
    last_B = torch.cat([place_P, none])[(count_B.cumsum(0) - 1).where(count_B > 0, len(place_P))]
    continues_P = ~starts_BT.flatten()[token_N[begin_P]]
    return Runs(token_N[packed_N], step_N.bincount().cpu(), row_P[order_P], continues_P[order_P], last_B)


class Recurrence(Part):
    """[B, T, H] -> [B, T, H]; padding gives zeros."""

    reads = ("x", "h")
    n_states: int = 1
    """Tensors [B, H] that a state is made of; the first is the output."""
    adds_up_narrow: bool = False
    """Under autocast, the kernel for CPUs adds up the gradients of its weights over the steps in half precision, where they stand still
    after some hundreds of them: then it runs in the weights' own format."""

    def __init__(self, site: Site, gates: int, bias: bool, state_bias: bool) -> None:
        super().__init__()
        dim = site.frame.dim
        self.slot, self.std = site.slot, site.frame.std
        self.x = nn.Linear(dim, gates * dim, bias=bias)
        self.h = nn.Linear(dim, gates * dim, bias=state_bias)

    def declare(self) -> dict[str, Parameter]:
        # Every step multiplies the whole state, so a cut would be gathered at every step: kept whole.
        return {
            **declare_linear("x", self.x, self.std, Layout.replicated),
            **declare_linear("h", self.h, self.std, Layout.replicated),
        }

    def weights(self) -> list[Tensor]:
        """As the kernels want them: with two biases or none."""
        matrices = [matrix_of(self.x), matrix_of(self.h)]
        biases: list[Tensor] = [linear.bias for linear in (self.x, self.h) if linear.bias is not None]
        if len(biases) == 1:
            biases.append(torch.zeros_like(biases[0]))
        return [*matrices, *biases]

    @abstractmethod
    def steps(self, x_NH: Tensor, sizes: Tensor, states_1PH: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The kernel on the packed form: outputs [N, H], then the last states [1, P, H]."""

    def _steps(self, x_NH: Tensor, sizes: Tensor, states_1PH: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.adds_up_narrow or x_NH.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self.steps(x_NH, sizes, states_1PH)
        wide = self.h.weight.dtype
        with torch.autocast("cpu", enabled=False):
            return self.steps(x_NH.to(wide), sizes, tuple(state.to(wide) for state in states_1PH))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the kernels are fused already, and sizes depend on the data
    def forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        B, T = x_BTH.shape[:2]
        before = None if context.state is None else context.state.read(self.slot)
        found = documents(x_BTH, context, None if before is None else before[-1])
        states = [x_BTH.new_zeros(B, self.h.in_features) for _ in range(self.n_states)] if before is None else list(before[:-1])
        y_BTH = x_BTH.new_zeros(B * T, self.h.in_features)
        cut = runs(found)
        if len(cut.token_N):
            keeps_P1 = cut.continues_P[:, None]
            first = tuple((state[cut.row_P] * keeps_P1)[None] for state in states)
            y_NH, *last = self._steps(x_BTH.flatten(0, 1)[cut.token_N], cut.sizes, first)
            # In the format of the input: under autocast, that of the kernels depends on how long the runs are.
            y_BTH = y_BTH.index_copy(0, cut.token_N, y_NH.to(y_BTH.dtype))
            has_B1 = (cut.last_B >= 0)[:, None]
            states = [torch.where(has_B1, new[0][cut.last_B], old) for new, old in zip(last, states, strict=True)]
        if context.state is not None:
            context.state.write(self.slot, (*states, found.last_B))
        # A copy: where this is all that a layer returns, its output must be no view (FSDP2 hangs its hooks on it).
        return y_BTH.view(B, T, -1).clone()
