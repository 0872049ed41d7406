"""What lies in folders: the images below them, and what is left out."""

from __future__ import annotations

import bisect
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from selkern.data.decode import FORMATS, HEIF_SUFFIXES, IMAGE_SUFFIXES, has_heif, is_heif, read_header, show
from selkern.data.split import LeftOut, Note
from selkern.errors import DataError, printable
from selkern.progress import advance_open

# The first of these that no clearer word is used for.
_MEANT = {
    "train": ("train",),
    "training": ("train",),
    "val": ("val",),
    "valid": ("val",),
    "validation": ("val",),
    "validate": ("val",),
    "test": ("test",),
    "testing": ("test",),
    "dev": ("val",),
    "development": ("val",),
    "eval": ("val", "test"),
    "evaluation": ("val", "test"),
}
VAGUE = frozenset({"dev", "development", "eval", "evaluation"})  # whose meaning depends on what else there is
_BESIDE = "images?|imgs?|pictures?|pics?|photos?|data|datasets?|sets?|splits?|folders?|files?|samples?|crops?"
_NAME = re.compile(rf"(?:{_BESIDE})*({'|'.join(sorted(_MEANT, key=len, reverse=True))})(?:{_BESIDE})*")


def split_word(text: str) -> str:
    """The word for a split in "Training", "train_images", "testset" or "val2017"; empty for another text."""
    result = _NAME.fullmatch(re.sub(r"[\W\d_]+", "", text.lower()))
    return result[1] if result else ""


def split_words(names: Sequence[str]) -> dict[str, str]:
    """{name: its word for a split, or empty} of folders that lie side by side.

    What several of them share besides does not count: birds_train and birds_test are splits.
    """
    words = {name: split_word(name) for name in names}
    alike: dict[tuple[str, ...], dict[str, str]] = {}  # the rest of a name -> {name: word}
    for name in names:
        pieces = re.findall("[^\\W\\d_]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name))
        hits = [piece for piece in pieces if split_word(piece)]
        if len(hits) == 1:
            rest = tuple(piece.lower() for piece in pieces if piece not in hits)
            alike.setdefault(rest, {})[name] = split_word(hits[0])
    for group in alike.values():
        words |= group if len(set(group.values())) > 1 else {}
    return words


def assign_splits(words: Collection[str]) -> dict[str, str]:
    """{word: train, val or test} for words of ``split_word`` that are used side by side."""
    meant = {word: _MEANT[word][0] for word in words if word and word not in VAGUE}
    for word in sorted(VAGUE.intersection(words)):  # dev before eval
        free = [split for split in _MEANT[word] if split not in meant.values()]
        meant[word] = free[0] if free else _MEANT[word][0]
    return meant


def vague_notes(meant: Mapping[str, str]) -> tuple[str, ...]:
    """What was assumed of the words of ``assign_splits`` that could mean something else."""
    return tuple(f"split {word!r} is taken for {meant[word]}" for word in sorted(VAGUE.intersection(meant)))


_MAX_DEPTH, _MAX_VISITS = 100, 100  # folders below each other, and ways that lead into one folder
ARROW = "Arrow tables, as `save_to_disk` of datasets writes them: write Parquet by its `to_parquet`"
_SHOWN = 5  # names or suffixes in a note
_TRIED = 1000  # files of a strange suffix that are opened, as long as none of them is an image
# What archives, file servers, systems and programs put beside the user's own folders; dot names are such too.
_MADE_BY_SYSTEMS = frozenset(
    {
        "__macosx",
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "__pycache__",
        "node_modules",
    }
)
_COMPANIONS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_SURE = frozenset({"JPEG", "PNG", "WEBP", "TIFF", "GIF"})  # their first bytes say it; of others the header must be read
# Most of them are TIFF files by their first bytes, of which Pillow would read a thumbnail.
_RAW = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw", ".x3f"}
)


@dataclass
class _Contents:
    """What lies in a folder itself, looked at once."""

    folders: list[os.DirEntry[str]] = field(default_factory=list)
    files: str = ""
    """Their names, one after the other with a NUL between: of a million, strings would take 100 MB."""
    ignored: dict[str, str] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)


