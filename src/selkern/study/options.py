"""What `selkern study` can be asked; light, since `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Compare networks as a study's file says, and write table, figure and all figures behind them.

    Every network is trained several times; runs with the same seed see the same images in the same order. A study that
    was stopped or killed goes on when it is called again; a finished one writes its results anew.
    """

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
    """A study's file (docs/studies.md), or the name of one that comes with selkern, such as mixers."""
    data: str | None = None
    """What to train on, where the file leaves it open: a folder, .csv or .parquet."""
    output: Path = Path("runs/studies")
    """Folder that the runs' folders are made in."""
    results: Path = Path("studies/results")
    """Folder for NAME.json, NAME.md and NAME.svg."""
    jobs: int | None = None
    """Runs at a time on this machine; by default as many as its cores hold."""
    threads: int = 1
    """Of each run; other numbers round sums differently."""
    device: Literal["cpu", "cuda"] = "cpu"
    """On a GPU, reruns need not be equal."""
    short: bool = False
    """One epoch of few scenes and two seeds, to try the machinery; results go to the runs' folder."""
    engine: Literal["local", "ray"] = "local"
    """Where the runs are: processes of this machine, or the machines of a Ray cluster."""
    address: str | None = None
    """Of the Ray cluster, such as auto; without it, ray starts on this machine alone."""

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1024:
                raise UsageError(f"{name} is {value}", f"--{name}", "must be from 1 to 1024")
        if self.engine == "local" and self.address is not None:
            raise UsageError("an address without a cluster", "--address", "give --engine ray too")
        if self.engine == "ray" and self.jobs is not None:
            raise UsageError("the cluster decides how many runs it takes", "--jobs", "leave it out with --engine ray")
