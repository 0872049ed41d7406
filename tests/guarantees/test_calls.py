"""Answers that a command may not give are noticed, and one that breaks off, hangs or eats memory is found."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from guarantees import bad_inputs
from guarantees.calls import Said, call, faults, prepared
from guarantees.cases import OK, Case, Place, make_place

ERROR = "error: what | where | what to do\n"


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    with prepared():
        yield


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.mark.parametrize(
    ("said", "part"),
    [
        (Said(3, "", ERROR, 0, 0, "Traceback ..."), "Traceback"),
        (Said(2, "", ERROR, 0, 0), "exit code 2, not 3"),
        (Said(0, "", "", 0, 0), "exit code 0, not 3"),
        (Said(3, "", "", 0, 0), "0 error lines"),
        (Said(3, "", ERROR + ERROR, 0, 0), "2 error lines"),
        (Said(3, "", "error: what | where\n", 0, 0), "2 parts"),
        (Said(3, "", "x\nTraceback (most recent call last)\n" + ERROR, 0, 0), "is printed"),
        (Said(3, "", "a.py:3: UserWarning: x\n" + ERROR, 0, 0), "is printed"),
        (Said(3, "\x1b[31m", ERROR, 0, 0), "control characters"),
        (Said(3, "", "error: what | elsewhere | fix\n", 0, 0), "'/file' is not in"),
    ],
)
def test_a_wrong_answer_is_found(said: Said, part: str) -> None:
    assert any(part in fault for fault in faults(said, (3,), ("/file",)))


def test_a_right_answer_is_right() -> None:
    assert faults(Said(3, "", "a line\n" + ERROR, 0, 0), (3,), ("where",)) == []
    assert faults(Said(0, "answer\n", "note: x\n", 0, 0), (0,)) == []


def _raise(_words: Sequence[str]) -> int:
    raise KeyError("x")


def _sleep(_words: Sequence[str]) -> int:
    time.sleep(60)
    return 0


def _die(_words: Sequence[str]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize(("main", "part"), [(_raise, "KeyError: 'x'"), (_sleep, "hangs"), (_die, "SIGKILL")])
def test_a_command_that_breaks_off_is_found(main: Callable[[Sequence[str]], int], part: str, tmp_path: Path) -> None:
    said = call(["train"], tmp_path, 1.0, main)
    assert said.code == -1
    assert part in said.fault


def test_memory_is_measured_after_the_parent_has_freed_as_much(tmp_path: Path) -> None:
    def eats(_words: Sequence[str]) -> int:
        return len(b"x" * (100 << 20)) and 0

    freed = b"x" * (300 << 20)
    del freed
    assert 90 << 20 < call(["train"], tmp_path, main=eats).grown < 200 << 20


def test_a_command_that_changes_the_users_files_is_found(place: Place) -> None:
    file = place.data() / "train" / "cat" / "000.png"

    def change(_words: Sequence[str], _folder: Path) -> Said:
        file.write_bytes(file.read_bytes())  # the same again, but written
        return Said(0, "", "", 0, 0)

    result = bad_inputs.run_case(Case("x", ("train",), (OK,)), place, change)
    assert any(f"{file} was changed" in fault for fault in result)


def test_an_image_that_is_not_named_is_found(place: Place) -> None:
    case = next(case for case in bad_inputs.GROUPS["pictures"](place) if case.name == "cut-10.jpg trained on")
    result = bad_inputs.run_case(case, place, lambda *_: Said(0, "", "", 0, 0))
    assert any("bad_files.csv names [], not ['cut-10.jpg']" in fault for fault in result)
    assert bad_inputs.run_case(case, place) == []