class Search:
    """Looks for images below folders, and keeps account of what else lies there."""

    def __init__(self) -> None:
        self._seen: dict[str, _Contents] = {}
        self._left_out: Counter[str] = Counter()  # suffix -> files
        self._tried: Counter[str] = Counter()  # suffix, of which no file was an image yet -> files opened
        self._ignored: dict[str, str] = {}  # path of a folder -> its name
        self._dead: dict[str, None] = {}  # links that lead nowhere, in order

    def images(self, folder: str | Path, root: str | Path | None = None) -> list[str]:
        """Every image file below a folder, in lexical order.

        Args:
            folder: where to look. Links are followed, but never back into a folder above them.
            root: a folder above, from which on that holds; `folder` itself by default.
        """
        return [f"{within}/{name}" for within, names in self.runs(folder, root) for name in names]

    def runs(self, folder: str | Path, root: str | Path | None = None) -> Iterator[tuple[str, list[str]]]:
        """The same by folder: (a folder, names of images in it), in the order of ``images``."""
        steps = [Path(folder), *Path(folder).parents]
        above = steps[1 : steps.index(Path(root)) + 1] if root is not None and Path(root) in steps else []
        return self._walk(str(folder), tuple(map(_identity, above)), Counter())

    def has_images(self, folder: str | Path) -> bool:
        """Whether there is an image below a folder."""
        aside = Search()
        aside._seen = self._seen
        return next(aside._walk(str(folder), (), Counter()), None) is not None

    def folders(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """The folders in a folder, in lexical order."""
        contents = self._look(folder)
        self._ignored |= contents.ignored
        return list(contents.folders)

    def files(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """The files in a folder, in lexical order."""
        names = set(self._names(self._look(folder)))
        return [entry for entry in _scan(folder) if entry.name in names]

    def loose(self, folder: str | Path) -> list[str]:
        """The images in a folder itself."""
        aside = Search()
        names = self._names(self._look(folder))
        return [f"{folder}/{name}" for name in names if aside._is_image(folder, name)]

    @property
    def visited(self) -> list[str]:
        """The folders that were looked into."""
        return list(self._seen)

    def notes(self) -> Iterator[str]:
        """What was left out, and why."""
        if self._ignored:
            names = sorted(set(self._ignored.values()))
            yield f"ignored: folders that systems and programs make ({some(f'{name}/' for name in names)})"
        if self._dead:
            links = (
                f"{len(self._dead):,} links that lead nowhere" if len(self._dead) > 1 else "a link that leads nowhere"
            )
            yield Note(f"left out: {links} ({some(map(show, self._dead))})", "dead links")
        counts = sorted(self._left_out.items(), key=lambda item: (-item[1], item[0]))
        plain = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts if not _hint(suffix)]
        if plain:
            yield f"left out: {some(plain)} (no images of a kind that is read)"
        for suffix, count in counts:
            if hint := _hint(suffix):
                yield f"left out: {count:,} {suffix} ({hint})"

    def dead_links(self) -> list[LeftOut]:
        """Links that lead nowhere."""
        return [LeftOut(show(link), "the link leads nowhere") for link in self._dead]

    def _walk(
        self, folder: str, above: tuple[tuple[int, int], ...], ways: Counter[tuple[int, int]]
    ) -> Iterator[tuple[str, list[str]]]:
        """Images below a folder, as ``runs``; `above` are the folders it lies in, `ways` how often each was entered."""
        here = _identity(folder)
        if here in above:  # a link back up: its images are listed already
            return
        ways[here] += 1
        if ways[here] > _MAX_VISITS:  # links in n folders can lead 2^n ways
            raise DataError(f"links lead into this folder over {_MAX_VISITS} times", show(folder), "remove the links")
        if len(above) > _MAX_DEPTH:
            raise DataError(f"folders lie more than {_MAX_DEPTH} deep", show(folder)[-200:], "move the images up")
        contents = self._look(folder)
        names = self._names(contents)
        start = 0
        for inner in contents.folders:  # in lexical order among the files
            end = bisect.bisect(names, inner.name, start)
            yield from self._run(folder, names[start:end])
            yield from self._walk(inner.path, (*above, here), ways)
            start = end
        yield from self._run(folder, names[start:])

    def _run(self, folder: str, names: list[str]) -> Iterator[tuple[str, list[str]]]:
        images = [name for name in names if self._is_image(folder, name)]
        if len(images) < len(names):
            self._left_out.update(map(_suffix, set(names).difference(images)))
        if images:
            advance_open(len(images))
            yield folder, images

    def _names(self, contents: _Contents) -> list[str]:
        """The files in a folder, in lexical order, of which account is taken."""
        self._ignored |= contents.ignored
        self._dead |= dict.fromkeys(contents.dead)
        return contents.files.split("\0") if contents.files else []

    def _look(self, folder: str | Path) -> _Contents:
        key = os.fspath(folder)
        if key not in self._seen:
            contents, files = _Contents(), []
            for entry in _scan(folder):
                if not _is_own(entry, contents):
                    continue
                if is_folder(entry):
                    contents.folders.append(entry)
                elif is_file(entry):
                    files.append(entry.name)
            contents.files = "\0".join(files)
            self._seen[key] = contents
        return self._seen[key]

    def _is_image(self, folder: str | Path, name: str) -> bool:
        """By suffix, or, where that says nothing, by the first bytes."""
        full = name[name.rfind(".") :].lower()
        if full in IMAGE_SUFFIXES:
            return True
        suffix = _suffix(name)
        if full in _RAW or (suffix and self._tried[suffix] >= _TRIED):
            return False
        if not _holds_image(f"{folder}/{name}"):
            self._tried[suffix] += 1
            return False
        self._tried[suffix] = -(1 << 62)  # such files can be images: all of them are opened
        return True


def _is_own(entry: os.DirEntry[str], contents: _Contents) -> bool:
    """Whether an entry is the user's, and no link that leads nowhere; what is not goes into the account."""
    name = entry.name.casefold()
    if name.startswith(".") or name in _MADE_BY_SYSTEMS:
        if is_folder(entry):
            contents.ignored[entry.path] = printable(entry.name)
        return False
    if name in _COMPANIONS:
        return False
    if name == "runs" and is_file(f"{entry.path}/latest.txt"):  # our own: training in the folder of the images
        contents.ignored[entry.path] = entry.name
        return False
    if entry.is_symlink() and not _leads_somewhere(entry.path):
        contents.dead.append(entry.path)
        return False
    return True


def find_images(folder: Path) -> list[Path]:
    """Every image file below ``folder``, in lexical order."""
    return [Path(path) for path in Search().images(folder)]


def is_file(path: str | Path | os.DirEntry[str]) -> bool:
    """Whether there is such a file; False also for a name that none can have, a link to itself, a pipe, a device."""
    try:
        return path.is_file() if isinstance(path, os.DirEntry) else Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path | os.DirEntry[str]) -> bool:
    """Whether there is such a folder; False also for a name that none can have, or a link to itself."""
    try:
        return path.is_dir() if isinstance(path, os.DirEntry) else Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _leads_somewhere(link: str) -> bool:
    try:
        return Path(link).exists()
    except OSError:  # a link to itself, in some versions of Python
        return False


