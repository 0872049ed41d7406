"""Which maps the kernels of Fuse and Select take, and how the work on them is divided."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selkern.ops.norm import BatchNorm

pytest.importorskip("triton", reason="no kernels without Triton")
from selkern.ops.triton import fuse_select
from selkern.ops.triton import fuse_select_launch as launch


def test_what_is_supported() -> None:
    y = [torch.randn(2, 4, 3, 3) for _ in range(2)]
    norm = BatchNorm(None, None, None, None, True, 0.1, 1e-5)
    assert fuse_select.is_supported(y, [norm, norm])
    for maps in ([y[0].double(), y[1].double()], [y[0][0], y[1][0]], [y[0], y[1].half()], [y[0], y[1][:, :2]], y * 3):
        assert not fuse_select.is_supported(maps, [norm] * len(maps))
    assert not fuse_select.is_supported([y_m[:0] for y_m in y], [norm, norm])
    for other in (replace(norm, training=False), replace(norm, eps=1e-3)):
        assert not fuse_select.is_supported(y, [norm, other])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(256, 128, 56, 56), (256, 1024, 7, 7), (2, 132, 9, 7), (1, 3, 90, 91), (3, 5, 1, 1)])
def test_plans_cover_every_pixel_once(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    plan = launch.plan(shape, memory_format)
    at, blocks = plan.geometry, plan.blocks
    assert at.splits * at.split_pixels >= at.pixels > (at.splits - 1) * at.split_pixels
    assert plan.programs == at.batch * at.splits * -(-at.channels // blocks["BLOCK_CHANNELS"])
    assert blocks["BLOCK_PIXELS"] * blocks["BLOCK_CHANNELS"] == launch.TILE
    if (shape, memory_format) in (((2, 132, 9, 7), torch.channels_last), ((1, 3, 90, 91), torch.contiguous_format)):
        assert at.splits == 2  # as test_fuse_select.py relies on
