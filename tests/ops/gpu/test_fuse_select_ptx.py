"""The kernels of Fuse and Select, compiled for an H100 as a launch would compile them, without one.

In a process of its own: kernels that this one interprets cannot be compiled.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="no kernels without Triton")

COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature
from selkern.ops.triton import fuse_select_kernels as kernels, fuse_select_launch as launch

dtype, branches, memory_format = getattr(torch, sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
shape = (256, 128, 56, 56)
how = launch.plan(shape, memory_format)
at, blocks = how.geometry, {"M": branches, **how.blocks}
target = GPUTarget("cuda", 90, 32)
backend = make_backend(target)

def small(*shape): return torch.empty(shape, device="meta")
def maps(count): return tuple(torch.empty(shape, dtype=dtype, device="meta") for _ in range(count))

norms = kernels.Norms(*(small(branches, 128) for _ in range(4)))
(v,), y, dy, a, ds = maps(1), maps(branches), maps(branches), small(256, branches, 128), small(256, 128)
parts = small(at.splits * 256, branches, 128), small(at.splits * 256, branches, 128)
moments = small(branches, 128), small(branches, 128)
launches = {
    "moments": (kernels.moments_kernel, (y, *parts, at), blocks),
    "merge": (kernels.merge_kernel, (*parts, *moments, at), {"M": branches, "BLOCK_PARTS": 128, "BLOCK_COLUMNS": 16}),
    "sums": (kernels.sums_kernel, (v, y, norms, *parts, at), {"WEIGHTED": False, **blocks}),
    "weighted sums": (kernels.sums_kernel, (v, y, norms, *parts, at), {"WEIGHTED": True, **blocks}),
    "select": (kernels.select_kernel, (y, norms, a, v, at), blocks),
    "gradient": (kernels.gradient_kernel, (v, y, norms, a, ds, small(2, branches, 128), dy, at), blocks),
}
result = {}
for name, (kernel, args, named) in launches.items():
    named = {**named, "num_warps": launch.WARPS}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, special, options = bind(*args, debug=False, **named)
    options, signature, constants, attributes = kernel._pack_args(backend, named, bound, special, options)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    result[name] = {"ptx": compiled.asm["ptx"], "cubin": len(compiled.asm["cubin"])}
json.dump(result, sys.stdout)
"""


@pytest.mark.parametrize(
    ("dtype", "branches", "memory_format"),
    [("bfloat16", 2, "channels_last"), ("float32", 3, "contiguous_format")],
)
@pytest.mark.exhaustive
def test_compiles_for_sm_90(dtype: str, branches: int, memory_format: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, dtype, str(branches), memory_format]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result) == 6
    for name, kernel in result.items():
        assert ".target sm_90" in kernel["ptx"], name
        assert kernel["cubin"] > 0, name
        assert "atom." not in kernel["ptx"], name  # sums are in a fixed order, never those of atomics
        assert " red." not in kernel["ptx"], name
        if name != "merge":
            # Maps are read 16 bytes at a time, ahead of their use.
            assert re.search(r"cp\.async\.c[ag]\.shared\.global .*, 0x10", kernel["ptx"]), name
    assert "st.global.v4.b32" in result["select"]["ptx"]
    assert "st.global.v4.b32" in result["gradient"]["ptx"]
