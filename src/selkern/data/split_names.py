"""What people call the splits of their data: in the names of folders and files, and in the cells of tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

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
    found = _NAME.fullmatch(re.sub(r"[\W\d_]+", "", text.lower()))
    return found[1] if found else ""


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
