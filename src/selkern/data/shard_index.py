"""Where every sample of many shards lies, as arrays: made once, in parallel, and kept until a shard changes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selkern.data.columns import Coded, Files, Texts
from selkern.data.decode import show
from selkern.data.kept import kept_index
from selkern.data.stores import Files as Place
from selkern.data.stores import LocalFiles, Stamp
from selkern.data.tar_members import read_members
from selkern.errors import ResourceError
from selkern.progress import doing

_FORM = 1  # of the arrays, and of what counts as a sample: kept indexes of others are not taken
_REQUESTS = 16  # of a store at once
_FEW = 64 << 20  # bytes of shards that this process goes through itself
Arrays = Mapping[str, NDArray[Any]]


class ShardIndex:
    """The samples of some shards, in the order of the shards.

    Args:
        files: paths or addresses.
        stamps: of each.
        arrays: as `_join` makes them.
    """

    def __init__(self, files: Sequence[str], stamps: Sequence[Stamp], arrays: Arrays) -> None:
        self.files, self.stamps = tuple(files), tuple(stamps)
        self.shard: NDArray[np.int32] = arrays["shard"]
        """(n,) the shard of each sample."""
        self.offset: NDArray[np.int64] = arrays["offset"]
        """(n,) where its image begins in the shard, bytes."""
        self.length: NDArray[np.int32] = arrays["length"]
        """(n,) bytes of its image."""
        self.label: NDArray[np.int32] = arrays["label"]
        """(n,) the place of its label in `labels`."""
        names = Texts(arrays["text"], arrays["ends"])
        self.wheres = Files(tuple(map(show, files)), self.shard, names, between=" member ")
        """(n,) where each image is: ``train-000012.tar member n01440764/x.jpg``."""
        said = json.loads(arrays["said"].tobytes())
        self.labels: tuple[str, ...] = tuple(said["labels"])
        """Every label that there is, as text."""
        self.bad: list[tuple[int, str, str]] = [tuple(one) for one in said["bad"]]
        """(shard, member or "", why it is no image with a label)."""
        self.others: Counter[str] = Counter(said["others"])
        """{suffix: members of it that are neither images nor labels}."""

    def __len__(self) -> int:
        return len(self.shard)


def open_index(files: Sequence[str], place: Place) -> tuple[ShardIndex, tuple[str, ...]]:
    """The index of some shards, and notes.

    Args:
        files: paths or addresses.
        place: where they lie.

    Raises:
        DataError: a shard is not there.
    """
    doing(f"looking at {len(files):,} shard{'s' * (len(files) != 1)}")
    with ThreadPoolExecutor(_REQUESTS) as pool:
        first = place.stamp(files[0])  # alone, so that the others share its connection
        stamps = [first, *pool.map(place.stamp, files[1:])]
    stamp = json.dumps([_FORM, [[stamp.size, stamp.version] for stamp in stamps]])
    name = json.dumps(["shards", *files])
    arrays, notes = kept_index(name, stamp, lambda: _build(files, stamps, place))
    return ShardIndex(files, stamps, arrays), notes


@dataclass(frozen=True)
class _Part:
    """What is kept of one shard."""

    names: Texts
    """(n,) of the images' members, printable."""
    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    label: Coded
    """(n,) as text."""
    bad: list[tuple[str, str]]
    """(member, "" for the shard itself; why it is no image with a label)."""
    others: Counter[str]


def _build(files: Sequence[str], stamps: Sequence[Stamp], place: Place) -> Arrays:
    parts = []
    for number, part in enumerate(_parts(files, stamps, place), start=1):
        doing(f"indexing shard {number:,}/{len(files):,}")
        parts.append(part)
    return _join(parts)


def _parts(files: Sequence[str], stamps: Sequence[Stamp], place: Place) -> Iterator[_Part]:
    """Each shard, in order: a store answers many at once, a disk is read by each core."""
    look = partial(_look, place)
    cores = min(_cores(), len(files))
    local = isinstance(place, LocalFiles)
    if local and (cores == 1 or sum(stamp.size for stamp in stamps) < _FEW):
        yield from map(look, files, stamps)
        return
    pool: Executor = ThreadPoolExecutor(_REQUESTS)
    if local:
        pool = ProcessPoolExecutor(cores, initializer=_serve, initargs=(os.getpid(),))
    try:
        yield from pool.map(look, files, stamps)
    except BrokenExecutor as error:
        fix = "the system may have run out of memory: start again with more of it free"
        raise ResourceError("a process that indexes shards was killed", show(files[0]), fix) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, and Ctrl+C, nobody waits for the rest


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(parent: int) -> None:
    """A process of the pool: Ctrl+C is for its parent, and it does not outlive a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _look(place: Place, file: str, stamp: Stamp) -> _Part:
    with place.open(file, stamp) as opened:
        members = read_members(opened)
    return _Part(
        names=Texts.of(map(show, members.names)),
        offset=np.array(members.offsets, dtype=np.int64),
        length=np.array(members.lengths, dtype=np.int32),
        label=Coded.of(members.labels),
        bad=[(show(name), reason) for name, reason in members.bad] + [("", members.broken)] * bool(members.broken),
        others=members.others,
    )


def _join(parts: Sequence[_Part]) -> Arrays:
    """One table of all shards' samples."""
    labels: dict[str, int] = {}
    codes = []
    for part in parts:
        table = np.array([labels.setdefault(value, len(labels)) for value in part.label.values], dtype=np.int32)
        codes.append(table[part.label.codes] if len(table) else part.label.codes)
    starts = np.cumsum([0, *(len(part.names.data) for part in parts)])
    bad = [(at, member, reason) for at, part in enumerate(parts) for member, reason in part.bad]
    others: Counter[str] = sum((part.others for part in parts), Counter())
    said = json.dumps({"labels": list(labels), "bad": bad, "others": others}).encode()
    return {
        "shard": np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.names) for part in parts]),
        "offset": np.concatenate([part.offset for part in parts]),
        "length": np.concatenate([part.length for part in parts]),
        "label": np.concatenate(codes),
        "text": np.concatenate([part.names.data for part in parts]),
        "ends": np.concatenate([part.names.ends + start for part, start in zip(parts, starts, strict=False)]),
        "said": np.frombuffer(said, dtype=np.uint8),
    }
