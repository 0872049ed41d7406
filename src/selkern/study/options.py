"""The options of `selkern study`; light, since `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Compare networks as a study's file describes, and write a table, a plot and the data behind them.

    Every network is trained several times; runs with the same seed see the same images in the same order. The same
    command continues a study that was stopped or killed; for a finished one it writes the results again.
    """

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """A study's file (docs/studies.md), or the name of one that comes with selkern, such as mixers; without it, they
    are listed."""
    data: str | None = None
    """What to train on, for a study whose file leaves it open: a folder, .csv or .parquet."""
    output: Path = Path("runs/studies")
    """Folder in which the folders of the runs are made."""
    results: Path = Path("studies/results")
    """Folder in which NAME.json, NAME.md and NAME.svg are written."""
    jobs: int | None = None
    """Runs at a time on this machine; by default the number of cores divided by --threads, or 1 on a GPU."""
    threads: int = 1
    """Threads of each run; another number rounds sums differently."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are trained; on a GPU, two runs of the same study may differ."""
    short: bool = False
    """A trial of about a minute: one epoch of few scenes and two seeds. Its figures are no result, and are written
    to the folder of the runs."""
    engine: Literal["local", "ray"] = "local"
    """Where the runs are executed: processes of this machine, or the machines of a Ray cluster."""
    address: str | None = None
    """Address of the Ray cluster, such as auto; without it, Ray is started on this machine alone."""

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1024:
                raise UsageError(f"{name} is {value}", f"--{name}", "must be from 1 to 1024")
        if self.engine == "local" and self.address is not None:
            raise UsageError("an address without a cluster", "--address", "give --engine ray too")
        if self.engine == "ray" and self.jobs is not None:
            raise UsageError("the cluster decides how many runs it takes", "--jobs", "leave it out with --engine ray")
