"""P-tuning (Liu et al. 2021, section 3.2): a network makes the vectors of virtual tokens, so that they are trained together.

    mlp:  h = W3 relu(W2 relu(W1 e + b1) + b2) + b3, for each token
    lstm: h = W2 relu(W1 [LSTM forwards(e); LSTM backwards(e)] + b1) + b2

with e [P, width] trained too. The paper has the second; the first is what NeMo and peft have by default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.sharding import Normal, Parameter, Uniform
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.prompt import VirtualTokens, put_before, table_of
from llmfactory.peft.prompt_spec import PromptEncoder, PTuning

DIRECTIONS = ("forwards", "backwards")


class EncodedTokens(VirtualTokens):
    """`embedding` [P, width] and linear maps, each of which starts as PyTorch's do."""

    def __init__(self, spec: PTuning, name: str, table: TokenTable) -> None:
        super().__init__(name, spec.tokens)
        width = table.weight.shape[1]
        self.width, self.hidden = width, spec.hidden or width
        self.embedding = nn.Parameter(torch.empty(spec.tokens, width))

    def declare(self) -> dict[str, Parameter]:
        declared = {"embedding": Parameter(Normal(1.0))}
        for name, linear in self.named_children():
            assert isinstance(linear, nn.Linear)
            bound = Uniform(linear.in_features**-0.5)
            declared |= {f"{name}.weight": Parameter(bound), f"{name}.bias": Parameter(bound, decay=False)}
        return declared


class MlpTokens(EncodedTokens):
    def __init__(self, spec: PTuning, name: str, table: TokenTable) -> None:
        super().__init__(spec, name, table)
        self.up, self.between = nn.Linear(self.width, self.hidden), nn.Linear(self.hidden, self.hidden)
        self.down = nn.Linear(self.hidden, self.width)

    def forward(self) -> Tensor:
        return self.down(F.relu(self.between(F.relu(self.up(self.embedding)))))  # type: ignore[no-any-return]


class LstmTokens(EncodedTokens):
    """Weights of the LSTM are `<layer>_<direction>_<which>`, in PyTorch's order and shapes."""

    def __init__(self, spec: PTuning, name: str, table: TokenTable) -> None:
        super().__init__(spec, name, table)
        self.layers, self.dropout = spec.layers, spec.dropout
        self.up, self.down = nn.Linear(2 * self.hidden, 2 * self.hidden), nn.Linear(2 * self.hidden, self.width)
        self.recurrent: list[str] = []
        for layer in range(spec.layers):
            inputs = 2 * self.hidden if layer else self.width
            for direction in DIRECTIONS:
                shapes = {"x": (4 * self.hidden, inputs), "h": (4 * self.hidden, self.hidden)}
                shapes |= {"x_bias": (4 * self.hidden,), "h_bias": (4 * self.hidden,)}  # type: ignore[dict-item]
                for which, shape in shapes.items():
                    self.recurrent.append(f"{layer}_{direction}_{which}")
                    self.register_parameter(self.recurrent[-1], nn.Parameter(torch.empty(shape)))

    def declare(self) -> dict[str, Parameter]:
        bound = Uniform(self.hidden**-0.5)
        recurrent = {name: Parameter(bound, decay=not name.endswith("bias")) for name in self.recurrent}
        return {**super().declare(), **recurrent}

    def forward(self) -> Tensor:
        weights = [getattr(self, name) for name in self.recurrent]
        start = self.embedding.new_zeros(2 * self.layers, 1, self.hidden)
        given = self.embedding[None], (start, start), weights
        found_1PH = torch.lstm(*given, True, self.layers, self.dropout, self.training, True, True)[0]
        return self.down(F.relu(self.up(found_1PH[0])))  # type: ignore[no-any-return]


def adapt(spec: PTuning, model: Skeleton, name: str) -> None:
    kind = MlpTokens if spec.encoder is PromptEncoder.mlp else LstmTokens
    put_before(model, kind(spec, name, table_of(model)))
