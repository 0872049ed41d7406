"""Runs as processes of this machine, some at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from selkern.errors import Interrupted
from selkern.study.process import Child, end, finish, start
from selkern.study.progress import Progress
from selkern.train.stop import StopRequest

_GLANCE = 0.1  # seconds between looks at the processes


def work(folders: Sequence[Path], jobs: int, progress: Progress, keep: Collection[int] = ()) -> None:
    """Do the tasks of all folders in their order, `jobs` at a time.

    Args:
        keep: open files that the processes inherit, such as a lock that is to last as long as they do.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the processes have saved their states and ended.
        SelkernError: a run failed; the others have ended likewise.
    """
    waiting = list(folders)
    running: dict[Path, Child] = {}
    try:
        with StopRequest() as stop:
            while waiting or running:
                while waiting and len(running) < jobs:
                    folder = waiting.pop(0)
                    running[folder] = start(folder, keep)
                for folder, child in list(running.items()):
                    if (code := child.poll()) is not None:
                        del running[folder]
                        end([child])
                        finish(folder, code, progress)
                if stop.signum:
                    raise Interrupted(stop.signum, "stopped, states saved; the same command continues")
                progress.show([folder.name for folder in running])
                time.sleep(_GLANCE)
    finally:
        end(running.values())
