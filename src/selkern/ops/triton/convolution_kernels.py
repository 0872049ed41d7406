# mypy: disallow-untyped-decorators=False
"""Convolutions of M branches over one input, grouped and dilated: the kernels. Design and floors: docs/kernels.md.

Maps are channels_last, so a pixel's channels lie together. Whole groups are taken together as packs: the channels of
pack p are PACK_IN * p onward in the input and PACK_OUT * p onward in the outputs, and its weights are one matrix per
tap, padded by zeros to whole blocks. Pixels are counted by int32 (the launchers check it); their offsets are int64
always, which costs one wide multiply-add for the row of a pixel and nothing per channel.
"""

from __future__ import annotations

from typing import NamedTuple

from triton import jit
from triton import language as tl


class Geometry(NamedTuple):
    """Sizes of the maps: of x, and of every branch's output."""

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int


@jit
def _pixels(start: tl.tensor, batch: tl.tensor, height: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr) -> tl.tuple:
    """Of BLOCK pixels from `start` on: number, sample, row, column, and whether it exists."""
    pixel = start + tl.arange(0, BLOCK)
    return pixel, pixel // (height * width), pixel // width % height, pixel % width, pixel < batch * height * width


@jit
def _shift(tap: tl.tensor, KERNEL: tl.constexpr, DILATION: tl.constexpr) -> tl.tuple:
    """How many rows down and columns right of the window's centre a tap looks."""
    return (tap // KERNEL - KERNEL // 2) * DILATION, (tap % KERNEL - KERNEL // 2) * DILATION


@jit
def _dot(a: tl.tensor, b: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr, UPCAST: tl.constexpr) -> tl.tensor:
    """total + a b, float32."""
    if UPCAST:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@jit
def forward_kernel(
    x: tl.tensor,  # (N, H, W, PACKS * PACK_IN)
    weights: tl.tuple,  # M packed, (PACKS, KERNELS[m]^2, IN_BLOCKS * BLOCK_IN, OUT_BLOCKS * BLOCK_OUT)
    y: tl.tuple,  # M maps (N, Ho, Wo, PACKS * PACK_OUT)
    partials: tl.tensor,  # (M, tiles, 2, PACKS * PACK_OUT) float32, written where STATISTICS
    at: tl.tuple,  # Geometry
    KERNELS: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    PACKS: tl.constexpr,
    PACK_IN: tl.constexpr,
    PACK_OUT: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    IN_BLOCKS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    OUT_BLOCKS: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One tile of pixels x one block of a pack's outputs, of every branch; mean and squared distances of each tile."""
    blocks: tl.constexpr = PACKS * OUT_BLOCKS
    program = tl.program_id(0)
    tile, block = program // blocks, program % blocks
    pack = block // OUT_BLOCKS
    out = block % OUT_BLOCKS * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    start = tile * BLOCK_PIXELS
    pixel, sample, row, column, exists = _pixels(start, at.batch, at.out_height, at.out_width, BLOCK_PIXELS)
    row, column = row * STRIDE, column * STRIDE
    centre = ((sample * at.height + row) * at.width + column).to(tl.int64) * (PACKS * PACK_IN) + pack * PACK_IN
    target = pixel.to(tl.int64) * (PACKS * PACK_OUT) + pack * PACK_OUT
    stored = exists[:, None] & (out < PACK_OUT)[None, :]
    for m in tl.static_range(len(KERNELS)):
        taps = KERNELS[m] * KERNELS[m]
        total = tl.full((BLOCK_PIXELS, BLOCK_OUT), 0.0, tl.float32)
        for step in range(taps * IN_BLOCKS):
            tap = step // IN_BLOCKS
            channel = step % IN_BLOCKS * BLOCK_IN + tl.arange(0, BLOCK_IN)
            down, right = _shift(tap, KERNELS[m], DILATIONS[m])
            inside = (row + down >= 0) & (row + down < at.height) & (column + right >= 0) & (column + right < at.width)
            source = centre + (down * at.width + right) * (PACKS * PACK_IN)
            valid = (exists & inside)[:, None] & (channel < PACK_IN)[None, :]
            window = tl.load(x + source[:, None] + channel[None, :], valid, 0.0)
            line = ((pack * taps + tap) * (IN_BLOCKS * BLOCK_IN) + channel) * (OUT_BLOCKS * BLOCK_OUT)
            total = _dot(window, tl.load(weights[m] + line[:, None] + out[None, :]), total, PRECISION, UPCAST)
        rounded = total.to(y[m].dtype.element_ty)
        tl.store(y[m] + target[:, None] + out[None, :], rounded, stored)
        if STATISTICS:  # of the rounded values, which are those that BatchNorm will read
            pixels = at.batch * at.out_height * at.out_width
            value = rounded.to(tl.float32)  # 0 where there is no pixel
            mean = tl.sum(value, axis=0) / tl.minimum(pixels - start, BLOCK_PIXELS)
            away = tl.where(exists[:, None], value - mean[None, :], 0.0)
            tiles = (pixels + BLOCK_PIXELS - 1) // BLOCK_PIXELS
            place = (m * tiles + tile).to(tl.int64) * (2 * PACKS * PACK_OUT) + pack * PACK_OUT + out
            tl.store(partials + place, mean, out < PACK_OUT)
            tl.store(partials + place + PACKS * PACK_OUT, tl.sum(away * away, axis=0), out < PACK_OUT)


@jit
def input_gradient_kernel(
    dy: tl.tuple,  # M maps (N, Ho, Wo, PACKS * PACK_OUT)
    weights: tl.tuple,  # as in the forward kernel
    dx: tl.tensor,  # (N, H, W, PACKS * PACK_IN)
    at: tl.tuple,  # Geometry
    KERNELS: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    PACKS: tl.constexpr,
    PACK_IN: tl.constexpr,
    PACK_OUT: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    IN_BLOCKS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    OUT_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One tile of input pixels x one block of a pack's inputs: every output that looked there, of all branches."""
    blocks: tl.constexpr = PACKS * IN_BLOCKS
    program = tl.program_id(0)
    tile, block = program // blocks, program % blocks
    pack = block // IN_BLOCKS
    channel = block % IN_BLOCKS * BLOCK_IN + tl.arange(0, BLOCK_IN)
    start = tile * BLOCK_PIXELS
    pixel, sample, row, column, exists = _pixels(start, at.batch, at.height, at.width, BLOCK_PIXELS)
    total = tl.full((BLOCK_PIXELS, BLOCK_IN), 0.0, tl.float32)
    for m in tl.static_range(len(KERNELS)):
        taps = KERNELS[m] * KERNELS[m]
        for step in range(taps * OUT_BLOCKS):
            tap = step // OUT_BLOCKS
            out = step % OUT_BLOCKS * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
            down, right = _shift(tap, KERNELS[m], DILATIONS[m])
            high, left = row - down, column - right  # STRIDE times the output pixel
            met = (high >= 0) & (high % STRIDE == 0) & (left >= 0) & (left % STRIDE == 0)
            inside = (high // STRIDE < at.out_height) & (left // STRIDE < at.out_width)
            place = (sample * at.out_height + high // STRIDE) * at.out_width + left // STRIDE
            source = place.to(tl.int64) * (PACKS * PACK_OUT) + pack * PACK_OUT
            valid = (exists & met & inside)[:, None] & (out < PACK_OUT)[None, :]
            gradient = tl.load(dy[m] + source[:, None] + out[None, :], valid, 0.0)
            line = ((pack * taps + tap) * (IN_BLOCKS * BLOCK_IN) + channel) * (OUT_BLOCKS * BLOCK_OUT)
            turned = tl.load(weights[m] + line[None, :] + out[:, None])  # (outputs, inputs)
            total = _dot(gradient, turned, total, PRECISION, UPCAST)
    target = pixel.to(tl.int64) * (PACKS * PACK_IN) + pack * PACK_IN
    stored = exists[:, None] & (channel < PACK_IN)[None, :]
    tl.store(dx + target[:, None] + channel[None, :], total.to(dx.dtype.element_ty), stored)


@jit
def weight_gradient_kernel(
    x: tl.tensor,  # (N, H, W, PACKS * PACK_IN)
    dy: tl.tensor,  # (N, Ho, Wo, PACKS * PACK_OUT), of one branch
    partials: tl.tensor,  # (splits, PACKS, KERNEL^2 * PADDED_IN, OUT_BLOCKS * BLOCK_OUT) float32
    at: tl.tuple,  # Geometry
    split_tiles: tl.tensor,  # tiles of pixels that one program adds up
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    PACKS: tl.constexpr,
    PACK_IN: tl.constexpr,
    PACK_OUT: tl.constexpr,
    PADDED_IN: tl.constexpr,  # IN_BLOCKS * BLOCK_IN of the packed weights
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    OUT_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One block of columns (tap, input channel) x one block of outputs of a pack, over one split of the pixels."""
    columns: tl.constexpr = KERNEL * KERNEL * PADDED_IN
    column_blocks: tl.constexpr = (columns + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    blocks: tl.constexpr = PACKS * OUT_BLOCKS * column_blocks
    program = tl.program_id(0)
    split, block = program // blocks, program % blocks
    pack = block // (OUT_BLOCKS * column_blocks)
    out = block // column_blocks % OUT_BLOCKS * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    number = block % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = number % PADDED_IN
    down, right = _shift(number // PADDED_IN, KERNEL, DILATION)
    looked = (down * at.width + right) * (PACKS * PACK_IN) + pack * PACK_IN + channel
    real = (number < columns) & (channel < PACK_IN)
    total = tl.full((BLOCK_COLUMNS, BLOCK_OUT), 0.0, tl.float32)
    for tile in range(split * split_tiles, (split + 1) * split_tiles):
        start = tile * BLOCK_PIXELS
        pixel, sample, row, column, exists = _pixels(start, at.batch, at.out_height, at.out_width, BLOCK_PIXELS)
        row, column = row * STRIDE, column * STRIDE
        centre = ((sample * at.height + row) * at.width + column).to(tl.int64) * (PACKS * PACK_IN)
        high, left = row[None, :] + down[:, None], column[None, :] + right[:, None]
        inside = (high >= 0) & (high < at.height) & (left >= 0) & (left < at.width)
        window = tl.load(x + centre[None, :] + looked[:, None], inside & real[:, None] & exists[None, :], 0.0)
        source = pixel.to(tl.int64) * (PACKS * PACK_OUT) + pack * PACK_OUT
        valid = exists[:, None] & (out < PACK_OUT)[None, :]
        gradient = tl.load(dy + source[:, None] + out[None, :], valid, 0.0)
        total = _dot(window, gradient, total, PRECISION, UPCAST)
    line = ((split * PACKS + pack) * columns + number).to(tl.int64) * (OUT_BLOCKS * BLOCK_OUT)
    tl.store(partials + line[:, None] + out[None, :], total, (number < columns)[:, None])
