"""Silent corruption of what a run keeps.

The state and the weights of a small run are damaged, one case after the other: a bit flipped, cut, longer, emptied,
gone, exchanged with another file. Reading them must notice it, or return what was written, bit for bit. The name of the
newest state, LAST, is the one thing that can go without a word: the newest state is then found by its own name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from guarantees import runs
from selkern.errors import CheckpointError
from selkern.models.registry import create_model
from selkern.train import run as job
from selkern.train.run_folder import RunFolder
from selkern.train.state import State, load_state, pointed_to

Change = Mapping[Path, bytes | None]  # what becomes of files; None for one that goes
DETECTED, HARMLESS = "detected", "harmless"


class Kept:
    """What a run keeps, and damages to it.

    Attributes:
        newest, older: the files of its two states by name.
        files: content of every file that may be damaged.
        states: fingerprints of the two states.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        name = pointed_to(run.state)
        (other,) = {folder.name for folder in run.state.glob("step-*")} - {name}
        self.newest, self.older = ({f.name: f for f in (run.state / part).iterdir()} for part in (name, other))
        self.last = run.state / "LAST"
        self.files = {path: path.read_bytes() for path in (*self.newest.values(), *self.older.values(), self.last)}
        self.files[run.best] = run.best.read_bytes()
        alone = run.path / "older"
        shutil.copytree(run.state / other, alone / other)
        self.states = [fingerprint(load_state(root).state) for root in (run.state, alone)]

    def draw(self, rng: random.Random) -> tuple[str, str, Change]:
        """A damage by chance: its kind, the file, and the change; never one that changes nothing."""
        while True:
            kind = rng.choice([*DAMAGES, "both", "between", "within", *["flip"] * 5])
            path = rng.choice([*self.newest.values(), self.last, self.run.best])
            change: dict[Path, bytes | None]
            if kind in DAMAGES:
                change = {path: DAMAGES[kind](self.files[path], rng)}
            elif kind == "both":  # the state that would be taken instead is damaged too
                path, other = rng.choice([*self.newest.values()]), rng.choice([*self.older.values()])
                change = {p: DAMAGES[rng.choice(list(DAMAGES))](self.files[p], rng) for p in (path, other)}
            else:
                other = self._partner(kind, path, rng)
                change = {path: self.files[other]}
                if path != self.run.best:
                    change[other] = self.files[path]
            if all(content != self.files[p] for p, content in change.items()):
                return kind, str(path.relative_to(self.run.path)), change

    def _partner(self, kind: str, path: Path, rng: random.Random) -> Path:
        """The file to exchange one with: its like of the other state, or another of its own state."""
        if path.name not in self.newest:  # the weights, and LAST
            return rng.choice([*self.newest.values()])
        return self.older[path.name] if kind == "between" else rng.choice([*self.newest.values()])

    def judge(self, change: Change) -> str:
        """Damage the files, read them, and put them back: DETECTED, HARMLESS, or what is wrong."""
        try:
            for path, content in change.items():
                if content is None:
                    path.unlink()
                else:
                    path.write_bytes(content)
            return self._read_weights() if self.run.best in change else self._read_state(change)
        except CheckpointError as error:
            return DETECTED if "\n" not in str(error) else f"in several lines: {error}"
        except Exception as error:  # noqa: BLE001 - whatever else comes is what is looked for
            return f"raised {type(error).__name__}: {error}"
        finally:
            for path in change:
                path.write_bytes(self.files[path])

    def _read_weights(self) -> str:
        create_model(weights=self.run.best)
        return "the weights were taken"

    def _read_state(self, change: Change) -> str:
        result = load_state(self.run.state)
        if fingerprint(result.state) not in self.states:
            return "a state was taken that nobody wrote" + (", with a word" if result.damaged else "")
        if result.damaged:
            return DETECTED
        newest = fingerprint(result.state) == self.states[0]
        return HARMLESS if newest and dict(change) == {self.last: None} else "a state was taken without a word"


def _flip(data: bytes, rng: random.Random) -> bytes:
    end = len(data)
    if data[8:9] == b"{" and rng.random() < 0.5:  # names, shapes and places are few among the numbers
        end = 8 + int.from_bytes(data[:8], "little")
    bit = rng.randrange(8 * end)
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip": _flip,
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "longer": lambda data, rng: data + rng.randbytes(rng.randint(1, 64)),
    "empty": lambda _data, _rng: b"",
    "missing": lambda _data, _rng: None,
}


def fingerprint(state: State) -> str:
    """SHA-256 of all that a state holds."""
    total = hashlib.sha256(json.dumps(state.progress).encode())
    for group, tensors in sorted(state.tensors.items()):
        for name, tensor in sorted(tensors.items()):
            total.update(f"{group} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def make_run(folder: Path) -> RunFolder:
    """A finished run of the small network, whose two states differ."""
    runs.prepare()
    runs.draw_data(folder / "data")
    options = runs.configurations(folder / "data")["ema-0-workers"]
    with contextlib.redirect_stderr(io.StringIO()):
        run = job.train(replace(options, output=str(folder / "runs"), name="run"))
    assert run is not None  # as it is on other ranks than the first
    return run


@dataclass
class Damages:
    """What came of damages: how many of each kind and of each verdict, and a line for each that went unnoticed."""

    kinds: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    unnoticed: list[str] = field(default_factory=list)


def damage(cases: int, seed: int, folder: Path) -> Damages:
    """Damage a run so many times, each time from what it was."""
    kept, result = Kept(make_run(folder)), Damages()
    for number in range(cases):
        kind, where, change = kept.draw(random.Random(f"{seed} {number}"))
        verdict = kept.judge(change)
        result.kinds[kind] += 1
        result.verdicts[verdict] += 1
        if verdict not in (DETECTED, HARMLESS):
            result.unnoticed.append(f"{kind} {where}: {verdict} [--seed {seed}, case {number}]")
    return result
