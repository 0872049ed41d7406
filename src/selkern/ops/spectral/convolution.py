"""Dense k x k convolutions as products of real Fourier coefficients, for the branches that read one x.

A convolution with `same` zero padding, stride 1 and one group is cut into tiles of a period just large enough that
nothing wraps around into the tile's outputs (overlap-save). Over a tile it is a product per frequency, so k x k
multiply-adds for each output become one and a half real ones for each point of the tile.

Everything is a real matrix product. A line of P values has P real coefficients, of which the real and imaginary parts
of a conjugate pair are two; of the P x P plane's coefficients only one of each pair is computed. The complex product of
a pair takes three real ones (Gauss): with X = a + ib and W = c + id,

    k1 = (a + b) c,   k2 = a (d - c),   k3 = b (c + d),   X W = (k1 - k3) + i (k1 + k2),

and the sums on either side are rows of the transforms' matrices, so they cost nothing. What remains for the batch is
one real batched product (R, B, I) x (R, I, O): R about 1.5 P^2 products, B tiles, I and O channels. The transforms of
x, of the weights and of the outputs are linear (`spectral_transform`): backward runs the transposed ones.

Each kernel has tiles of its own: a common transform would need the largest kernel's period, and its R, for all.
A 1 x 1 kernel, and any for which a plan says so, is convolved directly.

Shape letters: N batch, I and O input and output channels, H, W, k; S by S values of a tile that are read, L by L that
are written, P its period, B = N * tiles, R products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from selkern.ops.spectral.plan import Plan, Tile
from selkern.ops.spectral.transform import analyse, blocks, channels_last, strips, synthesise, taps, transforms, windows

CHUNK_BYTES = 16 << 20  # of coefficients that one pass of products works on
LEAST_ROWS = 128  # of the batched product: with fewer, reading the weights' coefficients is what takes the time


def suits(x: Tensor) -> bool:
    """Whether x is of a kind that this was made and measured for: images on the CPU, in full precision."""
    whole = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    # A dual number's tangent has no rule here; weights can have one where x has none.
    dual = forward_ad._current_level >= 0
    return whole and not dual and x.ndim == 4 and x.device.type == "cpu"


def _chunk(width: int, tile: Tile, itemsize: int) -> int:
    """How many tiles to work on in turn; `width` is max(I, O)."""
    return max(LEAST_ROWS, CHUNK_BYTES // (tile.products * width * itemsize))


def _slabs(channels: int, rows: int, tile: Tile, itemsize: int) -> list[slice]:
    """Slices of the output channels, so that R * rows * channels coefficients fit a chunk."""
    most = max(32, CHUNK_BYTES // (tile.products * rows * itemsize))
    step = -(-channels // -(-channels // most))
    return [slice(o, min(o + step, channels)) for o in range(0, channels, step)]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile, ready: bool) -> Tensor:
    """The convolution (N, O, H, W) of x (N, H, W, I); `weight` is (R, O, I) if `ready`, else (O, I, k, k)."""
    of_x, of_w, of_y = transforms(tile, x.dtype)
    channels, rows, columns = weight.shape[1 if ready else 0], tile.rows, tile.columns
    pieces = list(strips(len(x), rows.count, columns.count, _chunk(max(x.shape[3], channels), tile, x.itemsize)))
    if not ready and len(pieces) > 1:
        weight, ready = analyse(taps(weight), of_w), True
    y = x.new_empty(len(x), rows.count * rows.write, columns.count * columns.write, channels)
    read, written = windows(x, tile), blocks(y, tile)
    for images, strip, at in pieces:
        x_hat = analyse(read[images, strip], of_x)
        for slab in _slabs(channels, at.stop - at.start + (0 if ready else x.shape[3]), tile, x.itemsize):
            w_hat = weight[:, slab] if ready else analyse(taps(weight[slab]), of_w)
            y_hat = torch.bmm(x_hat, w_hat.transpose(1, 2))
            if bias is not None:  # frequency 0 comes first
                y_hat[0] += bias[slab] * (rows.period * columns.period)
            synthesise(y_hat, of_y, written[images, strip, ..., slab])
    return y[:, : rows.length, : columns.length].contiguous().permute(0, 3, 1, 2)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, tile: Tile, dx: Tensor | None, need_w: bool) -> Tensor | None:
    """Add this branch's share to `dx` (N, H, W, I), if given, and return the gradient of its weights, if needed."""
    of_x, of_w, of_y = transforms(tile, x.dtype)
    rows, columns = tile.rows, tile.columns
    tiles = _chunk(max(x.shape[3], len(weight)), tile, x.itemsize)
    pieces = list(strips(len(x), rows.count, columns.count, tiles))
    whole = len(pieces) > 1
    full = analyse(taps(weight), of_w) if whole and dx is not None else None
    dw_hat = x.new_zeros(tile.products, *weight.shape[:2]) if whole and need_w else None
    dw = torch.empty_like(weight, memory_format=torch.channels_last) if need_w else None
    dy = F.pad(dy, (0, 0, 0, columns.count * columns.write - columns.length, 0, rows.count * rows.write - rows.length))
    read, written = windows(x, tile), blocks(dy, tile)
    reach = [-(-axis.read // axis.write) - 1 for axis in (rows, columns)]  # blocks that a tile covers besides its own
    sums = None
    if dx is not None:
        sides = [(axis.count + more) * axis.write for axis, more in zip((rows, columns), reach, strict=True)]
        sums = x.new_zeros(len(x), *sides, x.shape[3])
    for images, strip, at in pieces:
        x_hat = analyse(read[images, strip], of_x) if need_w else None
        dx_hat = None
        for slab in _slabs(len(weight), at.stop - at.start + (0 if whole else x.shape[3]), tile, x.itemsize):
            dy_hat = analyse(written[images, strip, ..., slab], of_y)
            if dx is not None:
                w_hat = full[:, slab] if full is not None else analyse(taps(weight[slab]), of_w)
                dx_hat = torch.bmm(dy_hat, w_hat) if dx_hat is None else dx_hat.baddbmm_(dy_hat, w_hat)
            if x_hat is not None and dw is not None:
                if dw_hat is None:
                    synthesise(torch.bmm(dy_hat.transpose(1, 2), x_hat), of_w, taps(dw[slab]))
                else:
                    dw_hat[:, slab] += torch.bmm(dy_hat.transpose(1, 2), x_hat)
        if sums is not None and dx_hat is not None:
            below = slice(strip.start, strip.stop + reach[0])
            synthesise(dx_hat, of_x, blocks(sums, tile)[images, below], add=True)
    if dx is not None and sums is not None:
        dx += sums[:, -rows.start :, -columns.start :][:, : rows.length, : columns.length]
    if dw is not None and dw_hat is not None:
        synthesise(dw_hat, of_w, taps(dw))
    return dw


class _Convolutions(torch.autograd.Function):
    """All the branches that have tiles: x is kept once, and its coefficients are made anew in backward."""

    @staticmethod
    def forward(ctx: Any, tiles: tuple[Tile, ...], x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[: len(tiles)], parameters[len(tiles) :]
        ctx.save_for_backward(x, *weights)
        ctx.tiles = tiles
        ctx.set_materialize_grads(False)
        x = channels_last(x)
        parts = zip(weights, biases, tiles, strict=True)
        return tuple(_forward(x, w, b, t, ready=False) for w, b, t in parts if w is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        m = len(weights)
        _, need_x, *need = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the backward pass is recorded itself (`create_graph`)
            return None, *_recorded_backward(x, weights, grads, ctx.needs_input_grad[1:])
        x = channels_last(x)
        dx = torch.zeros_like(x) if need_x else None
        dws: list[Tensor | None] = [None] * m
        dbs: list[Tensor | None] = [None] * m
        for i, (dy, weight, tile) in enumerate(zip(grads, weights, ctx.tiles, strict=True)):
            if dy is None:
                continue
            if need_x or need[i]:
                dws[i] = _backward(channels_last(dy), x, weight, tile, dx, need[i])
            if need[m + i]:
                dbs[i] = dy.sum(dim=(0, 2, 3))
        return None, None if dx is None else dx.permute(0, 3, 1, 2), *dws, *dbs


def _recorded_backward(
    x: Tensor, weights: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x, weights and biases that can be differentiated again: those of PyTorch's convolutions."""
    m = len(weights)
    result: list[Tensor | None] = [None] * (1 + 2 * m)
    for i, (dy, weight) in enumerate(zip(grads, weights, strict=True)):
        if dy is None:
            continue
        mask = [needed[0], needed[1 + i], needed[1 + m + i]]
        same = [weight.shape[2] // 2] * 2
        dx, result[1 + i], result[1 + m + i] = torch.ops.aten.convolution_backward(
            dy, x, weight, [len(weight)], [1, 1], same, [1, 1], False, [0, 0], 1, mask
        )
        if dx is not None:
            result[0] = dx if result[0] is None else result[0] + dx
    return result


def spectra(weights: Sequence[Tensor], plan: Plan) -> list[Tensor]:
    """What `convolve` needs of the weights (O, I, k, k): coefficients (R, O, I), or the weights of a direct branch."""
    return [
        w.detach() if tile is None else analyse(taps(w.detach()), transforms(tile, w.dtype)[1])
        for w, tile in zip(weights, plan.tiles, strict=True)
    ]


def convolve(x: Tensor, spectra: Sequence[Tensor], biases: Sequence[Tensor | None], plan: Plan) -> list[Tensor]:
    """The M convolutions (N, O, H, W) of x (N, I, H, W), with no gradients; they are laid out channels last."""
    with torch.no_grad():
        last = channels_last(x)
        return [
            F.conv2d(last.permute(0, 3, 1, 2), w, b, padding=k // 2)
            if tile is None
            else _forward(last, w, b, tile, ready=True)
            for w, b, k, tile in zip(spectra, biases, plan.kernels, plan.tiles, strict=True)
        ]


def spectral_convolutions(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], plan: Plan
) -> list[Tensor]:
    """The M convolutions (N, O, H, W) of x (N, I, H, W), once differentiable in x, weights and biases.

    Those that have tiles are laid out channels last, the others as conv2d lays them out.
    """
    at = [i for i, tile in enumerate(plan.tiles) if tile is not None]
    tiles = tuple(tile for tile in plan.tiles if tile is not None)
    parameters = [*(weights[i] for i in at), *(biases[i] for i in at)]
    out = iter(_Convolutions.apply(tiles, x, *parameters) if at else ())  # type: ignore[no-untyped-call]
    return [
        F.conv2d(x, w, b, padding=k // 2) if tile is None else next(out)
        for w, b, k, tile in zip(weights, biases, plan.kernels, plan.tiles, strict=True)
    ]
