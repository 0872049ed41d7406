"""A part of the bad inputs ends as it should, there are enough of them, and a command that raises is reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from guarantees import bad_inputs
from guarantees.calls import call, prepared
from guarantees.cases import DATA, Case, Place, make_place


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    with prepared():
        yield


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.mark.share(2)
@pytest.mark.parametrize("group", bad_inputs.GROUPS)
def test_a_part_of_them_ends_as_it_should(group: str, tmp_path: Path) -> None:
    count, failed = bad_inputs.run_all([group], tmp_path, every=60)
    assert count
    assert not failed, "\n".join(failed)


@pytest.mark.exhaustive
def test_many_of_them_end_as_they_should(cases: int | None, tmp_path: Path) -> None:
    """Every 24th; all of them with `--cases 0`."""
    every = 1 if cases == 0 else 24
    count, failed = bad_inputs.run_all(bad_inputs.GROUPS, tmp_path, every=every)
    print(f"{count} cases, {len(failed)} failed")
    assert not failed, "\n".join(failed)
    assert count >= 900 // every - 20


@pytest.mark.exhaustive
def test_their_names_differ(place: Place) -> None:
    names = [(name, case.name) for name, group in bad_inputs.GROUPS.items() for case in group(place)]
    assert len(set(names)) >= 200


def _raises(_words: Sequence[str]) -> int:
    raise ZeroDivisionError


def _says_nothing(_words: Sequence[str]) -> int:
    return 3


@pytest.mark.parametrize(("main", "part"), [(_raises, "ZeroDivisionError"), (_says_nothing, "0 error lines")])
def test_a_command_that_fails_otherwise_is_found(main: object, part: str, place: Place) -> None:
    case = Case("x", ("predict",), (DATA,))
    result = bad_inputs.run_case(case, place, lambda words, folder: call(words, folder, main=main))  # type: ignore[arg-type]
    assert any(part in fault for fault in result)
