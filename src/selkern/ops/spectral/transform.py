"""The linear maps between values and real Fourier coefficients, and the views of images as tiles; see `spectral`.

A tile's coefficients are made in two steps, along H and then along W, with its channels and those of many tiles side
by side: each step is a product with a small matrix. Shape letters as in `spectral`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selkern.ops.spectral.plan import Axis, Tile

STEP_BYTES = 4 << 20  # of coefficients that the transforms work on at a time: they should stay in the cache


class Transform(NamedTuple):
    """The matrices of a linear map from S x S values to R coefficients, first along H, then along W.

    Lines along H come as the real ones (frequency 0, and P/2 where P is even), then a cosine and a sine for each pair.
    """

    line: Tensor  # (P, S) along H
    real: Tensor  # (R', S) along W, of a real line
    pair: Tensor  # (3 P, 2 S) along W, of a pair's cosine and sine

    @property
    def reals(self) -> int:
        """How many lines are real: 1 or 2."""
        return 2 - len(self.line) % 2

    @property
    def first(self) -> int:
        """How many products the real lines have; those of the pairs follow."""
        return self.reals * len(self.real)

    @property
    def products(self) -> int:
        """R."""
        return self.first + len(self.pair) * ((len(self.line) - self.reals) // 2)


Map = Literal["x", "w", "y"]


def _waves(period: int, start: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi u i / P, (P, S), for i from `start`."""
    turns = torch.outer(torch.arange(period), torch.arange(start, start + size)) % period
    angle = turns.double() * (2 * math.pi / period)
    return angle.cos(), angle.sin()


