"""The attacks are real, a part of them is refused as it should be, and a program that falls for one is reported."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from guarantees import attack_pickles, hostile
from guarantees.calls import Main, Said, call, prepared
from guarantees.cases import DATA, Case, Place, make_place


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    with prepared():
        yield


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.mark.parametrize("name", attack_pickles.running(Path("x")))
def test_the_pickles_run_where_they_are_loaded(name: str, tmp_path: Path) -> None:
    pickled = attack_pickles.running(tmp_path / "canary")[name]

    def load(_words: Sequence[str]) -> int:
        pickle.loads(pickled)
        return 0

    call(["load"], tmp_path, main=load)  # some end with an error once they have run
    assert (tmp_path / "canary").is_file()


@pytest.mark.parametrize(("group", "every"), [("pickles", 60), ("archives", 9), ("runs", 9)])
def test_a_part_of_them_is_refused(group: str, every: int, tmp_path: Path) -> None:
    count, ran, failed = hostile.run_all([group], tmp_path, every=every)
    assert count >= 2
    assert ran == 0
    assert not failed, "\n".join(failed)


@pytest.mark.exhaustive
def test_many_of_them_are_refused(cases: int | None, tmp_path: Path) -> None:
    """Every fourth; all of them with `--cases 0`, alone on the machine, since each has a second."""
    every = 1 if cases == 0 else 4
    count, ran, failed = hostile.run_all(hostile.GROUPS, tmp_path, every=every)
    print(f"{count} files, {ran} executed, {count - len(failed)} refused in time and memory")
    assert ran == 0
    assert not failed, "\n".join(failed)
    assert count >= 250 // every - 10


def test_there_are_many(place: Place) -> None:
    # These two groups alone; the bombs of the others take seconds to make.
    names = [case.name for name in ("pickles", "runs") for case in hostile.GROUPS[name](place)]
    assert len(names) >= 150
    assert len(set(names)) == len(names)


def _first(place: Place) -> Case:
    return next(case for case in hostile.pickles(place) if case.name == "GLOBAL os.system, bare")


def test_a_program_that_loads_a_pickle_is_found(place: Place) -> None:
    def load(words: Sequence[str]) -> int:
        with Path(words[1]).open("rb") as file:
            pickle.load(file)
        return 0

    result = hostile.run_case(_first(place), place, lambda words, folder, limit: call(words, folder, limit, load))
    assert result[0] == "RAN: the canary is there"
    assert hostile.run_case(_first(place), place) == []


def _eats(_words: Sequence[str]) -> int:
    eaten = b"x" * (300 << 20)
    return 3 if eaten else 0


def _dawdles(_words: Sequence[str]) -> int:
    time.sleep(1.1)
    return 3


@pytest.mark.parametrize(
    ("main", "part"), [(_eats, "takes "), pytest.param(_dawdles, "is refused in 1.", marks=pytest.mark.exhaustive)]
)
def test_a_program_that_takes_too_much_is_found(main: Main, part: str, place: Place) -> None:
    case = Case("x", ("predict",), (DATA,))
    result = hostile.run_case(case, place, lambda words, folder, limit: call(words, folder, limit, main))
    assert any(fault.startswith(part) for fault in result)


@pytest.mark.exhaustive
def test_a_page_shows_markup_as_text_and_one_that_does_not_is_found(place: Place) -> None:
    case = next(iter(hostile.pages(place)))
    assert hostile.run_case(case, place) == []
    (page,) = place.output.glob("*/report.html")
    page.write_text(page.read_text().replace("&lt;", "<").replace("&gt;", ">"))
    assert case.check is not None
    assert "the page holds" in case.check(Said(0, "", "", 0, 0))
