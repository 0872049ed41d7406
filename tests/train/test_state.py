"""The saved state: what it brings back, how every damage is shown, and that no failing write harms the one before."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selkern.errors import CheckpointError, ResourceError
from selkern.io import write_atomic
from selkern.models.weights import Card, read_card, save_weights
from selkern.train.state import (
    State,
    load_optimizer,
    load_state,
    optimizer_tensors,
    point_to,
    pointed_to,
    save_state,
)


def make_state(number: int) -> State:
    generator = torch.Generator().manual_seed(number)
    model = {
        "w": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor(2**40 + number),
        "channels_last": torch.randn(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last),
        "part": torch.randn(6, 6, generator=generator)[::2, 1:4],
        "none": torch.zeros(0, 3),
    }
    return State({"model": model, "ema": {"w": model["w"] / 3}}, {"epoch": number, "rows": [{"loss": 0.1 + 0.2}]})


def assert_equal(one: State, other: State) -> None:
    assert one.progress == other.progress
    assert one.tensors.keys() == other.tensors.keys()
    for group, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[group].keys()
        for name, value in tensors.items():
            assert value.dtype == other.tensors[group][name].dtype
            assert torch.equal(value, other.tensors[group][name]), (group, name)


def test_round_trip_brings_back_every_bit(tmp_path: Path) -> None:
    save_state(tmp_path / "state", 7, make_state(1))
    assert_equal(load_state(tmp_path / "state").state, make_state(1))


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 999_999, 1_000_000, 3):
        save_state(tmp_path, step, make_state(step))
        assert_equal(load_state(tmp_path).state, make_state(step))
    assert {path.name for path in tmp_path.iterdir()} == {"step-1000000", "step-000003", "LAST"}


def test_the_same_step_again_replaces_nothing_that_is_needed(tmp_path: Path) -> None:
    """Between the folder and the pointer to it, the state before must still be there."""
    for number in range(4):
        save_state(tmp_path, 5, make_state(number))
        assert_equal(load_state(tmp_path).state, make_state(number))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("selkern.train.state.write_atomic", raise_for("LAST", KeyboardInterrupt()))
        save_state(tmp_path, 5, make_state(9))
    assert_equal(load_state(tmp_path).state, make_state(3))
    save_state(tmp_path, 5, make_state(4))
    assert_equal(load_state(tmp_path).state, make_state(4))
    assert len(list(tmp_path.glob("step-*"))) == 2


def raise_for(name: str, error: BaseException) -> Callable[[Path, bytes | str], None]:
    def write(path: Path, data: bytes | str) -> None:
        if path.name == name:
            raise error
        write_atomic(path, data)

    return write


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_told_in_one_line_and_the_state_before_is_taken(
    damage: Callable[[Path], object], file: str, tmp_path: Path
) -> None:
    oldest = save_state(tmp_path, 1, make_state(1))
    newest = save_state(tmp_path, 2, make_state(2))
    damage(newest / file)
    result = load_state(tmp_path)
    assert_equal(result.state, make_state(1))
    assert result.folder == oldest
    (shown,) = result.damaged
    assert "\n" not in shown
    assert str(newest) in shown
    assert file in shown or file == "manifest.json"

    point_to(result.folder)  # from here on it is the one that the next save keeps
    third = save_state(tmp_path, 3, make_state(3))
    assert {folder.name for folder in tmp_path.glob("step-*")} == {oldest.name, third.name}
    damage(oldest / file)
    damage(third / file)
    with pytest.raises(CheckpointError, match=r"no saved state is sound \(.*step-000003"):
        load_state(tmp_path)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"model.safetensors": 3}', "\xff", "null", "[" * 100_000])
def test_a_manifest_that_is_not_one_is_told(manifest: str, tmp_path: Path) -> None:
    newest = save_state(tmp_path, 2, make_state(2))
    (newest / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"step-000002"):
        load_state(tmp_path)


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    newest = save_state(tmp_path / "state", 2, make_state(2))
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    entry = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    (newest / "manifest.json").write_text(json.dumps({"../../secret.json": entry, "progress.json": entry}, indent=1))
    with pytest.raises(CheckpointError, match=r"No such file|differs"):
        load_state(tmp_path / "state")


@pytest.mark.parametrize("pointer", ["step-000009", "", "../elsewhere", "\xff", "\0", "step-000001"])
def test_a_damaged_pointer_is_told_and_the_newest_sound_state_taken(pointer: str, tmp_path: Path) -> None:
    save_state(tmp_path, 1, make_state(1))
    (tmp_path / "LAST").write_text(pointer, encoding="latin-1")
    result = load_state(tmp_path)
    assert_equal(result.state, make_state(1))
    assert result.damaged == (f"{tmp_path / 'LAST'}: differs from what was written",)


def test_a_file_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    newest = save_state(tmp_path, 1, make_state(1))
    with (newest / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(CheckpointError, match="larger than it can be"):
        load_state(tmp_path, 1 << 20)


def test_no_state_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved state"):
        load_state(tmp_path / "state")


CALLS = {"fsync": (os, "fsync"), "rename": (os, "rename"), "replace": (Path, "replace"), "mkdir": (Path, "mkdir")}
FULL = OSError(errno.ENOSPC, "No space left on device")


class FullDisk(io.FileIO):
    def write(self, data: Any) -> int:
        super().write(data[: len(data) // 2])
        raise FULL


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("nth", [0, 1, 4, 8, 9, 10])  # of fsync: 8 is the folder of states, 9 and 10 are LAST
@pytest.mark.parametrize("call", [*CALLS, "write"])
def test_a_failing_write_leaves_the_state_before(
    call: str, nth: int, for_ever: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nth call of each kind fails, alone or with all that come after it."""
    save_state(tmp_path, 1, make_state(1))
    save_state(tmp_path, 2, make_state(2))
    seen = [0]

    def fails() -> bool:
        seen[0] += 1
        return seen[0] == nth + 1 or (for_ever and seen[0] > nth)

    owner, name = CALLS.get(call, (Path, "open"))
    original = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        if call == "write":
            return FullDisk(args[0], "wb") if "wb" in args[1:] and fails() else original(*args, **named)
        if fails():
            raise FULL
        return original(*args, **named)

    monkeypatch.setattr(owner, name, wrapped)
    failed = False
    try:
        save_state(tmp_path, 3, make_state(3))
    except ResourceError as error:
        failed = True
        assert str(FULL.strerror) in str(error)
        assert "\n" not in str(error)
        assert error.exit_code == 5
    monkeypatch.undo()
    assert failed == (seen[0] > nth)
    pointed = pointed_to(tmp_path)
    assert pointed == ("step-000002" if failed and (call, nth) != ("fsync", 10) else "step-000003")
    assert_equal(load_state(tmp_path).state, make_state(int(pointed[-1])))
    save_state(tmp_path, 4, make_state(4))  # and what the failure left lying does not disturb the next
    assert_equal(load_state(tmp_path).state, make_state(4))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
