"""Class names as people write them: which are the same text, and which look like a slip."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from selkern.data.columns import Coded

_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "nil", "-", "-1", "?", "undefined"})
_SHOWN = 3  # examples in a note
_MANY = 20  # classes from which on one for every second image looks like a column of names or texts


def same_text(name: str) -> str:
    """The form in which equal texts are equal: an accented letter has one code or two, which nobody can see (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def unify(names: Coded, classes: Sequence[str] = ()) -> tuple[Coded, tuple[str, ...], tuple[str, ...]]:
    """Names that are the same text in two Unicode forms become one of them.

    Args:
        names: the class name of each image.
        classes: further names, of which images may lack.

    Returns:
        (names, classes without doubles, notes).
    """
    forms: dict[str, list[str]] = {}
    for name in dict.fromkeys((*names.values, *classes)):
        forms.setdefault(same_text(name), []).append(name)
    one = {name: text for text, written in forms.items() for name in written if len(written) > 1}
    if not one:
        return names, tuple(classes), ()
    texts = sorted(set(one.values()))
    note = f"written in two Unicode forms (NFC and NFD), taken for one class: {_some(map(repr, texts), len(texts))}"
    renamed = names.renamed([one.get(name, name) for name in names.values])
    return renamed, tuple(dict.fromkeys(one.get(c, c) for c in classes)), (note,)


def doubtful(counts: Mapping[str, int], *, folders: bool = False) -> tuple[str, ...]:
    """Notes on class names that may be a slip.

    Args:
        counts: images of each class.
        folders: the names are those of folders, which nobody calls NaN by mistake.
    """
    notes = [
        f"class {name!r} ({counts[name]:,} images) reads like a missing label: if so, leave these images out"
        for name in sorted(counts)
        if name.strip().lower() in _MISSING and not folders
    ]
    if len(counts) > _MANY and 2 * len(counts) > sum(counts.values()):
        notes.append(f"{len(counts):,} classes for {sum(counts.values()):,} images: is this the column of the classes?")
    seen: set[str] = set()
    for key, what in ((_caseless, "case, spaces or dashes only"), (_number, "the writing of a number only")):
        alike = _alike(counts, key, seen)
        if alike:
            pairs = [" and ".join(f"{name!r} ({counts[name]:,})" for name in group) for group in alike]
            notes.append(f"classes that differ in {what}, kept apart: {_some(pairs, len(pairs))}")
    return tuple(notes)


def unknown_labels(names: Sequence[str], classes: Iterable[str]) -> str:
    """What to say of labels that are not among the classes: each, its number, and the class that it may mean.

    Args:
        names: that of each image.
        classes: those that are known.
    """
    near = {_caseless(name): name for name in classes}
    counts = Counter(names)
    words = [
        f"{name!r} ({count:,} image{'s' if count > 1 else ''}" + (f"; {near[key]!r}?)" if key in near else ")")
        for name, count in counts.most_common()
        for key in (_caseless(name),)
    ]
    what = "unknown label" if len(words) == 1 else f"{len(words):,} unknown labels:"
    return f"{what} {_some(words, len(words), 10)}"


def _alike(names: Iterable[str], key: Callable[[str], str | None], seen: set[str]) -> list[list[str]]:
    """Groups of two names and more that share a key; names in `seen` have a note, and more are added to them."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names) - seen):
        if (text := key(name)) is not None:
            groups.setdefault(text, []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    seen.update(name for group in alike for name in group)
    return alike


def _caseless(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w)[-_](?=\w)", " ", name).casefold().split())


def _number(name: str) -> str | None:
    """1, 01 and 1.0 are 1."""
    if not re.fullmatch(r"\s*[+-]?\d{1,15}(\.0*)?\s*", name):
        return None
    return str(int(name.strip().partition(".")[0]))


def _some(texts: Iterable[str], count: int, most: int = _SHOWN) -> str:
    shown = itertools.islice(texts, most)
    return ", ".join(shown) + (f" and {count - most:,} more" if count > most else "")
