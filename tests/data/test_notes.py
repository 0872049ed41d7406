"""Notes and errors are objects: their kinds and parts are read, never their wording."""

from __future__ import annotations

import copy
import pickle

import pytest

from selkern.data.split import Note, kind_of
from selkern.errors import DataError


def test_note_is_its_line_and_keeps_its_kind_when_copied() -> None:
    note = Note("class 'a' has no training image", "empty class")
    assert note == "class 'a' has no training image"
    for again in (copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert (again, kind_of(again)) == (note, "empty class")
    assert kind_of(Note("x")) == kind_of("no image in a/") == ""


@pytest.mark.parametrize("where", ["a | b.png", "a.png", ""])
def test_error_crosses_processes_with_its_parts(where: str) -> None:
    error = DataError("two\nlines | more", where, "fix\x1b[1m it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError and str(again) == str(error)
    assert (again.what, again.where, again.fix) == ("two lines; more", where, "fix\\x1b[1m it")


def test_bare_error_keeps_no_frame_alive() -> None:
    try:
        try:
            raise ValueError
        except ValueError as cause:
            raise DataError("broken", "a.png", "remove it") from cause
    except DataError as error:
        bare = error.bare()
    assert (bare.__traceback__, bare.__cause__, bare.__context__) == (None, None, None)
    assert str(bare) == "broken | a.png | remove it"
