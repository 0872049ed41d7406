"""The convolutions' kernels compiled for an H100, with no GPU at hand: they are accepted, and use its tensor cores.

This file is also the program that compiles them, in a process of its own: those of the tests may interpret kernels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("triton.language", reason="no kernels without Triton")

TENSOR_CORE = r"wgmma\.mma_async\.\S*\.{0}\.{0}|mma\.sync\.\S*\.{0}\.{0}"  # of operands in one format
SHAPES = {"SKNet-50": ((128, 4, 3, 3), 32), "dense": ((96, 96, 3, 3), 1), "awkward": ((20, 3, 3, 3), 4)}
FORMATS = {  # operands as PTX calls them, their bytes, and how float32 may be multiplied
    "bf16": ("bf16", 2, "ieee"),
    "fp16": ("f16", 2, "ieee"),
    "tf32": ("tf32", 4, "tf32"),
    "fp32": ("", 4, "ieee"),
}
CASES = [
    *(("SKNet-50", number_format) for number_format in ("bf16", "fp32")),
    ("awkward", "fp16"),
]
SHARED = 99 << 10  # bytes that a program may have on those GPUs since Ampere that have least


def compiled(shape: str, number_format: str) -> dict[str, tuple[str, int]]:
    """Name of each kernel to its PTX for sm_90 and the shared memory that it takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selkern.ops.triton import convolution_kernels as kernels
    from selkern.ops.triton import convolution_launch as launch

    _, element_bytes, precision = FORMATS[number_format]
    packing = launch.Packing.of(*SHAPES[shape], element_bytes)
    pointer = "*" + number_format.replace("tf32", "fp32")
    maps, at = (pointer, pointer), cast(Any, kernels.Geometry)(*["i32"] * 5)
    common = {**packing.constants(), "STRIDE": 2, "PRECISION": precision, "UPCAST": False}
    blocks = {"BLOCK_PIXELS": launch.BLOCK_PIXELS, "BLOCK_IN": packing.block_in, "IN_BLOCKS": packing.in_blocks}
    both = {**common, **blocks, "KERNELS": (3, 3), "DILATIONS": (1, 2)}
    columns = {"PADDED_IN": packing.padded_in, "BLOCK_COLUMNS": launch.BLOCK_COLUMNS}
    single = {**common, **columns, "BLOCK_PIXELS": launch.split_pixels(element_bytes), "KERNEL": 3, "DILATION": 2}
    jobs: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (
            kernels.forward_kernel,
            {"x": pointer, "weights": maps, "y": maps, "partials": "*fp32", "at": at},
            {**both, "STATISTICS": True},
        ),
        (kernels.input_gradient_kernel, {"dy": maps, "weights": maps, "dx": pointer, "at": at}, both),
        (
            kernels.weight_gradient_kernel,
            {"x": pointer, "dy": pointer, "partials": "*fp32", "at": at, "split_tiles": "i32"},
            single,
        ),
    ]
    results = {}
    for kernel, types, constants in jobs:
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constants, aligned(list(signature.values())))
        options = {"num_warps": launch.WARPS, "num_stages": launch.STAGES}
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        results[kernel.__name__] = (binary.asm["ptx"], binary.metadata.shared)
    return results


def aligned(types: list[Any]) -> dict[tuple[int, ...], list[list[Any]]]:
    """Every pointer a multiple of 16 bytes, as torch's allocator has them."""
    places: dict[tuple[int, ...], Any] = {}
    for i, each in enumerate(types):
        places |= {(i, j): part for j, part in enumerate(each)} if isinstance(each, tuple) else {(i,): each}
    return {place: [["tt.divisibility", 16]] for place, part in places.items() if part.startswith("*")}


@pytest.mark.parametrize(("shape", "number_format"), CASES)
@pytest.mark.exhaustive
def test_compiles_for_sm_90(shape: str, number_format: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what was compiled before shall not answer
    command = [sys.executable, __file__, shape, number_format]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert len(results) == 3
    for name, (ptx, shared) in results.items():
        assert ".target sm_90" in ptx, name
        assert shared <= SHARED, f"{name} takes {shared} bytes of shared memory"
        operands = FORMATS[number_format][0]
        if operands:
            assert re.search(TENSOR_CORE.format(operands), ptx), f"{name} leaves the tensor cores alone"
        else:
            assert "mma" not in ptx, f"{name} rounds float32"
        if shape == "SKNet-50":
            assert re.search(r"cp\.async\.\w+\.shared\.global", ptx), f"{name} waits for every load"


if __name__ == "__main__":
    print(json.dumps(compiled(*sys.argv[1:])))
