"""Damage to what a run keeps, in short; and that the program notices where a check is gone."""

from __future__ import annotations

import pytest

from reliability import flips
from selkern.models import registry, weights
from selkern.train import state


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the program is known by its name within the test alone."""
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))


def figures(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, int], str]:
    """The counts of the last line, and what was told before it."""
    said, told = capsys.readouterr()
    (line,) = said.splitlines()
    counts, _, rest = line.partition(" cases: ")
    words = [part.split()[:2] for part in rest.split(", ")]
    return {"cases": int(counts), **{name: int(count) for count, name in words if count.isdigit()}}, told


@pytest.mark.exhaustive
def test_every_damage_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert flips.main(["--cases", "400"]) == 0
    counts, told = figures(capsys)
    assert counts["undetected"] == 0
    assert counts["detected"] + counts["harmless"] == counts["cases"] == 400
    assert counts["harmless"] < 20  # LAST alone, and gone
    assert all(kind in told for kind in (*flips.DAMAGES, "both", "between", "within"))


@pytest.mark.parametrize("owner", [state, weights], ids=["states", "weights"])
def test_without_the_checksum_damage_goes_unnoticed(
    owner: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_digest", lambda *_: "0" * 64)
    assert flips.main(["--cases", "300"]) == 1
    counts, told = figures(capsys)
    assert counts["undetected"] > 3
    where = "state/step-" if owner is state else "weights/best.safetensors"
    missed = [line for line in told.splitlines() if "[--seed 0, case " in line]
    assert len(missed) == counts["undetected"]
    assert all(where in line for line in missed)
