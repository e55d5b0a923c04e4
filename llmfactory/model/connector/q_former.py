"""The querying transformer of BLIP-2 (Li et al. 2023, section 3.1): trained queries that read a vision encoder's features.

Post-norm blocks of self-attention, in some of them attention to the features, and a perceptron; biases everywhere, as in BERT.
The queries are normalized first; a linear map takes the result to the decoder's width. There is no text in it.

Legend: N pictures, P features of each, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context, FullMask
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.attention.spec import Cross, Gqa
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.connector.spec import QFormer
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.frame import Frame, Site
from llmfactory.model.part import Part, declare_linear
from llmfactory.model.position.none import NoPosition


class QueryingTransformer(Part):
    """features [N, P, width] -> [N, Q, dim]."""

    def __init__(self, spec: QFormer, width: int, dim: int, std: float) -> None:
        super().__init__()
        self.std = std
        frame = Frame(
            dim=spec.dim,
            n_layers=spec.n_layers,
            n_heads=spec.n_heads,
            head_dim=spec.dim // spec.n_heads,
            max_positions=spec.n_queries,
            std=std,
            out_std=std,
            causal=False,
            norm=spec.norm.build,
            name="connector",
            memory_dim=width,
        )
        self.queries = nn.Parameter(torch.zeros(spec.n_queries, spec.dim))
        self.norm = frame.norm(spec.dim)
        attention, cross = Gqa(n_heads=spec.n_heads, bias=True), Cross(n_heads=spec.n_heads, bias=True)
        ffn = Mlp(hidden=spec.hidden, activation=Activation.gelu)
        sites = [Site(frame, layer, NoPosition()) for layer in range(spec.n_layers)]
        reads = [cross.build(site) if site.layer % spec.cross_every == 0 else None for site in sites]
        self.blocks = nn.ModuleList(
            PostNorm().build(site, attention.build(site), ffn.build(site), read, dropout=0.0)
            for site, read in zip(sites, reads, strict=True)
        )
        self.out = nn.Linear(spec.dim, dim)

    def declare(self) -> dict[str, Parameter]:
        return {"queries": Parameter(Normal(self.std)), **declare_linear("out", self.out, self.std, Layout.replicated)}

    def forward(self, features_NPE: Tensor) -> Tensor:
        count, length = features_NPE.shape[0], self.queries.shape[0]
        x_NQD = self.norm(self.queries).expand(count, -1, -1)
        places_1Q = torch.arange(length, device=x_NQD.device)[None]  # nothing reads them: queries have no order
        mask = FullMask(length, x_NQD.device)
        context = Context(places_1Q, mask, memory=features_NPE, memory_mask=FullMask())
        for block in self.blocks:
            x_NQD = block(x_NQD, context)
        return self.out(x_NQD)  # type: ignore[no-any-return]