def test_an_atomic_write_that_fails_leaves_the_old_file(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.csv"
    write_atomic(path, "old")

    def fail(*_args: Any, **_named: Any) -> None:
        raise FULL

    with monkeypatch.context() as patch, pytest.raises(ResourceError) as error:
        patch.setattr(os if moment == "fsync" else Path, moment, fail)
        write_atomic(path, "new")
    assert str(error.value).startswith(f"cannot write (No space left on device) | {path} | ")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]


def test_an_atomic_write_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, wrapped)

    noted(os, "fsync")
    noted(Path, "replace")
    write_atomic(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_an_optimizer_goes_on_where_it_was(kind: Any) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = torch.nn.Linear(3, 2)
        return model, kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
        for number in range(times):
            optimizer.zero_grad()
            (model(torch.full((1, 3), number + 1.0)) ** 2).sum().backward()
            optimizer.step()

    model, optimizer = make()
    step(model, optimizer, 3)
    other, fresh = make()
    other.load_state_dict(model.state_dict())
    load_optimizer(fresh, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    step(model, optimizer, 2)
    step(other, fresh, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert optimizer_tensors(optimizer).keys() == optimizer_tensors(fresh).keys()


def test_a_weights_card_comes_back_with_its_metrics(tmp_path: Path) -> None:
    card = Card(
        model="sknet_mini",
        classes=("größe", "a|b", "<i>", ""),
        preprocess={"size": 16, "mean": [0.1, 0.2, 0.3]},
        metrics={"val_top1": 1 / 3, "val_loss": 1e-300},
        source={"command": "selkern train --data 'x y'", "epoch": 3, "seed": 2**63 - 1},
    )
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, card)
    assert read_card(tmp_path / "w.safetensors") == card
    json.dumps(card.metrics)
