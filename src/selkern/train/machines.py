"""What the processes of a run must have in common on several machines, checked before work that would be lost."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selkern.data.sources import Source
from selkern.errors import DataError, ResourceError, UsageError
from selkern.io import write_atomic
from selkern.train.distributed import Ranks
from selkern.train.options import TrainOptions, read_options
from selkern.train.run_folder import RunFolder

AGENTS = ".agents"  # in a run's folder: a line for each torchrun that has trained it
_LAG = 3.0  # s for which a network drive may not show a new file
# May differ from machine to machine: where things lie there, and what decides no number.
_OWN = ("data", "output", "name", "weights", "device", "workers", "threads", "timeout_minutes", "local_cache")


def require_shared(ranks: Ranks, folder: Path) -> None:
    """See that every process finds rank 0's folder under its path.

    Raises:
        ResourceError: one does not, on every rank; or the folder cannot be written to, on rank 0.
    """
    if ranks.world == 1:
        return
    probe = folder / f".seen-{secrets.token_hex(8)}.tmp"
    name = ranks.of_main(lambda: _written(probe)).name
    blind = [f"process {rank} on {host}" for rank, (seen, host) in enumerate(_sights(ranks, folder / name)) if not seen]
    if ranks.main:
        probe.unlink(missing_ok=True)
    if blind:
        fix = "give an --output that all machines see under the same path"
        raise ResourceError(f"{blind[0]} does not see the folder of the run", str(folder), fix)


def _written(probe: Path) -> Path:
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(probe, "")
    except OSError as error:
        raise ResourceError(f"cannot write ({error.strerror})", str(probe.parent), "give another --output") from error
    return probe


def _sights(ranks: Ranks, probe: Path) -> list[tuple[bool, str]]:
    """Whether each process sees a file, and the host of each."""
    end = time.monotonic() + _LAG
    while not probe.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    return ranks.gather((probe.is_file(), socket.gethostname()))


def require_alike(ranks: Ranks, options: TrainOptions, source: Source) -> None:
    """See that every process was given the same options and the same images.

    Raises:
        UsageError: other options, on every rank.
        DataError: other images, on every rank.
    """
    if ranks.world == 1:
        return
    every = ranks.gather((_flat(dataclasses.asdict(options)), _listed(source)))
    asked, listed = every[0]
    for rank, (other, theirs) in enumerate(every):
        for name in (name for name in asked if asked[name] != other[name]):
            flag = "--" + name.replace("_", "-")
            what = f"process {rank} has {other[name]!r}, process 0 {asked[name]!r}"
            raise UsageError(what, flag, "start the same command on every machine")
        if theirs != listed:
            what = f"process {rank} has {_counts(theirs)} images, process 0 {_counts(listed)}"
            more = " of other classes" if _counts(theirs) == _counts(listed) else ""
            raise DataError(what + more, options.data, "give every machine the same images")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Options by name, without those that may differ."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= _flat(value) if isinstance(value, dict) else {name: value}
    return {name: value for name, value in result.items() if name not in _OWN}


def _listed(source: Source) -> list[tuple[int, str]]:
    """Number and digest of the labels of the parts that all processes read."""
    splits = (source.train, source.val)
    return [(len(split), hashlib.sha256(split.labels.tobytes()).hexdigest()) for split in splits]


def _counts(listed: Iterable[tuple[int, str]]) -> str:
    return " + ".join(f"{count:,}" for count, _ in listed)


def agent() -> str:
    """The torchrun that started this process: machine, number, and when it began; empty without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return f"{socket.gethostname()} {parent} {began}".strip()


def begun(ranks: Ranks, options: TrainOptions) -> RunFolder | None:
    """The run that these processes' torchruns have begun, on every rank.

    torchrun starts all processes again where one is lost and where a machine comes or goes. How often it did, each
    machine counts for itself, and one that came anew begins at nought: any torchrun that was there before decides.
    """
    agents = set(ranks.gather(agent())) - {""}
    restarted = max(ranks.gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))) > 0
    path = ranks.of_main(lambda: _begun(options, agents, restarted=restarted))
    return None if path is None else RunFolder(path)


def _begun(options: TrainOptions, agents: set[str], *, restarted: bool) -> Path | None:
    run = RunFolder.started_with(options) if agents or restarted else None
    if run is None:
        return None
    if known := _known(run):
        return run.path if known & agents else None
    return run.path if restarted and not run.report.is_file() else None


def note_agents(ranks: Ranks, run: RunFolder) -> None:
    """Write down which torchruns train a run, beside those that did before; nothing without one."""
    agents = set(ranks.gather(agent())) - {""}
    if ranks.main and agents - (known := _known(run)):
        write_atomic(run.path / AGENTS, "".join(f"{line}\n" for line in sorted(known | agents)))


def _known(run: RunFolder) -> set[str]:
    file = run.path / AGENTS
    return set(file.read_text(errors="replace").splitlines()) if file.is_file() else set()


def shared_options(ranks: Ranks, run: RunFolder) -> TrainOptions:
    """The options of a run that goes on, read by every process in the folder that all of them see.

    Raises:
        CheckpointError: as `read_options` says, on every rank.
        ResourceError: as `require_shared` says.
    """
    ranks.of_main(lambda: read_options(run.path))
    require_shared(ranks, run.path)
    return read_options(run.path)
