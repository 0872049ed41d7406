"""What marks a test as the job of a client: of somebody else's tool that people put our layers and networks into.

A client's tests make its row of docs/clients.md; `make clients-table` writes that file.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import pytest
from shim import fix_torchvision

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class Client:
    """A tool as docs/clients.md lists it.

    Args:
        name: as people call it.
        package: the distribution whose version counts; it must be installed for the test to run.
        job: what the test does with it, in a few words.
        how: what a user has to know or do, if anything.
    """

    name: str
    package: str
    job: str
    how: str = ""

    @property
    def version(self) -> str | None:
        """Of the installed package; None where it is missing."""
        try:
            return version(self.package).partition("+")[0]  # a build of torch says which after +
        except PackageNotFoundError:
            return None


CLIENTS: dict[str, Client] = {}
JOBS: dict[str, str] = {}  # the name of each test to that of its client


def client(name: str, package: str, job: str, how: str = "") -> Callable[[Test], Test]:
    """Mark a test as the job of a client; several tests may have the same client, whose first job is listed.

    The test runs in an empty folder, as some tools write where they are.
    """
    known = CLIENTS.setdefault(name, Client(name, package, job, how))
    marks = [
        pytest.mark.filterwarnings("ignore"),  # other people's code warns about other people's code
        pytest.mark.filterwarnings("error:::selkern"),
        pytest.mark.skipif(known.version is None, reason=f"{package} is not installed: make clients"),
        pytest.mark.exhaustive,
    ]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run(*args: Any, **arguments: Any) -> None:
            fix_torchvision()
            before = Path.cwd()
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                try:
                    test(*args, **arguments)
                finally:
                    os.chdir(before)

        JOBS[test.__name__] = name
        marked: Any = run
        for mark in reversed(marks):
            marked = mark(marked)
        return marked

    return decorate
