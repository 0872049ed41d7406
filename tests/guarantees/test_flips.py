"""Damage to what a run keeps is noticed; and where a check is gone, the test fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from guarantees import flips
from selkern.models import registry, weights
from selkern.train import state


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network is known by its name within the test alone."""
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))


def check_damage(count: int, seed: int, folder: Path) -> None:
    result = flips.damage(count, seed, folder)
    detected, harmless = (result.verdicts[name] for name in (flips.DETECTED, flips.HARMLESS))
    print(f"{count} cases: {detected} detected, {harmless} harmless, {len(result.unnoticed)} unnoticed; {result.kinds}")
    assert not result.unnoticed, "\n".join(result.unnoticed)
    assert detected + harmless == count
    assert harmless < max(20, count // 20)  # LAST alone, and gone
    if count >= 200:  # of fewer, chance may leave a kind out
        assert result.kinds.keys() == {*flips.DAMAGES, "both", "between", "within"}


def test_damage_is_noticed(seed: int, tmp_path: Path) -> None:
    check_damage(200, seed, tmp_path)


@pytest.mark.exhaustive
def test_much_damage_is_noticed(seed: int, cases: int | None, tmp_path: Path) -> None:
    check_damage(cases or 1000, seed, tmp_path)


@pytest.mark.parametrize("owner", [state, weights], ids=["states", "weights"])
def test_without_the_checksum_damage_goes_unnoticed(
    owner: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_digest", lambda *_: "0" * 64)
    result = flips.damage(300, 0, tmp_path)
    where = "state/step-" if owner is state else "weights/best.safetensors"
    assert result.unnoticed  # how many: the numbers of the weights, and so this machine, decide
    assert all(where in line and "[--seed 0, case " in line for line in result.unnoticed)
