"""A decoder that reads pictures among its tokens: vision encoder, connector, decoder (Liu et al. 2023, figure 1; Li et al. 2023).

A picture's vectors take the places of placeholder tokens, in order: the first picture of a row those of its first placeholders,
and so on. Rows without pictures are text like any other, placeholders included, so that such a model also trains on text alone.

Legend: N pictures a row, Q vectors of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Parameter
from llmfactory.model.decoder_only import Decoder
from llmfactory.model.head.part import Head
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import Multimodal
from llmfactory.model.steps import Pass, Step
from llmfactory.model.vision import FEATURES, VisionEncoder

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

VECTORS = "vectors"
"""Name of what the connector leaves for the decoder."""


class MultimodalModel(Skeleton):
    """tokens [B, T] and pictures [B, N, C, Y, X] (`context.images`, None: no pictures) -> hidden [B, T, D]."""

    def __init__(self, spec: Multimodal) -> None:
        super().__init__()
        self.spec: Multimodal = spec
        self.vision = VisionEncoder(spec.vision, spec.init_std)
        self.connector = spec.connector.build(spec.vision.dim, spec.dim, spec.init_std)
        self.decoder = Decoder(spec.language)

    @property
    def head(self) -> Head:  # type: ignore[override]
        return self.decoder.head

    def declare(self) -> dict[str, Parameter]:
        return {}

    def steps(self) -> list[Step]:
        """The connector's vectors are taken up where the decoder begins."""

        def connect(going: Pass) -> None:
            features = going.carried.pop(FEATURES, None)
            if features is not None:
                going.carried[VECTORS] = self.connector(features)

        seeing = [*self.vision.steps(), Step((self.connector,), connect)]
        return [*seeing, *self.decoder.stack(self._embed, lambda going: going.context)]

    def _embed(self, going: Pass) -> Tensor:
        x_BTD: Tensor = self.decoder.embedding(going.tokens, going.context)
        vectors, images_BNCYX = going.carried.pop(VECTORS, None), going.context.images
        if vectors is None or images_BNCYX is None:
            return x_BTD
        places_BT, pieces = going.tokens == self.spec.image_token, going.context.pieces
        if pieces is None:
            self._check(places_BT, images_BNCYX.shape[1])
            return x_BTD.masked_scatter(places_BT[:, :, None], vectors.to(x_BTD.dtype))
        whole_BT = pieces.whole(places_BT.long())  # which placeholder is which is known of whole rows only
        self._check(whole_BT, images_BNCYX.shape[1])
        number_BT = pieces.own(whole_BT.cumsum(1) - 1).clamp_min(0)
        vectors_BND = vectors.reshape(len(x_BTD), -1, vectors.shape[-1]).to(x_BTD.dtype)
        taken_BTD = vectors_BND.gather(1, number_BT[:, :, None].expand_as(x_BTD))
        return torch.where(places_BT[:, :, None], taken_BTD, x_BTD)

    def _check(self, places_BT: Tensor, n_images: int) -> None:
        """Each row must have a placeholder for each vector. Other devices than the CPU are not made to wait for the answer."""
        wanted = n_images * self.spec.vectors_per_image
        counts_B = places_BT.sum(1)
        if torch.compiler.is_compiling() or counts_B.is_meta:
            return
        text = f"{n_images} pictures of {self.spec.vectors_per_image} vectors need {wanted} placeholders (token {self.spec.image_token})"
        if counts_B.device.type != "cpu":
            torch._assert_async((counts_B == wanted).all(), f"{text} in each row")
        elif bool((counts_B != wanted).any()):
            row = int((counts_B != wanted).nonzero()[0])
            raise UserError(f"{text}, but row {row} has {int(counts_B[row])}")

    def context(self, batch: Batch, isolated: bool = True) -> Context:
        return super().context(batch, isolated).with_(images=batch.get("images"))

    @property
    def position_limit(self) -> int | None:
        return self.decoder.position_limit

    def train_flops_per_token(self, seq_len: int) -> float:
        """Of the decoder; how many pictures come with a token is the data's."""
        return self.decoder.train_flops_per_token(seq_len)
