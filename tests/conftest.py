"""Every test starts from one seed on one thread, and leaves torch's global switches as it found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# Small tensors gain nothing from more threads, and workers on the same cores lose a lot by them.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded_and_restored() -> Iterator[None]:
    torch.manual_seed(0)
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    exact, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    if torch.are_deterministic_algorithms_enabled() != exact:  # the setter imports a compiler: not every time
        torch.use_deterministic_algorithms(exact)
