"""The first line of a command, before anything heavy is imported."""

from __future__ import annotations

import os

from selkern import __version__
from selkern.errors import printable
from selkern.progress import say


def greet(text: str) -> None:
    """The first line, before anything heavy is imported."""
    if is_main():
        say(f"selkern {__version__}: {printable(text)}")


def is_main() -> bool:
    """Whether this process is the one that speaks."""
    return int(os.environ.get("RANK", "0")) == 0
