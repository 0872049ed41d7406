"""What launches the kernels of `convolution_kernels`: groups in packs, block sizes, buffers, layouts.

Results depend on shapes alone: partial sums lie in buffers and are added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2

from selkern.ops.triton.convolution_kernels import (
    Geometry,
    forward_kernel,
    input_gradient_kernel,
    weight_gradient_kernel,
)
from selkern.ops.triton.device import on

BLOCK_PIXELS = 128  # of the tiles: two 64-row products of the tensor cores for every load of the weights
BLOCK_COLUMNS = 128  # of the weight gradient: four taps of a 32-channel pack share one load of dy
PACK_CHANNELS = 32  # narrow groups are packed up to this: 64 bytes of bf16 to a pixel, and one product a tap
WARPS, STAGES = 4, 3  # one warp group; loads run two steps ahead
PROGRAMS = 1024  # wanted of the weight gradient: enough for about 130 SMs, a constant so that sums never change order


@dataclass(frozen=True)
class Packing:
    """How channels are taken together: `packs` packs of `together` groups, cut into blocks.

    Attributes:
        packs, together: their product is the number of groups.
        group_in, group_out: channels of a group.
        block_in, in_blocks: inputs of a pack, padded: blocks of a power of two, and how many.
        block_out, out_blocks: its outputs.
    """

    packs: int
    together: int
    group_in: int
    group_out: int
    block_in: int
    in_blocks: int
    block_out: int
    out_blocks: int

    @classmethod
    def of(cls, shape: Sequence[int], groups: int, element_bytes: int) -> Packing:
        """For weights of `shape` (C, C_in / G, k, k), of every k."""
        group_out, group_in = shape[0] // groups, shape[1]
        fitting = range(1, max(1, PACK_CHANNELS // max(group_in, group_out)) + 1)
        together = max(count for count in fitting if groups % count == 0)
        # At least 16 deep for the tensor cores; at most 128 bytes, so that three stages fit the shared memory.
        most = 128 // element_bytes
        block_in = min(max(16, next_power_of_2(together * group_in)), most)
        block_out = min(max(16, next_power_of_2(together * group_out)), most)
        in_blocks, out_blocks = cdiv(together * group_in, block_in), cdiv(together * group_out, block_out)
        return cls(groups // together, together, group_in, group_out, block_in, in_blocks, block_out, out_blocks)

    @property
    def padded_in(self) -> int:
        """Inputs of a pack, padding included."""
        return self.in_blocks * self.block_in

    @property
    def padded_out(self) -> int:
        """Outputs of a pack, padding included."""
        return self.out_blocks * self.block_out

    def blocks_of(self, packed: Tensor) -> Tensor:
        """A view of packed weights (packs, taps, inputs, outputs): the blocks on the diagonal, without the padding.

        (packs, taps, group_in, group_out, together).
        """
        real = packed[:, :, : self.together * self.group_in, : self.together * self.group_out]
        apart = real.view(self.packs, -1, self.together, self.group_in, self.together, self.group_out)
        return apart.diagonal(dim1=2, dim2=4)

    def pack(self, weight: Tensor) -> Tensor:
        """Weights (C, C_in / G, k, k) to (packs, k^2, in_blocks * block_in, out_blocks * block_out)."""
        packed = weight.new_zeros(self.packs, weight.shape[2] ** 2, self.padded_in, self.padded_out)
        apart = weight.reshape(self.packs, self.together, self.group_out, self.group_in, -1)
        self.blocks_of(packed).copy_(apart.permute(0, 4, 3, 2, 1))
        return packed

    def unpack(self, packed: Tensor, kernel: int) -> Tensor:
        """The reverse of `pack`, which forgets what stands off the diagonal."""
        apart = self.blocks_of(packed).permute(0, 4, 3, 2, 1)
        return apart.reshape(-1, self.group_in, kernel, kernel)

    def constants(self) -> dict[str, int]:
        """What all kernels receive of it."""
        return {
            "PACKS": self.packs,
            "PACK_IN": self.together * self.group_in,
            "PACK_OUT": self.together * self.group_out,
            "BLOCK_OUT": self.block_out,
            "OUT_BLOCKS": self.out_blocks,
        }


def interpreted() -> bool:
    """Whether the kernels run on the CPU, in Triton's interpreter, as the tests have them."""
    return not isinstance(forward_kernel, JITFunction)


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """How the kernels multiply: float32 as exactly as cuDNN's convolutions are allowed to."""
    setting = getattr(torch.backends.cudnn, "conv", None)  # its place since torch 2.9
    tf32 = torch.backends.cudnn.allow_tf32 if setting is None else setting.fp32_precision == "tf32"
    precision = "tf32" if tf32 and dtype == torch.float32 else "ieee"
    return {"PRECISION": precision, "UPCAST": interpreted(), "num_warps": WARPS, "num_stages": STAGES}


def _geometry(x_shape: Sequence[int], y: Tensor) -> Geometry:
    return Geometry(x_shape[0], x_shape[2], x_shape[3], y.shape[2], y.shape[3])


