"""Some random command lines end as they should, and a program that ends otherwise is reported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from guarantees import fuzz
from guarantees.calls import Main, prepared
from guarantees.fuzz_lines import Lines, flags_of
from selkern.train.options import TrainOptions


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    with prepared():
        yield


def check_lines(count: int, seed: int, folder: Path) -> None:
    tally = fuzz.fuzz(count, seed, folder)
    print(f"{tally.lines} lines, {len(tally.tracebacks)} tracebacks, {len(tally.wrong)} wrong endings")
    assert tally.lines == count
    assert not tally.tracebacks + tally.wrong, "\n".join(tally.tracebacks + tally.wrong)


def test_lines_end_as_they_should(seed: int, tmp_path: Path) -> None:
    check_lines(60, seed + 1, tmp_path)


@pytest.mark.exhaustive
def test_many_lines_end_as_they_should(seed: int, cases: int | None, tmp_path: Path) -> None:
    check_lines(cases or 500, seed + 1, tmp_path)


def test_lines_follow_the_seed_and_differ(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lines, again, others = ([source.line() for _ in range(200)] for source in (Lines(s, tmp_path) for s in (3, 3, 4)))
    assert lines == again != others
    assert len({tuple(line) for line in lines}) > 150


def test_every_flag_of_training_is_known() -> None:
    flags = flags_of(TrainOptions)
    assert {"--data", "--epochs", "--crop-scale", "--on-bad-image", "--mean"} <= flags.keys()


def test_most_configs_are_read_as_yaml(tmp_path: Path) -> None:
    source, read = Lines(0, tmp_path), 0
    for _ in range(100):
        source.write_config(tmp_path / "config.yaml")
        try:
            read += isinstance(yaml.safe_load((tmp_path / "config.yaml").read_bytes()), dict)
        except (yaml.YAMLError, ValueError):
            continue
    assert read > 50


def _raises(_words: Sequence[str]) -> int:
    raise TypeError("x")


def _code_7(_words: Sequence[str]) -> int:
    return 7


def _silent(_words: Sequence[str]) -> int:
    return 2


def _said_twice(_words: Sequence[str]) -> int:
    print("error: a | b | c\nerror: a | b | c", file=sys.stderr)
    return 2


def _two_parts(_words: Sequence[str]) -> int:
    print("error: a | b", file=sys.stderr)
    return 2


def _writes(_words: Sequence[str]) -> int:
    Path("left.txt").write_text("x")
    return 0


@pytest.mark.parametrize("main", [_code_7, _silent, _said_twice, _two_parts, _writes])
def test_a_wrong_ending_is_found(main: Main, tmp_path: Path) -> None:
    tally = fuzz.fuzz(2, 0, tmp_path, main)
    assert len(tally.wrong) >= 1
    assert not tally.tracebacks
    assert "seed 0, line 0: selkern " in tally.wrong[0]


def test_a_traceback_is_found(tmp_path: Path) -> None:
    tally = fuzz.fuzz(3, 0, tmp_path, _raises)
    assert len(tally.tracebacks) == 3
    assert "TypeError: x" in tally.tracebacks[0]
