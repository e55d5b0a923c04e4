"""Numbers in 8 bits: block-wise dynamic quantization (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", sections
1.3 and 2.1).

A block keeps its largest magnitude s in float32 and of each number x the nearest entry of a fixed table to x / s. The table has
zero, one, and for each power of ten down to 1e-6 some numbers spread evenly over its decade, fewer for smaller ones: 2^i of each
sign, or 2^(i+1) where there are no negative ones, i = 0..6.

Blocks are runs of a row, that is, along the last dimension, and they lie in the whole tensor: where a layout cuts through one,
the processes that hold its pieces agree on its largest magnitude. So codes depend on no layout.
"""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from llmfactory.parallel.clip import cut_along
from llmfactory.parallel.weights import box, cut, local

DECADES = 7


@functools.cache
def table(signed: bool) -> Tensor:
    """[256], ascending: what the codes stand for."""
    found = [0.0, 1.0]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1.0, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        centers = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade + 1 - DECADES)
        found += centers.tolist() + ((-centers).tolist() if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float32)


@functools.cache
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Values [256], middles [256] between each and the next (infinite behind the last), and by the upper 16 bits of a float32 [65536],
    the lowest code that numbers with these bits have. None of them have more than two codes: tables are coarser than 8 bits of
    mantissa."""
    values = table(signed)
    middles = torch.cat([(values[1:] + values[:-1]) / 2, values.new_tensor([torch.inf])])
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    least = torch.minimum(upper.view(torch.float32), (upper | 0xFFFF).view(torch.float32)).nan_to_num()
    codes = torch.bucketize(least, middles[:-1], right=True).to(torch.uint8)
    return values.to(device), middles.to(device), codes.to(device)


def encode(values: Tensor, scales: Tensor, block: int, offset: int, signed: bool) -> Tensor:
    """[..., n] numbers of a row, from `offset` on, and [..., blocks] the largest magnitudes -> [..., n] codes.

    Without signs only zero becomes zero: Adam divides by the root of such a number.
    """
    _, middles, codes = _tables(signed, values.device)
    x = (values / _spread(torch.where(scales > 0, scales, 1.0), block, offset, values.shape[-1])).to(torch.float32).view(-1)
    found = codes.index_select(0, (x.view(torch.int32) >> 16) & 0xFFFF)
    found += x >= middles.index_select(0, found.int())
    found = found.view(values.shape)
    return found if signed else found + ((found == 0) & (values > 0))


def decode(codes: Tensor, scales: Tensor, block: int, offset: int, signed: bool) -> Tensor:
    """[..., n] codes and [..., blocks] largest magnitudes -> [..., n] numbers, float32."""
    values, _, _ = _tables(signed, codes.device)
    found = values.index_select(0, codes.reshape(-1).int()).view(codes.shape)
    return found.mul_(_spread(scales, block, offset, codes.shape[-1]))


def largest(values: Tensor, block: int, offset: int) -> Tensor:
    """[..., n] numbers of a row, from `offset` on -> [..., blocks] the largest magnitude of those of each block, float32."""
    before = offset % block
    after = -(before + values.shape[-1]) % block
    magnitudes = F.pad(values.abs(), (before, after)) if before or after else values.abs()
    return magnitudes.view(*values.shape[:-1], magnitudes.shape[-1] // block, block).amax(-1).to(torch.float32)


def _spread(scales: Tensor, block: int, offset: int, size: int) -> Tensor:
    """[..., blocks] -> [..., size], to each number that of its block."""
    return scales.repeat_interleave(block, -1).narrow(-1, offset % block, size)


class Blocks:
    """The blocks of a weight's numbers, of which this process has a piece."""

    def __init__(self, weight: Tensor, block: int) -> None:
        self.block, self.weight = block, weight
        (*offsets, self.offset), (*sizes, size) = box(weight)
        self.first = self.offset // block
        self.count = -(-(self.offset + size) // block) - self.first if size else 0
        self.shape = (*weight.shape[:-1], -(-weight.shape[-1] // block))
        self.rows = (*offsets, 0), (*sizes, self.shape[-1])
        self.across = cut_along(weight, weight.dim() - 1)

    def scales(self, numbers: list[Tensor]) -> list[Tensor]:
        """[rows, n] of such numbers each, this process's piece of some rows -> [rows, blocks] the largest magnitudes, of whole rows."""
        found = [largest(one, self.block, self.offset) for one in numbers]
        if not self.across:
            return found
        whole = found[0].new_zeros(len(found), len(found[0]), self.shape[-1])
        for place, one in zip(whole, found, strict=True):
            self._here(place).copy_(one)
        for group in self.across:
            dist.all_reduce(whole, dist.ReduceOp.MAX, group=group)
        return list(whole)

    def encode(self, numbers: Tensor, scales: Tensor, signed: bool) -> Tensor:
        """[rows, n] and, of whole rows, [rows, blocks] -> [rows, n] codes."""
        return encode(numbers, self._here(scales), self.block, self.offset, signed)

    def decode(self, codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
        """The other way."""
        return decode(codes, self._here(scales), self.block, self.offset, signed)

    def _here(self, scales: Tensor) -> Tensor:
        """Of all blocks of rows, those that the piece has numbers of."""
        return scales.narrow(-1, min(self.first, self.shape[-1]), self.count)

    def laid_out(self, scales: Tensor) -> Tensor:
        """Those of this process as what they are a piece of: cut as the weight is, but for its rows."""
        if not isinstance(self.weight, DTensor):
            return scales
        last = self.weight.dim() - 1
        cuts_rows = [isinstance(one, (Shard, _StridedShard)) and one.dim == last for one in self.weight.placements]
        placements = [Replicate() if cuts else one for cuts, one in zip(cuts_rows, self.weight.placements, strict=True)]
        stride = torch.empty(self.shape, device="meta").stride()
        mesh, shape = self.weight.device_mesh, torch.Size(self.shape)
        return DTensor.from_local(scales, mesh, placements, run_check=False, shape=shape, stride=stride)

    def own(self, scales: Tensor) -> Tensor:
        """The other way; a checkpoint gives them whole, on the host."""
        if isinstance(scales, DTensor) or not isinstance(self.weight, DTensor):
            return local(scales).to(local(self.weight).device)
        return cut(scales, self.rows).to(local(self.weight).device, copy=True)
