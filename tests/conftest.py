"""Every test starts from one seed on one thread, and leaves torch's global switches as it found them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interpreter import interpreted

__all__ = ["interpreted"]

# Ultralytics, once a test has imported it, has Pillow install packages for images that it cannot read.
os.environ["YOLO_AUTOINSTALL"] = "false"
# No index of a test's data is kept in the user's own folder.
os.environ["SELKERN_CACHE"] = tempfile.mkdtemp(prefix="selkern-cache-")
atexit.register(shutil.rmtree, os.environ["SELKERN_CACHE"], ignore_errors=True)
# Small tensors gain nothing from more threads, and workers on the same cores lose a lot by them.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The size and the seed of the tests that draw their cases."""
    parser.addoption("--seed", type=int, default=0, help="seed of the tests that draw their cases")
    parser.addoption("--cases", type=int, help="how many cases an exhaustive test of tests/guarantees draws")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked `share(n)`, every n-th stays, for 0 none; `--cases 0` keeps all."""
    if config.getoption("--cases") == 0:
        return
    counts: Counter[tuple[str, bool]] = Counter()
    left_out = set()
    for item in items:
        if (mark := item.get_closest_marker("share")) is not None:
            name = item.nodeid.partition("[")[0], item.get_closest_marker("exhaustive") is None
            share = mark.args[0]
            if not share or counts[name] % share:
                left_out.add(item)
            counts[name] += 1
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of a test that draws its cases; shown where the test fails."""
    number = int(request.config.getoption("--seed"))
    print(f"--seed {number}")
    return number


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int | None:
    """How many cases to draw, where --cases says so."""
    number: int | None = request.config.getoption("--cases")
    return number


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


@pytest.fixture(scope="module")
def tiny_networks() -> Iterator[None]:
    """For a whole file: the names `sk_tiny` and `plain_tiny` are models."""
    from tiny import tiny_model  # here: most tests need nothing of the training that it imports

    with tiny_model():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures, one folder per class."""
    from tiny import make_folder

    return make_folder(tmp_path_factory.mktemp("data"))
