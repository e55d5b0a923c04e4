"""A decoder that reads pictures among its tokens: vision encoder, connector, decoder (Liu et al. 2023, figure 1; Li et al. 2023).

A picture's vectors take the places of placeholder tokens, in order: the first picture of a row those of its first placeholders,
and so on. Rows without pictures are text like any other, placeholders included, so that such a model also trains on text alone.

Legend: N pictures a row, Q vectors of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Parameter
from llmfactory.model.decoder_only import Decoder
from llmfactory.model.head.part import Head
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import Multimodal
from llmfactory.model.vision import VisionEncoder

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


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

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        x_BTD = self.decoder.embedding(tokens_BT, context)
        if context.images is not None:
            x_BTD = self._with_images(x_BTD, tokens_BT, context.images)
        return self.decoder.read(x_BTD, context)

    def _with_images(self, x_BTD: Tensor, tokens_BT: Tensor, images_BNCYX: Tensor) -> Tensor:
        vectors = self.connector(self.vision(images_BNCYX.flatten(0, 1)))
        places_BT = tokens_BT == self.spec.image_token
        self._check(places_BT, images_BNCYX.shape[1])
        return x_BTD.masked_scatter(places_BT[:, :, None], vectors.to(x_BTD.dtype))

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

    def chain(self) -> list[tuple[str, nn.Module]]:
        decoder = [(f"decoder.{name}", module) for name, module in self.decoder.chain()]
        return [*self.vision.chain("vision"), ("connector", self.connector), *decoder]

    def train_flops_per_token(self, seq_len: int) -> float:
        """Of the decoder; how many pictures come with a token is the data's."""
        return self.decoder.train_flops_per_token(seq_len)
