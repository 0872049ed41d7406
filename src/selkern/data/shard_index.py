"""Where every sample of many shards lies, as arrays: made once, in parallel, and kept until a shard changes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selkern.data.columns import Files, Texts
from selkern.data.decode import show
from selkern.data.kept import kept_index
from selkern.data.stores import Files as Place
from selkern.data.stores import LocalFiles, Stamp
from selkern.data.tar_members import Members, read_members
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
    doing(f"looking at {len(files):,} shards")
    with ThreadPoolExecutor(_REQUESTS) as pool:
        stamps = list(pool.map(place.stamp, files))
    stamp = json.dumps([_FORM, [[stamp.size, stamp.version] for stamp in stamps]])
    name = json.dumps(["shards", *files])
    arrays, notes = kept_index(name, stamp, lambda: _build(files, stamps, place))
    return ShardIndex(files, stamps, arrays), notes


def _build(files: Sequence[str], stamps: Sequence[Stamp], place: Place) -> Arrays:
    hits = []
    count = len(files)
    for number, members in enumerate(_members(files, stamps, place), start=1):
        doing(f"indexing shard {number:,}/{count:,}")
        hits.append(members)
    return _join(hits)


def _members(files: Sequence[str], stamps: Sequence[Stamp], place: Place) -> Iterator[Members]:
    """The samples of each shard, in order: a store answers many at once, a disk is read by each core."""
    look = partial(_look, place)
    cores = min(_cores(), len(files))
    local = isinstance(place, LocalFiles)
    if local and (cores == 1 or len(files) == 1 or sum(stamp.size for stamp in stamps) < _FEW):
        yield from map(look, files, stamps)
        return
    pool: Executor = ProcessPoolExecutor(cores) if local else ThreadPoolExecutor(_REQUESTS)
    with pool:
        yield from pool.map(look, files, stamps)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _look(place: Place, file: str, stamp: Stamp) -> Members:
    with place.open(file, stamp) as opened:
        return read_members(opened)


def _join(hits: Sequence[Members]) -> Arrays:
    """One table of all shards' samples."""
    codes: dict[str, int] = {}
    labels = [codes.setdefault(label, len(codes)) for members in hits for label in members.labels]
    names = Texts.of(show(name) for members in hits for name in members.names)
    bad = [(at, show(member), reason) for at, members in enumerate(hits) for member, reason in members.bad]
    bad += [(at, "", members.broken) for at, members in enumerate(hits) if members.broken]
    others: Counter[str] = sum((members.others for members in hits), Counter())
    said = json.dumps({"labels": list(codes), "bad": bad, "others": others}).encode()
    return {
        "shard": np.repeat(np.arange(len(hits), dtype=np.int32), [len(members.names) for members in hits]),
        "offset": _column(hits, lambda members: members.offsets, np.int64),
        "length": _column(hits, lambda members: members.lengths, np.int32),
        "label": np.array(labels, dtype=np.int32),
        "text": names.data,
        "ends": names.ends,
        "said": np.frombuffer(said, dtype=np.uint8),
    }


def _column(hits: Sequence[Members], of: Callable[[Members], list[int]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.array(of(members), dtype=dtype) for members in hits] or [np.zeros(0, dtype=dtype)])
