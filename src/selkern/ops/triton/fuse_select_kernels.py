# mypy: disallow-untyped-decorators=False
"""BatchNorm, ReLU, Fuse and Select of M branches: the kernels. Design, formulas and floors: docs/kernels.md.

A map is (N, C, H, W), channels_last or contiguous. A program works on one sample, one split of its pixels and one block
of channels, in tiles (pixels, channels) that step through the split. All arithmetic is float32. An offset inside a
sample fits int32 (`is_supported` checks it); the sample's own offset is int64, which costs one product a program.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from triton import jit
from triton import language as tl


class Geometry(NamedTuple):
    """How maps lie in memory and how their work is split: pixels is H * W, a split has `split_pixels` of them."""

    batch: int
    pixels: int
    channels: int
    splits: int
    split_pixels: int
    stride_pixel: int
    stride_channel: int


class Norms(NamedTuple):
    """What the branches' BatchNorms multiply and add: (M, C) float32 each, invstd = 1 / deviation."""

    mean: Tensor
    invstd: Tensor
    weight: Tensor
    bias: Tensor


@jit
def _place(at: tl.tuple, BLOCK_CHANNELS: tl.constexpr) -> tl.tuple:
    """Sample, split and channels of this program; the split's first pixel and the one after its last."""
    blocks = (at.channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    program = tl.program_id(0)
    channel = program % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    part = program // blocks
    split = part % at.splits
    first = split * at.split_pixels
    return (part // at.splits).to(tl.int64), split, channel, first, tl.minimum(first + at.split_pixels, at.pixels)


@jit
def _tile(at: tl.tuple, start: tl.tensor, last: tl.tensor, channel: tl.tensor, BLOCK_PIXELS: tl.constexpr) -> tl.tuple:
    """Offsets within a sample of a tile (pixels, channels), and which of them exist."""
    pixel = start + tl.arange(0, BLOCK_PIXELS)[:, None]
    valid = (pixel < last) & (channel[None, :] < at.channels)
    return pixel * at.stride_pixel + channel[None, :] * at.stride_channel, valid


@jit
def _rows(pointer: tl.tensor, channel: tl.tensor, channels: tl.tensor, M: tl.constexpr) -> tl.tuple:
    """One row (1, channels) for every branch from (M, C), float32."""
    rows: tl.tuple = ()
    for m in tl.static_range(M):
        rows += (tl.load(pointer + m * channels + channel, channel < channels, 0.0).to(tl.float32)[None, :],)
    return rows


@jit
def _of_norms(norms: tl.tuple, channel: tl.tensor, channels: tl.tensor, M: tl.constexpr) -> tl.tuple:
    """Rows of mean, invstd, weight and bias."""
    mean = _rows(norms.mean, channel, channels, M)
    invstd = _rows(norms.invstd, channel, channels, M)
    weight = _rows(norms.weight, channel, channels, M)
    return mean, invstd, weight, _rows(norms.bias, channel, channels, M)


@jit
def _normalised(y: tl.tensor, mean: tl.tensor, invstd: tl.tensor, weight: tl.tensor, bias: tl.tensor) -> tl.tuple:
    """y - mean, g * yhat + b, and where the ReLU lets that pass: every kernel must find the same places.

    A NaN passes, as it does in torch: hence not `affine > 0`.
    """
    centred = y.to(tl.float32) - mean
    affine = centred * (weight * invstd) + bias
    return centred, affine, ~(affine <= 0)


@jit
def moments_kernel(
    y: tl.tuple,  # M maps
    part_means: tl.tensor,  # (N * splits, M, C)
    part_squares: tl.tensor,  # (N * splits, M, C): sums of squared distances from the mean
    at: tl.tuple,  # Geometry
    M: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Welford's recurrence in every lane of the tile, then the lanes merged by Chan's formula."""
    sample, split, channel, first, last = _place(at, BLOCK_CHANNELS)
    lane = tl.arange(0, BLOCK_PIXELS)
    zero = tl.full([BLOCK_PIXELS, BLOCK_CHANNELS], 0.0, tl.float32)
    means: tl.tuple = ()
    squares: tl.tuple = ()
    for _ in tl.static_range(M):
        means += (zero,)
        squares += (zero,)
    for start in tl.range(first, last, BLOCK_PIXELS, num_stages=STAGES):
        offset, valid = _tile(at, start, last, channel, BLOCK_PIXELS)
        share = 1.0 / ((start - first) // BLOCK_PIXELS + 1)
        new_means: tl.tuple = ()
        new_squares: tl.tuple = ()
        for m in tl.static_range(M):
            value = tl.load(y[m] + sample * (at.pixels * at.channels) + offset, valid, 0.0).to(tl.float32)
            delta = tl.where(valid, value - means[m], 0.0)
            mean = means[m] + delta * share
            new_means += (mean,)
            new_squares += (squares[m] + delta * (value - mean),)
        means = new_means
        squares = new_squares
    counts = ((last - first - lane + BLOCK_PIXELS - 1) // BLOCK_PIXELS).to(tl.float32)[:, None]
    for m in tl.static_range(M):
        mean = tl.sum(counts * means[m], 0) / (last - first)
        distance = means[m] - mean[None, :]
        square = tl.sum(squares[m] + counts * distance * distance, 0)
        target = ((sample * at.splits + split) * M + m) * at.channels + channel
        tl.store(part_means + target, mean, channel < at.channels)
        tl.store(part_squares + target, square, channel < at.channels)


@jit
def merge_kernel(
    part_means: tl.tensor,  # (N * splits, M, C), and the next, as `moments_kernel` leaves them
    part_squares: tl.tensor,
    mean: tl.tensor,  # (M, C)
    variance: tl.tensor,  # (M, C), biased
    at: tl.tuple,  # Geometry
    M: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
) -> None:
    """Chan's formula: in every lane one part after the other, then the lanes. A column is a branch's channel."""
    columns = M * at.channels
    parts = at.batch * at.splits
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    count = tl.full([BLOCK_PARTS, 1], 0.0, tl.float32)
    middle = tl.full([BLOCK_PARTS, BLOCK_COLUMNS], 0.0, tl.float32)
    square = tl.full([BLOCK_PARTS, BLOCK_COLUMNS], 0.0, tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)[:, None]
        inside = (part < parts) & (column < columns)
        pixels = tl.minimum(at.pixels - part % at.splits * at.split_pixels, at.split_pixels)
        size = tl.where(part < parts, pixels, 0).to(tl.float32)
        source = part.to(tl.int64) * columns + column
        delta = tl.load(part_means + source, inside, 0.0) - middle
        share = size / tl.maximum(count + size, 1.0)
        middle += delta * share
        square += tl.load(part_squares + source, inside, 0.0) + delta * delta * (count * share)
        count += size
    total = tl.sum(count, 0)[None, :]
    whole = tl.sum(count * middle, 0)[None, :] / total
    distance = middle - whole
    tl.store(mean + column, whole, column < columns)
    square = tl.sum(square + count * distance * distance, 0)[None, :]
    tl.store(variance + column, square / total, column < columns)


@jit
def sums_kernel(
    weights: tl.tensor,  # map w; not read unless WEIGHTED
    y: tl.tuple,  # M maps
    norms: tl.tuple,  # Norms
    p: tl.tensor,  # (splits, N, M, C)
    q: tl.tensor,  # (splits, N, M, C)
    at: tl.tuple,  # Geometry
    WEIGHTED: tl.constexpr,
    M: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """P = sum of w * on, Q = sum of w * on * yhat, over the split's pixels; w is 1 unless WEIGHTED."""
    sample, split, channel, first, last = _place(at, BLOCK_CHANNELS)
    mean, invstd, weight, bias = _of_norms(norms, channel, at.channels, M)
    base = sample * (at.pixels * at.channels)
    zero = tl.full([BLOCK_PIXELS, BLOCK_CHANNELS], 0.0, tl.float32)
    sums: tl.tuple = ()
    for _ in tl.static_range(2 * M):
        sums += (zero,)
    for start in tl.range(first, last, BLOCK_PIXELS, num_stages=STAGES):
        offset, valid = _tile(at, start, last, channel, BLOCK_PIXELS)
        w = tl.load(weights + base + offset, valid, 0.0).to(tl.float32) if WEIGHTED else 1.0
        new: tl.tuple = ()
        for m in tl.static_range(M):
            value = tl.load(y[m] + base + offset, valid, 0.0)
            centred, _affine, on = _normalised(value, mean[m], invstd[m], weight[m], bias[m])
            kept = on & valid  # of an infinite value that is not kept, nothing may stay: no product with 0
            new += (sums[2 * m] + tl.where(kept, w, 0.0), sums[2 * m + 1] + tl.where(kept, w * centred, 0.0))
        sums = new
    for m in tl.static_range(M):
        target = ((split * at.batch + sample) * M + m) * at.channels + channel
        tl.store(p + target, tl.sum(sums[2 * m], 0), channel < at.channels)
        tl.store(q + target, tl.sum(sums[2 * m + 1] * invstd[m], 0), channel < at.channels)


@jit
def select_kernel(
    y: tl.tuple,  # M maps
    norms: tl.tuple,  # Norms
    a: tl.tensor,  # (N, M, C)
    v: tl.tensor,  # map
    at: tl.tuple,  # Geometry
    M: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """V = sum over m of a_m * relu(g_m * yhat_m + b_m)."""
    sample, _split, channel, first, last = _place(at, BLOCK_CHANNELS)
    mean, invstd, weight, bias = _of_norms(norms, channel, at.channels, M)
    share = _rows(a + sample * M * at.channels, channel, at.channels, M)
    base = sample * (at.pixels * at.channels)
    for start in tl.range(first, last, BLOCK_PIXELS, num_stages=STAGES):
        offset, valid = _tile(at, start, last, channel, BLOCK_PIXELS)
        total = tl.full([BLOCK_PIXELS, BLOCK_CHANNELS], 0.0, tl.float32)
        for m in tl.static_range(M):
            value = tl.load(y[m] + base + offset, valid, 0.0)
            _centred, affine, on = _normalised(value, mean[m], invstd[m], weight[m], bias[m])
            total += share[m] * tl.where(on, affine, 0.0)
        tl.store(v + base + offset, total.to(v.dtype.element_ty), valid)


@jit
def gradient_kernel(
    dv: tl.tensor,  # map
    y: tl.tuple,  # M maps
    norms: tl.tuple,  # Norms
    a: tl.tensor,  # (N, M, C)
    ds: tl.tensor,  # (N, C), divided by HW
    averages: tl.tensor,  # (2, M, C): means of gu and of gu * yhat over N and HW
    dy: tl.tuple,  # M maps
    at: tl.tuple,  # Geometry
    M: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """dy = g * invstd * (gu - mean(gu) - yhat * mean(gu * yhat)), where gu = on * (a * dV + ds / HW)."""
    sample, _split, channel, first, last = _place(at, BLOCK_CHANNELS)
    mean, invstd, weight, bias = _of_norms(norms, channel, at.channels, M)
    share = _rows(a + sample * M * at.channels, channel, at.channels, M)
    level = _rows(averages, channel, at.channels, M)
    slope = _rows(averages + M * at.channels, channel, at.channels, M)
    even = _rows(ds + sample * at.channels, channel, at.channels, 1)[0]
    base = sample * (at.pixels * at.channels)
    for start in tl.range(first, last, BLOCK_PIXELS, num_stages=STAGES):
        offset, valid = _tile(at, start, last, channel, BLOCK_PIXELS)
        upper = tl.load(dv + base + offset, valid, 0.0).to(tl.float32)
        for m in tl.static_range(M):
            value = tl.load(y[m] + base + offset, valid, 0.0)
            centred, _affine, on = _normalised(value, mean[m], invstd[m], weight[m], bias[m])
            gu = tl.where(on, share[m] * upper + even, 0.0)
            gradient = weight[m] * invstd[m] * (gu - level[m] - centred * (invstd[m] * slope[m]))
            tl.store(dy[m] + base + offset, gradient.to(dy[m].dtype.element_ty), valid)
