"""The data of a run, wherever they lie now, and split as the run had them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from selkern.data.identity import fingerprints
from selkern.data.shard_names import lies_there
from selkern.data.sources import Source, open_source
from selkern.data.split import Joined, Split, ahead, fingerprint, relative, whole
from selkern.data.splitting import digest, saved_rows
from selkern.data.stores import is_address
from selkern.data.survey import evenly
from selkern.data.table_options import TableOptions
from selkern.errors import CheckpointError, DataError, SelkernError
from selkern.io import write_atomic
from selkern.train.network import Construction
from selkern.train.options import TrainOptions, read_options
from selkern.train.run_folder import RunFolder

_LARGEST = 1 << 26  # bytes of an inputs.json; 100,000 images make 6,000,000

Prints = Callable[[], "list[str]"]  # fingerprints of a split's images, in its order


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run remembers of what it was started on."""

    data: str
    """Absolute, links resolved; empty for data that lie in no file."""
    beside: str
    """The same, from the run's folder."""
    images: int
    """How many there are in all splits."""
    split: str
    """`saved.digest` of split.csv."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the images, by their names in split.csv; of an even sample where there are very many."""
    weights: str = ""
    """The file of the first weights, absolute; empty for random ones."""
    norms: Mapping[str, Any] = field(default_factory=dict)
    """The network's norms, which it may have from those weights."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """How it is built, as `Construction.to_dict` says."""

    def moved(self, folder: Path, data: str) -> Inputs:
        """With the data at another place."""
        return replace(self, data=resolved(data), beside=_from(folder, resolved(data)))


def resolved(data: str) -> str:
    """A path absolute and without links; empty for data that lie in no file."""
    if data == "digits" or data.startswith("digits:") or not data.strip():
        return ""
    if is_address(data):
        return data
    try:
        return str(Path(data).expanduser().resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links; ~name, where nobody is called so
        return data


def write_inputs(folder: Path, given: str, source: Source, weights: Path | None, how: Construction, split: str) -> None:
    """Read the images' bytes, as `fingerprints` does, and write a run's inputs.json.

    Args:
        folder: of the run.
        given: the data, as the user wrote it.
        source: opened as the run does.
        weights: what the run starts from.
        how: its network is built.
        split: `digest` of its split.csv; empty where it has none.
    """
    data = resolved(given)
    inputs = Inputs(
        data=data,
        beside=_from(folder, data),
        images=sum(map(len, source.parts)),
        split=split,
        fingerprints=fingerprints(source),
        weights="" if weights is None else str(weights.resolve()),
        norms=dict(how.norms),
        network=how.to_dict(),
    )
    save_inputs(folder, inputs)


def save_inputs(folder: Path, inputs: Inputs) -> None:
    """Write a run's inputs.json."""
    values = asdict(inputs)
    if not inputs.network:  # versions that do not know of it read the file too
        del values["network"]
    write_atomic(folder / "inputs.json", json.dumps(values, indent=0))


def read_inputs(folder: Path) -> Inputs | None:
    """A run's inputs.json; None where it has none. Raises CheckpointError for one that is not as it was written."""
    file = folder / "inputs.json"
    if not file.is_file():
        return None
    fix = "restore it from a copy, or move it away"
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST:,} bytes")
        values = json.loads(file.read_text(encoding="utf-8"))
        inputs = Inputs(**values)
        texts = (inputs.data, inputs.beside, inputs.split, inputs.weights)
        tables = (inputs.fingerprints, inputs.norms)
        if not all(isinstance(text, str) for text in texts) or type(inputs.images) is not int:
            raise ValueError("a value of a wrong type")
        if not all(isinstance(table, dict) and all(isinstance(v, str) for v in table.values()) for table in tables):
            raise ValueError("a table of a wrong type")
        if not isinstance(inputs.network, dict):
            raise ValueError("a network of a wrong type")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not what was written ({error})"[:200], str(file), fix) from error
    return inputs


def _from(folder: Path, data: str) -> str:
    try:
        return os.path.relpath(data, folder.resolve()) if data and not is_address(data) else ""
    except ValueError:  # another drive
        return ""