def _real(period: int) -> list[int]:
    """The frequencies that are their own conjugates."""
    return [0] if period % 2 else [0, period // 2]


def _span(of: Map, axis: Axis) -> tuple[int, int]:
    """The first position and the number of positions that the map reads."""
    return {"x": (axis.start, axis.read), "w": (-(axis.kernel // 2), axis.kernel), "y": (0, axis.write)}[of]


def _transform(of: Map, rows: Axis, columns: Axis) -> Transform:
    """The map of x, of the weights, or the transposed one of the outputs, in float64."""
    cos, sin = _waves(rows.period, *_span(of, rows))
    pairs = slice(1, (rows.period + 1) // 2)
    waves = torch.stack([cos[pairs], sin[pairs] if of == "w" else -sin[pairs]], dim=1).flatten(0, 1)
    single = cos[_real(rows.period)]
    c, s = _waves(columns.period, *_span(of, columns))
    # The three factors' coefficients: a + b, a, b of x; c, d - c, c + d of the weights; those of k1, k2, k3 in y.
    cosine = {"x": [c - s, c, -s], "w": [c, s - c, s + c], "y": [c - s, -s, -c]}[of]
    sine = {"x": [s + c, s, c], "w": [-s, c + s, c - s], "y": [s + c, c, -s]}[of]
    pairs = slice(1, (columns.period + 1) // 2)
    twice, scale = (2, 1 / (rows.period * columns.period)) if of == "y" else (1, 1)  # a pair is two frequencies
    real = torch.cat([c[_real(columns.period)], *(twice * m[pairs] for m in cosine)])
    return Transform(
        torch.cat([single, twice * waves]) * scale, real, torch.cat([torch.cat(cosine), torch.cat(sine)], dim=1)
    )


@lru_cache(maxsize=64)
def transforms(tile: Tile, dtype: torch.dtype) -> tuple[Transform, Transform, Transform]:
    """The maps of x, weights and outputs."""
    with torch.inference_mode(False), torch.no_grad():
        maps = [_transform(of, tile.rows, tile.columns) for of in ("x", "w", "y")]
        x, w, y = (Transform(*(matrix.to(dtype) for matrix in m)) for m in maps)
    return x, w, y


def strips(images: int, rows: int, columns: int, tiles: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts a grid of tiles into pieces of at most `tiles`, or of one row: slices of images, of rows, of all tiles."""
    step = max(1, tiles // (rows * columns))
    height = rows if tiles >= rows * columns else max(1, tiles // columns)
    for n in range(0, images, step):
        for r in range(0, rows, height):
            strip = slice(n, min(n + step, images)), slice(r, min(r + height, rows))
            first, many = (n * rows + r) * columns, (strip[0].stop - n) * (strip[1].stop - r) * columns
            yield *strip, slice(first, first + many)


def analyse(grid: Tensor, m: Transform) -> Tensor:
    """Tiles (N, rows, columns, S, S, C) of any strides to (R, B, C) coefficients."""
    images, rows, columns, height, width, c = grid.shape
    b = images * rows * columns
    out = grid.new_empty(m.products, b, c)
    for some, strip, at in strips(images, rows, columns, STEP_BYTES // (m.products * c * grid.itemsize)):
        tiles = at.stop - at.start
        values = grid[some, strip].permute(3, 4, 0, 1, 2, 5).reshape(height, width * tiles * c)
        lines = torch.mm(m.line, values)
        part = out if tiles == b else out.new_empty(m.products, tiles, c)
        flat = part.view(m.products, tiles * c)
        real, pairs = lines[: m.reals].view(m.reals, width, -1), lines[m.reals :].view(-1, 2 * width, tiles * c)
        torch.bmm(m.real.expand(m.reals, -1, -1), real, out=flat[: m.first].view(m.reals, -1, tiles * c))
        if len(pairs):
            into = flat[m.first :].view(len(pairs), -1, tiles * c)
            torch.bmm(m.pair.expand(len(pairs), -1, -1), pairs, out=into)
        if part is not out:
            out[:, at] = part
    return out


def synthesise(coefficients: Tensor, m: Transform, blocks: Tensor, add: bool = False) -> None:
    """The transposed map: (R, B, C) coefficients to tiles, put side by side, or added overlapping, into `blocks`.

    `blocks` is (N, rows, columns, L, L, C). Where the tiles are larger than the blocks, S > L, they reach into the
    blocks below and to the right, of which there must be enough.
    """
    r, _, c = coefficients.shape
    width, high, long = m.real.shape[1], *blocks.shape[3:5]
    deep, wide = -(-m.line.shape[1] // high), -(-width // long)
    images, rows, columns = len(blocks), blocks.shape[1] - deep + 1, blocks.shape[2] - wide + 1
    for some, strip, at in strips(images, rows, columns, STEP_BYTES // (r * c * coefficients.itemsize)):
        tiles = at.stop - at.start
        flat = coefficients[:, at].reshape(r, tiles * c)
        lines = flat.new_empty(len(m.line), width, tiles * c)
        torch.bmm(m.real.T.expand(m.reals, -1, -1), flat[: m.first].view(m.reals, -1, tiles * c), out=lines[: m.reals])
        pairs = flat[m.first :].view(-1, len(m.pair), tiles * c)
        if len(pairs):
            out = lines[m.reals :].view(len(pairs), 2 * width, tiles * c)
            torch.bmm(m.pair.T.expand(len(pairs), -1, -1), pairs, out=out)
        values = torch.mm(m.line.T, lines.view(len(m.line), -1))
        shape = (some.stop - some.start, strip.stop - strip.start, columns, c)
        tile = values.view(-1, width, *shape).permute(2, 3, 4, 0, 1, 5)
        for i in range(deep):
            for j in range(wide):
                part = tile[:, :, :, i * high : (i + 1) * high, j * long : (j + 1) * long]
                under = blocks[some, strip.start + i : strip.stop + i, j : j + columns]
                under = under[:, :, :, : part.shape[3], : part.shape[4]]
                under.add_(part) if add else under.copy_(part)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def windows(x: Tensor, tile: Tile) -> Tensor:
    """x (N, H, W, I) as overlapping tiles (N, rows, columns, S, S, I): a view of it, or of a padded copy."""
    margins = [0, 0]
    for axis in (tile.columns, tile.rows):
        margins += [-axis.start, axis.start + (axis.count - 1) * axis.write + axis.read - axis.length]
    x = F.pad(x, margins) if any(margins) else x
    for dim, axis in ((1, tile.rows), (2, tile.columns)):
        x = x.unfold(dim, axis.read, axis.write)
    return x.permute(0, 1, 2, 4, 5, 3)


def blocks(y: Tensor, tile: Tile) -> Tensor:
    """y (N, rows L, columns L, O) as a view (N, rows, columns, L, L, O)."""
    n, height, width, channels = y.shape
    high, long = tile.rows.write, tile.columns.write
    return y.view(n, height // high, high, width // long, long, channels).transpose(2, 3)


def taps(weight: Tensor) -> Tensor:
    """Weights (O, I, k, k) as tiles (O, 1, 1, k, k, I)."""
    return weight.permute(0, 2, 3, 1)[:, None, None]