def some(texts: Iterable[str]) -> str:
    """The first of some texts, and how many more there are."""
    texts = list(texts)
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder in lexical order; DataError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        fix = "check the name and rights"
        raise DataError(f"cannot read the folder ({error.strerror})", show(folder), fix) from error


def _identity(folder: str | Path) -> tuple[int, int]:
    """What two ways into the same folder have in common."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    """The suffix by which a file is counted; empty where what follows the last dot is hardly one."""
    suffix = Path(name).suffix.lower()
    return suffix if re.fullmatch(r"\.\w{1,10}", suffix) else ""


def _hint(suffix: str) -> str:
    """What to do with images that are not read; empty for what is no image."""
    if suffix in _RAW:
        return "raw images of a camera: export them as JPEG or TIFF"
    if suffix == ".arrow":
        return ARROW
    lacks_heif = suffix in HEIF_SUFFIXES and not has_heif()
    return "HEIC: pip install 'selkern[heif]' to read them" if lacks_heif else ""


def _holds_image(file: str) -> bool:
    """Whether a file's content is an image of those formats that are read."""
    try:
        with Path(file).open("rb") as stream:
            head = stream.read(64)
    except OSError:
        return False
    if is_heif(head):
        return has_heif()
    Image.init()
    kind = next((name for name in FORMATS if name in Image.OPEN and _accepts(name, head)), None)
    if kind is None or kind in _SURE:
        return kind is not None
    try:
        read_header(Path(file))
    except DataError:
        return False
    return True


def _accepts(kind: str, head: bytes) -> bool:
    accept = Image.OPEN[kind][1]
    return accept is not None and bool(accept(head))