_BY_NAME = 0.9  # share of a run's images that have to be there where they can be known by their names alone
_COMPARED = 1000  # images whose bytes are compared to know a moved or copied data set again


@dataclass(frozen=True)
class Agreement:
    """How far some data are those of a run."""

    images: int
    """There are in the data."""
    known: int
    """The run had."""
    shared: int
    """Have a name that is in the run's split.csv."""
    compared: int
    """Of those, whose bytes could be compared."""
    same: int
    """Of those, the same."""

    @property
    def names(self) -> bool:
        """Whether the names are those of the run's images, but for less than half on either side."""
        return 2 * self.shared >= max(self.images, self.known)

    @property
    def holds(self) -> bool:
        """Whether the images are, as far as can be known."""
        return self.names and 2 * self.same >= self.compared


class RunData:
    """What is known of the data of a run.

    Args:
        run: its folder.

    Attributes:
        options: the run's.
        inputs: what it remembers; None for a run of an earlier version.
    Raises:
        CheckpointError: the folder's files are not as they were written.
        DataError: split.csv cannot be read, or was changed since.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.options: TrainOptions = read_options(run.path)
        self.inputs: Inputs | None = read_inputs(run.path)
        self._prints: Mapping[str, str] | None = None if self.inputs is None else self.inputs.fingerprints

        self._made_again: list[tuple[str, str, str]] = []  # the split, where its file is gone

        if self.saved and self.inputs is not None and self.inputs.split != digest(saved_rows(run.split_csv)):
            what = "the run's split was changed since the run wrote it"
            raise DataError(what, str(run.split_csv), "restore it from a copy")

    @property
    def saved(self) -> bool:
        """Whether the run's split.csv is there."""
        return self.run.split_csv.is_file()

    @cached_property
    def part_of(self) -> dict[str, str]:
        """{image, by its name: train, val or test}; none for data that are drawn, or where the split is not known."""
        rows = saved_rows(self.run.split_csv) if self.saved else self._made_again
        return {name: part for name, _, part in rows}

    @property
    def drawn(self) -> bool:
        """Whether the data lie in no file."""
        return not resolved(self.options.data)

    def prints(self, apart: str = "") -> Mapping[str, str]:
        """{image, by its name: its fingerprint}; where the run kept none, those of its data as they are now, if found.

        Args:
            apart: a place that is not to be taken for that of the run's data.
        """
        if self._prints is None:
            place = next(self._places(), "")
            if not (self.part_of and place) or same_place(place, apart):
                return {}
            self._prints = {}
            with suppress(SelkernError):
                self._prints = fingerprints(self.open_at(place))
        return self._prints

    def find(self) -> str:
        """Where the data are: where they were, beside the run if both were moved, or as they were given.

        Raises:
            DataError: nowhere.
        """
        if self.drawn:
            return self.options.data
        places = list(self._places())
        for place in places:
            if (len(places) == 1 and self.inputs is None) or (self.inputs and same_place(place, self.inputs.data)):
                return place
            with suppress(DataError):
                if self.agreement(self._listed(place), place).holds:
                    return place
        lost = self.inputs.data if self.inputs else self.options.data
        raise DataError("the run's data are not there any more", lost, "give --data and where they are now")

    def is_own(self, data: str, classes: Sequence[str] | None, table: TableOptions | None = None) -> tuple[bool, str]:
        """(whether data are the run's, at the same place or another; what is to be said of that).

        Raises:
            DataError: as `open_source` says.
        """
        own, line, _ = self._is_own(data, classes, table)
        return own, line

    def _is_own(
        self, data: str, classes: Sequence[str] | None, table: TableOptions | None = None
    ) -> tuple[bool, str, Agreement | None]:
        """As `is_own`, and how far the images agree; None where it is known without listing them."""
        if self.drawn or not resolved(data):
            return data == self.options.data, "", None
        if self.inputs is not None and same_place(data, self.inputs.data):
            return True, "", None
        agreed = self.agreement(self._listed(data, classes, table), data)
        n, of = f"{agreed.shared:,}", f"{agreed.images:,} images"
        line = ""
        if agreed.holds and not agreed.compared and not any(same_place(data, place) for place in self._places()):
            line = f"{n} of {of} have the names of the run's, whose bytes are not known: taken for the same"
        elif agreed.names and not agreed.holds:
            line = f"{n} of {of} have the names of the run's, but other bytes: taken for other images. If they are the "
            line += "run's, resized or stored anew, most of them were trained on"
        return agreed.holds, line, agreed

    def _places(self) -> Iterator[str]:
        """Existing paths that may be the data's, each once, likeliest first, as given where that is the same."""
        given, inputs, here = self.options.data, self.inputs, self.run.path.resolve()
        if self.drawn:
            return
        if inputs is not None:
            first = given if same_place(given, inputs.data) else inputs.data
            places = [first, *([str((here / inputs.beside).resolve())] if inputs.beside else []), given]
        else:  # of an earlier version: from where the run was started, or from here
            output = Path(self.options.output)
            up = len(Path("/" / output).parts)  # folders from that place to the run, less one
            plain = not output.is_absolute() and ".." not in output.parts and up < len(here.parents)
            places = [str(here.parents[up] / given) if plain else given, given]
            places = [given if same_place(places[0], given) else places[0], given]
        seen: set[str] = set()
        for place in places:
            if resolved(place) not in seen and lies_there(resolved(place)):
                seen.add(resolved(place))
                yield place

    def _listed(self, data: str, classes: Sequence[str] | None = None, table: TableOptions | None = None) -> Source:
        """All images of some data, whatever their splits."""
        table = table or self.options.table
        return open_source(data, classes=classes, cut=False, on_bad="skip", table=table)

    def agreement(self, source: Source, place: str) -> Agreement:
        """How far the images of a source, which lies at a place, are the run's: by their names and by their bytes."""
        split, part_of = whole(source), self.part_of
        number_of = {relative(split.where(index), source.root): index for index in range(len(split))}
        shared = [name for name in number_of if name in part_of]
        prints = self.prints(place) if shared else {}
        known = [name for name in shared if name in prints]
        some = evenly(len(known), _COMPARED)
        same = sum(fingerprint(split, number_of[known[at]]) == prints[known[at]] for at in some)
        return Agreement(len(split), len(part_of), len(shared), len(some), same)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class list that the run was started with; None where its classes.json cannot be read."""
        try:
            names = json.loads((self.run.path / "classes.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None

    def place(self, data: str | None) -> str:
        """Where to go on with the run: at `data`, or where its own are found.

        Raises:
            DataError: nothing there, or other data than the run's.
        """
        if data is None:
            return self.find()
        own, line, agreed = self._is_own(data, self.classes)
        if not own:
            what = line.partition(": ")[0] if line else "not the images that the run was started on"
            raise DataError(what, data, "give the run's data, or start a new run with --weights")
        if line and agreed and agreed.shared < _BY_NAME * agreed.known:  # by the names alone
            what = f"{agreed.shared:,} of {agreed.known:,} images have the names of the run's"
            raise DataError(
                f"{what}, whose bytes are not known",
                data,
                "give all of the run's data, or start a new run with --weights",
            )
        return data

    def keep(self, place: str, source: Source, how: Construction) -> None:
        """Remember where the data lie now, and what they are where the run did not remember that yet."""
        if self.inputs is None:
            split = digest(source.split_rows()) if source.kind != "digits" else ""
            write_inputs(self.run.path, place, source, None, how, split)
        elif not self.drawn and not same_place(place, self.inputs.data):
            save_inputs(self.run.path, self.inputs.moved(self.run.path, place))

    def changed(self, source: Source) -> list[str]:
        """Images of a source, by their names, whose bytes are not what the run remembers; a sample is looked at."""
        if self.inputs is None or not self.inputs.fingerprints:
            return []
        now = fingerprints(source, most=_COMPARED)
        return [name for name, text in self.inputs.fingerprints.items() if now.get(name, text) != text]

    def open_at(self, data: str, *, classes: Sequence[str] | None = None, keep_gone: bool = False) -> Source:
        """The data at a place, split as the run had them.

        Raises:
            DataError: as `open_source` says; or split.csv is gone or was changed, and the split cannot be made again.
        """
        source = open_source(
            data,
            seed=self.options.seed,
            val_fraction=self.options.val_fraction,
            classes=classes,
            split_csv=self.run.split_csv if self.saved else None,
            keep_gone=keep_gone,
            on_bad="skip" if self.saved else self.options.on_bad_image,  # of a saved split, what is gone is no error
            table=self.options.table,
        )
        if not self.saved:  # made again by the run's seed
            rows = list(source.split_rows())
            if self.inputs is not None and self.inputs.split not in ("", digest(rows)):
                what = "the run's split is gone, and the data give another one now"
                raise DataError(what, str(self.run.split_csv), "restore it from a copy")
            self._made_again = rows
            self.__dict__.pop("part_of", None)
        return source


def lineage(weights: Path | None) -> Iterator[RunData]:
    """The run that a weights file lies in, that of the weights it began with, and so on, as far as they are there."""
    seen: set[Path] = set()
    while weights is not None and (folder := weights.parent.parent) not in seen:
        if not (folder / "config.yaml").is_file():
            return
        seen.add(folder)
        try:
            known = RunData(RunFolder(folder))
        except SelkernError:
            return
        yield known
        weights = Path(known.inputs.weights) if known.inputs is not None and known.inputs.weights else None


def parts_before(weights: Path | None, data: str, table: TableOptions) -> Mapping[str, str]:
    """{image, by its name: its part} in the run that weights are of, where the data are those of that run."""
    with suppress(SelkernError):
        for known in lineage(weights):
            if known.part_of and known.is_own(data, None, table)[0]:
                return known.part_of
    return {}


def same_place(one: str, other: str) -> bool:
    """Whether two paths lead to the same file or folder."""
    try:
        return resolved(one) == resolved(other) or Path(resolved(one)).samefile(resolved(other))
    except (OSError, ValueError):
        return False


def trained_before(weights: Path | None, source: Source, split: Split, prints: Prints | None = None) -> list[str]:
    """A warning for each run that weights began with, or lie in, which trained on images of a split.

    Args:
        prints: of the split, where they are wanted elsewhere too.
    """
    lines, prints = [], prints or prints_of(split)
    for known in lineage(weights):
        seen = None if known.drawn else seen_before(known, source, split, prints, own=False)
        if seen is not None and seen["train"]:
            what = f"{seen['train']:,} of {len(split):,} {split.name} images were trained on in {known.run.path}"
            lines.append(f"warning: {what}, with whose weights this began: the figures are not those of new images")
    return lines


def prints_of(split: Split) -> Prints:
    """What gives the fingerprint of every image of a split, reading their bytes when first asked, and once."""
    return cache(lambda: [fingerprint(split, index) for index in ahead(split, range(len(split)))])


def seen_before(
    known: RunData, source: Source, split: Split, prints_of_split: Prints, *, own: bool
) -> Counter[str] | None:
    """How many images of a split were in each part of the run, by their bytes, else by name; "changed" ones.

    None where that cannot be known.
    """
    seen: Counter[str] = Counter()
    if known.drawn:
        if source.kind == "digits":  # the digits in them are those of the run's, in each part
            for each in split.parts if isinstance(split, Joined) else (split,):
                seen[each.name] += len(each)
        return seen
    if not known.part_of:  # split.csv is gone
        with suppress(SelkernError):
            known.open_at(known.find())
    prints, part_of = known.prints("" if own else source.name), known.part_of
    if not part_of or not (own or prints):
        return None
    part_by: dict[str, str] = {}
    for name, text in prints.items():
        if part_by.get(text) != "train" and name in part_of:
            part_by[text] = part_of[name]
    for index, text in enumerate(prints_of_split()):
        name = relative(split.where(index), source.root)
        before = part_by.get(text, part_of.get(name, "") if own else "")
        seen[before] += 1
        seen["changed"] += own and bool(text) and prints.get(name, text) != text
    return seen
