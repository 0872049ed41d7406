"""Which tar files a folder, an address, or a pattern as `train-{000000..001023}.tar` means, and their splits."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from selkern.data.decode import show
from selkern.data.listing import Search, assign_splits, is_file, is_folder, split_word, vague_notes
from selkern.data.split import SPLITS
from selkern.data.stores import Store, is_address
from selkern.errors import DataError, printable

TAR = ".tar"
_MOST = 1_000_000  # shards of a pattern
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BETWEEN = "::"  # between several patterns, as WebDataset has it


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The shards of a data set."""

    root: str
    """The folder or address that the names of images leave out."""
    files: tuple[str, ...]
    """Paths or addresses, in lexical order within each split."""
    splits: tuple[str, ...]
    """train, val or test of each, as their names say; "" for all where none says it."""
    notes: tuple[str, ...] = ()
    """What was assumed."""
    beside: Callable[[str], str] = lambda name: name
    """The path or address of another file in their folder."""


def is_pattern(data: str) -> bool:
    """Whether data are named by a pattern of shards."""
    return data.lower().endswith(TAR) and bool(re.search(r"[{*?]|::", data))


def lies_there(data: str) -> bool:
    """Whether there is something at a path or pattern of this machine; of an address nothing is asked."""
    if is_address(data):
        return True
    if is_pattern(data):
        return any(map(is_file, _matching(data)))
    return is_file(data) or is_folder(data)


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern with {000..123} and {a,b} stands for, in order."""
    seen: set[str] = set()
    for part in pattern.split(_BETWEEN):
        for name in _expand(part):
            if name not in seen:  # {a,b{1..2}} is a, b1, a, b2
                seen.add(name)
                yield name
            if len(seen) > _MOST:
                raise DataError(f"a pattern of over {_MOST:,} shards", printable(pattern)[:200], "give fewer")


def _expand(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)  # an innermost pair
    if braces is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(braces[1])
    choices: Sequence[str] | Iterator[str] = braces[1].split(",")
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if last >= first else -1
        choices = (f"{number:0{len(numbers[1])}}" for number in range(first, last + step, step))
    for choice in choices:
        yield from _expand(pattern[: braces.start()] + choice + pattern[braces.end() :])


def find_shards(root: Path) -> list[str]:
    """The tar files in a folder, else in the folders in it; none where folders in it hold images."""
    search = Search()
    folders = search.folders(root)
    files = _tars(root, search) or [file for folder in folders for file in _tars(folder.path, search)]
    if not files or any(search.has_images(folder.path) for folder in folders) or search.loose(root):
        return []
    return files


def _tars(folder: str | Path, search: Search) -> list[str]:
    return [entry.path for entry in search.files(folder) if entry.name.lower().endswith(TAR)]


def local_shards(data: str, inside: Sequence[str] = ()) -> Shards:
    """The shards that a path or pattern of this machine means.

    Args:
        data: a tar file, a folder of them, or a pattern.
        inside: those in the folder.

    Raises:
        DataError: a shard is not there, or none is.
    """
    if inside:
        root = str(Path(data).expanduser())
        return _sorted(root, list(inside), lambda name: str(Path(root) / name))
    files = _matching(data)
    if not files:
        raise DataError("no such shard", show(data), "check the pattern")
    if lost := next((file for file in files if not is_file(file)), None):
        count = sum(not is_file(file) for file in files)
        more = f"; {count:,} of {len(files):,} shards are not there" if count > 1 else ""
        raise DataError(f"no such shard{more}", show(lost), "correct the numbers of the pattern, or fetch the shard")
    root = os.path.commonpath([os.path.dirname(file) or os.curdir for file in files])  # noqa: PTH120  no Path for each
    beside = _tars(root, Search()) if is_folder(root) else []
    return _with_others(_below(root), files, beside, lambda name: str(Path(root) / name))


def _below(root: str) -> str:
    return "" if root == os.curdir else root


def _matching(pattern: str) -> list[str]:
    """Files of this machine by a pattern; those with * and ? as they lie there, others whether they do or not."""
    files: list[str] = []
    for name in expand(str(Path(pattern).expanduser()) if pattern.startswith("~") else pattern):
        if re.search(r"[*?]", name):
            folder, _, last = name.rpartition(os.sep)
            if is_folder(folder or os.curdir):
                paths = _tars(folder or os.curdir, Search())
                inside = [path.removeprefix(f".{os.sep}") if not folder else path for path in paths]
                files += [file for file in inside if fnmatch.fnmatch(file.rpartition(os.sep)[2], last)]
        else:
            files.append(name)
    return list(dict.fromkeys(files))


def stored_shards(data: str, store: Store) -> Shards:
    """The shards that an address means: a folder, a tar, or a pattern.

    Raises:
        DataError: none is there.
    """
    if not data.lower().endswith(TAR):
        root = data.rstrip("/")
        files = [file for file in store.names(data) if _last(file).endswith(TAR)]
        if not files:
            fix = "give a pattern such as .../train-{000000..000123}.tar; web servers often list nothing"
            raise DataError("no .tar shards are listed there", printable(data), fix)
        return _sorted(root, files, lambda name: f"{root}/{name}")
    names = list(expand(data))
    root = names[0].rpartition("/")[0]
    listed: list[str] | None = None
    files = []
    for name in names:
        if re.search(r"[*?]", name.partition("://")[2]):
            listed = store.names(root) if listed is None else listed
            files += [file for file in listed if fnmatch.fnmatch(file, name)]
        else:
            files.append(name)
    if not files:
        raise DataError("no such shard", printable(data), "check the pattern; web servers often list nothing")
    beside = [] if {_word(file) for file in files} != {"train"} else listed or store.names(root)
    return _with_others(root, files, beside, lambda name: f"{root}/{name}")


def _last(file: str) -> str:
    return file.partition("?")[0].rpartition("/")[2].lower()


def _with_others(root: str, files: list[str], beside: Sequence[str], place: Callable[[str], str]) -> Shards:
    """Shards of train alone bring those of val and test that lie beside them."""
    if {_word(file) for file in files} == {"train"}:
        others = [file for file in beside if _last(file).endswith(TAR) and _word(file) not in ("", "train")]
        others = [other for other in others if other not in files]
        result = _sorted(root, [*files, *others], place)
        names = sorted({split for split in result.splits if split not in ("", "train")})
        note = f"{' and '.join(names)} shards lie beside those of train and are taken too" if others else ""
        return Shards(**{**vars(result), "notes": (*result.notes, *([note] if note else []))})
    return _sorted(root, files, place)


def _sorted(root: str, files: list[str], place: Callable[[str], str]) -> Shards:
    """The shards of each split."""
    words = {file: _word(file[len(root) :] if file.startswith(root) else file) for file in files}
    meant = {"": "", **assign_splits(set(words.values()))}
    by_split = {split: sorted(file for file in files if meant[words[file]] == split) for split in (*SPLITS, "")}
    notes = vague_notes(meant)
    plain = by_split[""]
    if plain and len(plain) < len(files):
        more = f" and {len(plain) - 1:,} more" if len(plain) > 1 else ""
        notes += (f"ignored: {printable(plain[0].rpartition('/')[2])}{more} (no split in the name)",)
        by_split[""] = []
    chosen = [(file, split) for split, some in by_split.items() for file in some]
    return Shards(
        root=root,
        files=tuple(file for file, _ in chosen),
        splits=tuple(split for _, split in chosen),
        notes=notes,
        beside=place,
    )


def _word(file: str) -> str:
    """The word for a split in a shard's name (train-000012.tar, imagenet1k-validation-00.tar), else in its folders."""
    path = PurePosixPath(file.partition("://")[2].partition("?")[0] or file.replace(os.sep, "/"))
    for part in (path.stem, *reversed(path.parent.parts)):
        words = {word for piece in re.split(r"[\W_\d]+", part) if (word := split_word(piece))}
        if len(words) == 1:
            return words.pop()
    return ""
