"""What launches the kernels of `fuse_select_kernels`: layouts, splits, block sizes, buffers.

Results depend on shapes alone: partial sums lie in buffers and are added in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selkern.ops.triton.device import on
from selkern.ops.triton.fuse_select_kernels import (
    Geometry,
    Norms,
    gradient_kernel,
    merge_kernel,
    moments_kernel,
    select_kernel,
    sums_kernel,
)

# Eight elements of a tile for each of 128 threads: one 16-byte load per map in half precision, and little enough that
# the 2M running sums of `sums_kernel` stay in registers.
TILE, WARPS = 1024, 4
# One tile is worked on while two are on their way. `gradient_kernel` takes 158 registers a thread for M = 2 in bfloat16
# (ptxas, sm_90), so 3 programs fit on a multiprocessor. One tile of each is 18 KB on its way, while 4.3 TB/s at 0.7 us
# of delay need 23 KB. Not measured on a GPU yet.
STAGES = 3
# Programs that fill a GPU of 132 multiprocessors about twice, at some 8 programs on each.
PROGRAMS = 2048
# A split is at least so many tiles, so that reading the norms costs little against reading the maps.
TILES_PER_SPLIT = 4


@dataclass(frozen=True)
class Plan:
    """How one launch divides maps of one shape and layout."""

    geometry: Geometry
    programs: int
    blocks: dict[str, int]
    memory_format: torch.memory_format


def plan(shape: Sequence[int], memory_format: torch.memory_format) -> Plan:
    """Splits and block sizes for maps (N, C, H, W): lanes side by side read neighbours in memory."""
    batch, channels, height, width = shape
    pixels = height * width
    if memory_format == torch.channels_last:
        # 128 channels are 256 bytes in half precision: whole cache lines, and one block for most of SKNet-50.
        block_channels = min(128, _power_of_2(channels))
        block_pixels = TILE // block_channels
        strides = (channels, 1)
    else:
        block_pixels = min(TILE, _power_of_2(pixels))
        block_channels = TILE // block_pixels
        strides = (1, pixels)
    channel_blocks = math.ceil(channels / block_channels)
    wanted = math.ceil(PROGRAMS / (batch * channel_blocks))
    tiles = math.ceil(pixels / block_pixels)
    splits = max(1, min(wanted, tiles // TILES_PER_SPLIT))
    split_pixels = math.ceil(tiles / splits) * block_pixels
    splits = math.ceil(pixels / split_pixels)  # none is empty
    return Plan(
        Geometry(batch, pixels, channels, splits, split_pixels, *strides),
        batch * splits * channel_blocks,
        {"BLOCK_PIXELS": block_pixels, "BLOCK_CHANNELS": block_channels, "STAGES": STAGES},
        memory_format,
    )


def layout(y: Tensor) -> torch.memory_format:
    """What all maps of a unit are brought to: contiguous where the first is so alone, else channels_last."""
    plain = y.is_contiguous() and not y.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last


def moments(y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of M maps, (M, C) float32 each."""
    how, maps = _prepared(y)
    at, M = how.geometry, len(y)
    parts = y[0].new_empty((2, at.batch * at.splits, M, at.channels), dtype=torch.float32)
    mean = y[0].new_empty((M, at.channels), dtype=torch.float32)
    variance = torch.empty_like(mean)
    # Few columns and many parts: wide enough for whole sectors, tall enough for few rounds.
    columns, rows = 16, 128
    with on(y[0].device):
        moments_kernel[(how.programs,)](maps, *parts, at, M=M, **how.blocks, num_warps=WARPS)
        grid = (math.ceil(M * at.channels / columns),)
        merge_kernel[grid](*parts, mean, variance, at, M=M, BLOCK_PARTS=rows, BLOCK_COLUMNS=columns, num_warps=WARPS)
    return mean, variance


def sums(weights: Tensor | None, y: Sequence[Tensor], norms: Norms) -> Tensor:
    """P and Q of docs/kernels.md, (2, N, M, C) float32, for a map of weights; None is 1 everywhere."""
    how, maps = _prepared(y)
    at, M = how.geometry, len(y)
    partials = y[0].new_empty((2, at.splits, at.batch, M, at.channels), dtype=torch.float32)
    w = maps[0] if weights is None else weights.contiguous(memory_format=how.memory_format)
    with on(y[0].device):
        sums_kernel[(how.programs,)](
            w, maps, norms, *partials, at, WEIGHTED=weights is not None, M=M, **how.blocks, num_warps=WARPS
        )
    return partials.sum(1)


def select(y: Sequence[Tensor], norms: Norms, a_NMC: Tensor) -> Tensor:
    """V (N, C, H, W) in y's dtype and layout."""
    how, maps = _prepared(y)
    v = _empty_like(y[0], how)
    with on(v.device):
        select_kernel[(how.programs,)](
            maps, norms, a_NMC.contiguous(), v, how.geometry, M=len(y), **how.blocks, num_warps=WARPS
        )
    return v


def gradients(
    dv: Tensor, y: Sequence[Tensor], norms: Norms, a_NMC: Tensor, ds_NC: Tensor, averages_2MC: Tensor
) -> list[Tensor]:
    """dy of every branch, from dV, ds / HW and the means over N and HW of gu and gu * yhat (zeros in eval mode)."""
    how, maps = _prepared(y)
    dy = tuple(_empty_like(y_m, how) for y_m in y)
    dv = dv.contiguous(memory_format=how.memory_format)
    rest = (a_NMC.contiguous(), ds_NC.contiguous(), averages_2MC.contiguous())
    with on(dv.device):
        gradient_kernel[(how.programs,)](
            dv, maps, norms, *rest, dy, how.geometry, M=len(y), **how.blocks, num_warps=WARPS
        )
    return list(dy)


def _prepared(y: Sequence[Tensor]) -> tuple[Plan, tuple[Tensor, ...]]:
    """The plan for M maps, and the maps in the one layout that it takes (a copy of those that have another)."""
    memory_format = layout(y[0])
    return plan(y[0].shape, memory_format), tuple(y_m.contiguous(memory_format=memory_format) for y_m in y)


def _empty_like(y: Tensor, how: Plan) -> Tensor:
    return torch.empty_like(y, memory_format=how.memory_format)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
