"""A stack of sequence mixers (Mikolov et al. 2010 with one, Zaremba et al. 2014 with several, Gu and Dao 2023): LSTM, Mamba.

A layer is x -> mixer(norm(x)), added to x where the stack is residual, and the same for a feed-forward part where there is one.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Frame, Site
from llmfactory.model.part import Part, visited
from llmfactory.model.position.none import NoPosition
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import Recurrent
from llmfactory.model.steps import HIDDEN, Pass, Step


class Layer(Part):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, spec: Recurrent, site: Site) -> None:
        super().__init__()
        norm, dim = site.frame.norm, site.frame.dim
        self.residual = spec.residual
        self.norm, self.mixer = norm(dim), spec.mixer.build(site)
        self.ffn_norm = None if spec.ffn is None else norm(dim)
        self.ffn = None if spec.ffn is None else spec.ffn.build(site)
        self.dropout = nn.Dropout(spec.dropout)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = self._join(x_BTD, self.mixer(self.norm(x_BTD), context))
        if self.ffn is not None and self.ffn_norm is not None:
            x_BTD = self._join(x_BTD, self.ffn(self.ffn_norm(x_BTD), context))
        return x_BTD

    def _join(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        y_BTD = self.dropout(y_BTD)
        return x_BTD + y_BTD if self.residual else y_BTD


class RecurrentModel(Skeleton):
    """tokens [B, T] -> hidden [B, T, D]."""

    def __init__(self, spec: Recurrent) -> None:
        super().__init__()
        self.spec: Recurrent = spec
        writers = spec.n_layers * (1 if spec.ffn is None else 2)
        scaled = spec.residual and spec.depth_scaled_init
        frame = Frame(
            dim=spec.dim,
            n_layers=spec.n_layers,
            n_heads=1,
            head_dim=spec.dim,
            max_positions=spec.max_positions,
            std=spec.init_std,
            out_std=spec.init_std / writers**0.5 if scaled else spec.init_std,
            causal=True,
            norm=spec.norm.build,
        )
        self.embedding = spec.embedding.build(spec.vocab_size, spec.dim, spec.init_std)
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList([Layer(spec, Site(frame, layer, NoPosition())) for layer in range(spec.n_layers)])
        self.norm = frame.norm(spec.dim)
        self.head = spec.head.build(spec.vocab_size, spec.dim, self.embedding, spec.init_std, frame.norm)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def steps(self) -> list[Step]:
        def enter(going: Pass) -> None:
            going.carried[HIDDEN] = self.dropout(self.embedding(going.tokens, going.context))

        def through(layer: nn.Module, going: Pass) -> None:
            going.carried[HIDDEN] = layer(going.carried[HIDDEN], going.context)

        def leave(going: Pass) -> None:
            going.carried[HIDDEN] = self.norm(going.carried[HIDDEN])

        layers = [Step((layer,), partial(through, layer), layer=True) for layer in self.layers]
        return [Step((self.embedding, self.dropout), enter), *layers, Step((self.norm,), leave)]

    def train_flops_per_token(self, seq_len: int) -> float:
        return 3 * 2 * (self.head.weight.numel() + visited(self.layers))
