"""Silent corruption of what a run keeps: `python -m reliability.flips [--cases N] [--seed S]`.

The state and the weights of a small run are damaged, one case after the other: a bit flipped, cut, longer, emptied,
gone, exchanged with another file. Reading them must tell it, or give what was written, bit for bit. The name of the
newest state, LAST, is the one thing that can go without a word: the newest state is then found by its own name.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reliability import runs
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
            return DETECTED if "\n" not in str(error) else f"told in several lines: {error}"
        except Exception as error:  # noqa: BLE001 - whatever else comes is what is looked for
            return f"raised {type(error).__name__}: {error}"
        finally:
            for path in change:
                path.write_bytes(self.files[path])

    def _read_weights(self) -> str:
        create_model(weights=self.run.best)
        return "the weights were taken"

    def _read_state(self, change: Change) -> str:
        found = load_state(self.run.state)
        if fingerprint(found.state) not in self.states:
            return "a state was taken that nobody wrote" + (", with a word" if found.damaged else "")
        if found.damaged:
            return DETECTED
        newest = fingerprint(found.state) == self.states[0]
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; 0 if every damage was noticed."""
    parser = argparse.ArgumentParser(prog="python -m reliability.flips", description="Damage what a run keeps.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(make_run(Path(folder)))
        for number in range(options.cases):
            kind, where, change = kept.draw(random.Random(f"{options.seed} {number}"))
            verdict = kept.judge(change)
            kinds[kind] += 1
            counts[verdict if verdict in (DETECTED, HARMLESS) else "undetected"] += 1
            if verdict not in (DETECTED, HARMLESS):
                print(f"{kind} {where}: {verdict} [--seed {options.seed}, case {number}]", file=sys.stderr)
    print(", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())), file=sys.stderr)
    print(
        f"{options.cases} cases: {counts[DETECTED]} detected, {counts[HARMLESS]} harmless (LAST gone, the newest state "
        f"taken), {counts['undetected']} undetected, {time.monotonic() - started:.0f} s"
    )
    return 1 if counts["undetected"] else 0


if __name__ == "__main__":
    sys.exit(main())
