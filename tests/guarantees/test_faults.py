"""A write that fails loses nothing and is one line; and a product without its care is noticed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guarantees import faults
from guarantees.failing import Fault, put_aside, put_back, take_copy, watch
from selkern.errors import ResourceError
from selkern.models import registry, weights
from selkern.train import progress, run_folder, state


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the program is known by its name within the test alone."""
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))


@pytest.fixture
def _unwatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what `watch` does to this process."""
    with monkeypatch.context() as patch:
        for name in ("open", "replace", "rename", "mkdir", "unlink", "rmdir", "fsync"):
            patch.setattr(os, name, getattr(os, name))
        patch.setattr("io.open", open)
        patch.setattr("builtins.open", open)
        yield


@pytest.mark.exhaustive
def test_every_fault_is_one_line_and_loses_nothing(seed: int, cases: int | None, tmp_path: Path) -> None:
    line, broken = faults.meet(10 if cases is None else cases, seed, tmp_path)
    print(line)
    assert not broken, "\n".join(broken)
    assert int(line.split()[0]) > 500  # injection points


def write_in_place(path: Path, data: bytes | str) -> None:
    """What `write_atomic` would be without its care: the old content is gone before the new one is there."""
    try:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise ResourceError(f"cannot write ({error.strerror})", str(path), "free space") from error


@pytest.mark.parametrize("file", ["state/LAST", pytest.param("weights/last.safetensors", marks=pytest.mark.exhaustive)])
def test_a_write_in_place_is_noticed(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "write_atomic", write_in_place)
    monkeypatch.setattr(weights, "write_atomic", write_in_place)
    run = faults.prepare_whole(tmp_path)
    writes = [number for number, point in enumerate(run.points) if point == ("write", f"run/{file}")]
    run.scout({writes[1]: [faults.FULL]})
    (case,) = run.cases
    assert (case.code, case.wrong, case.loadable) == (5, [], False)
    (line,) = faults.broken([("train", case)])
    assert "the state before is lost" in line


def careless(path: Path, text: str) -> None:
    """What `append` would be if it swallowed a full disk and raised other errors as what they are not."""
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise ValueError("no luck with it") from error


@pytest.mark.exhaustive
def test_errors_that_are_swallowed_or_of_another_kind_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "append", careless)
    monkeypatch.setattr(run_folder, "append", careless)
    run = faults.prepare_whole(tmp_path)
    log, order = (run.points.index(("open", f"run/{file}")) for file in ("log.txt", "order.rank0.csv"))
    run.scout({log: [faults.FULL, Fault("EIO")], order: [faults.FULL]})
    swallowed, raised, lost = run.cases
    assert swallowed.wrong == ["exit code 0"]
    assert raised.wrong[0] == "exit code 70"
    assert "ValueError: no luck with it" in str(raised.wrong)
    assert lost.wrong == ["exit code 0", "other results than without the fault"]


@pytest.mark.exhaustive
def test_a_run_that_ends_otherwise_when_it_goes_on_is_noticed(tmp_path: Path) -> None:
    run = faults.prepare_whole(tmp_path)
    run.scout({run.points.index(faults.THIRD_SAVE): [faults.FULL]})
    (case,) = run.cases
    assert faults.again(run, case.left) == ""
    run.expected["metrics.csv"] = "other"
    assert faults.again(run, case.left).endswith("1 results differ, such as ['metrics.csv']")


@pytest.mark.usefixtures("_unwatched")
def test_the_watch_sees_each_call_and_makes_it_fail(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    armed: list[Fault] = []

    def meet(kind: str, path: Path) -> Fault | None:
        seen.append((kind, path.name))
        return armed[0] if armed else None

    watch(meet)
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("text")
    folder.mkdir()
    file.rename(folder / "other")
    with (folder / "other").open("ab") as opened:
        opened.write(b"!")
        opened.flush()
        os.fsync(opened.fileno())
    assert (folder / "other").read_text() == "text!"
    (folder / "other").unlink()
    folder.rmdir()
    kinds = ["open file", "write file", "mkdir folder", "rename other", "open other", "write other", "fsync other"]
    assert [" ".join(call) for call in seen] == [*kinds, "unlink other", "rmdir folder"]

    armed.append(Fault("EIO"))
    for call in (lambda: file.write_text("x"), folder.mkdir, lambda: os.open(tmp_path, os.O_RDONLY)):
        with pytest.raises(OSError, match="Input/output error") as error:
            call()
        assert error.value.errno == errno.EIO
        assert str(tmp_path) in str(error.value.filename)


@pytest.mark.usefixtures("_unwatched")
def test_half_a_write_is_half_a_write(tmp_path: Path) -> None:
    watch(lambda kind, _: Fault("ENOSPC", short=True) if kind == "write" else None)
    with pytest.raises(OSError, match="No space left"), (tmp_path / "file").open("wb") as file:
        file.write(b"12345678")
    assert (tmp_path / "file").read_bytes() == b"1234"


def test_a_fork_writes_to_the_copy_of_what_is_open(tmp_path: Path) -> None:
    folder, aside = tmp_path / "folder", tmp_path / "aside"
    folder.mkdir()
    with (folder / "file").open("wb") as file:
        file.write(b"one ")
        file.flush()
        put_aside(folder, aside)
        if not (pid := os.fork()):
            take_copy(folder, aside)
            file.write(b"of the fork")
            file.flush()
            (folder / "more").touch()
            os._exit((folder / "file").read_bytes() != b"one of the fork")
        assert os.waitpid(pid, 0)[1] == 0
        put_back(folder, aside)
        file.write(b"two")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == b"one two"