def _of_branches(
    packing: Packing, weights: Sequence[Tensor], stride: int, dilations: Sequence[int]
) -> dict[str, int | tuple[int, ...]]:
    """What the two kernels that go through all branches receive of them."""
    return {
        "KERNELS": tuple(weight.shape[2] for weight in weights),
        "DILATIONS": tuple(dilations),
        "STRIDE": stride,
        "BLOCK_PIXELS": BLOCK_PIXELS,
        "BLOCK_IN": packing.block_in,
        "IN_BLOCKS": packing.in_blocks,
        **packing.constants(),
    }


def channels_last(maps: Tensor) -> Tensor:
    """The same values in the one layout that the kernels read."""
    return maps.contiguous(memory_format=torch.channels_last)


def _merged(partials: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (M, C) from those of tiles (M, tiles, 2, C): Chan's formula for many parts at once."""
    first = torch.arange(0, pixels, BLOCK_PIXELS, device=partials.device)
    counts = (pixels - first).clamp(max=BLOCK_PIXELS).to(torch.float32)[:, None]
    means, squares = partials.unbind(2)
    mean = (means * counts).sum(1) / pixels
    return mean, (squares + (means - mean[:, None]).square() * counts).sum(1) / pixels


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    y: Sequence[Tensor],
    groups: int,
    stride: int,
    dilations: Sequence[int],
    statistics: bool,
) -> tuple[Tensor, Tensor] | None:
    """Fill y, M maps (N, C, Ho, Wo) channels_last; mean and biased variance of what was written, (M, C) float32."""
    packing = Packing.of(weights[0].shape, groups, x.element_size())
    at = _geometry(x.shape, y[0])
    pixels = at.batch * at.out_height * at.out_width
    tiles = cdiv(pixels, BLOCK_PIXELS)
    size = (len(y), tiles, 2, y[0].shape[1]) if statistics else (0,)
    partials = torch.empty(size, dtype=torch.float32, device=x.device)
    with on(x.device):
        forward_kernel[(tiles * packing.packs * packing.out_blocks,)](
            channels_last(x),
            tuple(packing.pack(weight) for weight in weights),
            tuple(y),
            partials,
            at,
            STATISTICS=statistics,
            **_of_branches(packing, weights, stride, dilations),
            **arithmetic(x.dtype),
        )
    return _merged(partials, pixels) if statistics else None


def input_gradient(
    dy: Sequence[Tensor], weights: Sequence[Tensor], dx: Tensor, groups: int, stride: int, dilations: Sequence[int]
) -> None:
    """Fill dx (N, C_in, H, W) channels_last: what every output pixel of every branch sends back."""
    packing = Packing.of(weights[0].shape, groups, dx.element_size())
    at = _geometry(dx.shape, dy[0])
    tiles = cdiv(at.batch * at.height * at.width, BLOCK_PIXELS)
    with on(dx.device):
        input_gradient_kernel[(tiles * packing.packs * packing.in_blocks,)](
            tuple(channels_last(each) for each in dy),
            tuple(packing.pack(weight) for weight in weights),
            dx,
            at,
            **_of_branches(packing, weights, stride, dilations),
            **arithmetic(dx.dtype),
        )


def split_pixels(element_bytes: int) -> int:
    """Pixels of the weight gradient's tiles: three stages of x's columns and of dy take 72 KiB of shared memory."""
    return 128 // element_bytes


def weight_gradient(x: Tensor, dy: Tensor, shape: Sequence[int], groups: int, stride: int, dilation: int) -> Tensor:
    """The gradient of one branch's weights, of `shape` (C, C_in / G, k, k), in x's dtype."""
    kernel = shape[2]
    packing = Packing.of(shape, groups, x.element_size())
    at = _geometry(x.shape, dy)
    block_pixels = split_pixels(x.element_size())
    tiles = cdiv(at.batch * at.out_height * at.out_width, block_pixels)
    programs = packing.packs * packing.out_blocks * cdiv(kernel**2 * packing.padded_in, BLOCK_COLUMNS)
    # A split adds up eight tiles at least, so that it reads more than it writes.
    splits = max(1, min(cdiv(PROGRAMS, programs), tiles // 8))
    partials = torch.empty(
        (splits, packing.packs, kernel**2 * packing.padded_in, packing.padded_out), dtype=torch.float32, device=x.device
    )
    with on(x.device):
        weight_gradient_kernel[(splits * programs,)](
            channels_last(x),
            channels_last(dy),
            partials,
            at,
            cdiv(tiles, splits),
            KERNEL=kernel,
            DILATION=dilation,
            STRIDE=stride,
            PADDED_IN=packing.padded_in,
            BLOCK_PIXELS=block_pixels,
            BLOCK_COLUMNS=BLOCK_COLUMNS,
            **packing.constants(),
            **arithmetic(x.dtype),
        )
    summed = partials.sum(0).view(packing.packs, kernel**2, packing.padded_in, packing.padded_out)
    return packing.unpack(summed, kernel).to(x.dtype)
