"""A run of `selkern train` that is killed at random moments ends bit for bit as the run that nobody killed.

Ten kinds of run (moving average, mixup with cutmix and broken images, accumulation, bf16, tar shards in an order of
windows; with workers and without)
get SIGKILL in optimizer steps, while a state is saved, in validations, at the edge of epochs, while the report is
written, and at any time; they are resumed and killed again until they end. Of two ranks one is killed, or both.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from guarantees import runs
from guarantees.runs import EPOCHS, LIMIT, MOMENTS, SAVE_STEPS, STEPS, Attempt, find_run, launch, position, results
from selkern.errors import SelkernError
from selkern.train.options import TrainOptions

ANY_TIME = 0.2  # share of the kills that wait for no phase
MOST_KILLS = 6  # of one run
PATIENCE = 30.0  # s within which a rank must notice that another one is gone


class Fault(Exception):
    """What was promised does not hold; the text says what was found."""


@dataclass
class Figures:
    """What was counted so far."""

    kills: int = 0
    finished: int = 0
    identical: int = 0
    unreadable: int = 0
    most_lost: int = 0  # optimizer steps that one kill undid
    ended: int = 0  # ranks that ended by themselves, with one line, after another one was killed
    slowest: float = 0.0  # s that one of them took
    joining: int = 0  # ranks whose other one was killed before it had joined, for which they wait long
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self, ranks: int = 1) -> str:
        """The figures in one line."""
        survivors = f"{self.ended} ranks left alone ended by themselves within {self.slowest:.1f} s, "
        if self.joining:
            survivors += f"{self.joining} were left before all had joined, "
        return (
            f"{self.kills} kills, {self.finished} finished runs, {self.identical} bit-identical, "
            f"{self.unreadable} unreadable states, at most {self.most_lost} steps lost (saved every {SAVE_STEPS}), "
            f"{survivors if ranks > 1 else ''}{len(self.faults)} faults, {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Reference:
    """A run that nobody killed.

    Attributes:
        results: everything it computed.
        seconds: from its start to its end.
        counts: how often each moment came.
        lengths: typical duration of each, s.
    """

    results: dict[str, Any]
    seconds: float
    counts: dict[str, int]
    lengths: dict[str, float]


def make_reference(options: TrainOptions, ranks: int, folder: Path) -> Reference:
    """Run to the end without a kill."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    attempt = launch(replace(options, output=str(folder), name="run"), ranks, folder)
    end_normally(attempt, folder)
    run = find_run(folder)
    assert run is not None
    counts, lengths = {}, {}
    for name, (begin, end) in MOMENTS.items():
        begins = [at for at, byte in enumerate(attempt.seen) if byte == begin[0]]
        if begins:
            counts[name] = len(begins)
            lengths[name] = median(attempt.times[attempt.seen.index(end, at)] - attempt.times[at] for at in begins)
    return Reference(results(run), attempt.times[-1] - started, counts, lengths)


def end_normally(attempt: Attempt, folder: Path) -> None:
    """Let an attempt come to its end. Raises Fault where it fails or hangs."""
    attempt.read(lambda: False, LIMIT)
    ended = attempt.wait(LIMIT)
    attempt.close()
    if not ended or any(attempt.codes.values()):
        raise Fault(f"an attempt that was not killed ended with {attempt.codes}: {said(folder)}")


def said(folder: Path) -> str:
    """The last words of every rank."""
    texts = [path.read_text().strip() for path in sorted(folder.glob("said.rank*.txt"))]
    return "; ".join(text.splitlines()[-1] for text in texts if text)


@dataclass
class Victim:
    """One run on its way from kill to kill.

    Attributes:
        done: optimizer steps in its newest state; -1 before there is one.
        log: where it was killed, for the one who looks for a fault.
    """

    name: str
    options: TrainOptions
    reference: Reference
    ranks: int
    folder: Path
    random: np.random.Generator
    figures: Figures
    spoil: str
    done: int = -1
    log: list[str] = field(default_factory=list)

    def play(self, kills: int) -> None:
        """Run, kill and resume up to so many times, then let the run end. Raises Fault."""
        self.folder.mkdir(parents=True)
        finished = False
        while not finished:
            run = find_run(self.folder)
            what = run or replace(self.options, output=str(self.folder), name="run")
            forget = self.spoil == "optimizer" and self.done > 0
            attempt = launch(what, self.ranks, self.folder, forget)
            try:
                killed = len(self.log) < kills and self.kill(attempt)
                if not killed:
                    end_normally(attempt, self.folder)
            except BaseException:
                attempt.close()
                raise
            finished = self.check(attempt) if killed else True
        run = find_run(self.folder)
        assert run is not None
        self.figures.finished += 1
        if self.spoil == "bit":
            flip_bit(run.last)
        mine, whole = results(run), self.reference.results
        differing = [name for name in {**whole, **mine} if mine.get(name) != whole.get(name)]
        if differing:
            raise Fault(f"differs from the run that nobody killed in {len(differing)} things: {differing[:4]}")
        self.figures.identical += 1

    def kill(self, attempt: Attempt) -> bool:
        """Wait for a random moment and kill; False where the run ended before it. Raises Fault."""
        left = 1 - max(self.done, 0) / (STEPS * EPOCHS)
        if self.random.random() < ANY_TIME:
            wait = self.random.uniform(0, self.reference.seconds * left)
            moment = f"after {wait:.3f} s"
            attempt.read(lambda: False, wait)
        else:
            names = sorted(self.reference.counts)
            # The report comes once in a run, after all else: there the kill is worth more than elsewhere.
            name = "report" if "report" in names and left < 0.2 else names[self.random.integers(len(names))]
            number = int(self.random.integers(1, max(1, round(self.reference.counts[name] * left)) + 1))
            begin, later = MOMENTS[name][0], self.random.uniform(0, self.reference.lengths[name])
            moment = f"{name} {number} + {later * 1e3:.1f} ms"
            if not attempt.read(lambda: attempt.seen.count(begin) >= number, LIMIT):
                return False
            time.sleep(later)
        chosen = [[0], [1], [0], [1], [0, 1]][self.random.integers(5)] if self.ranks > 1 else [0]
        attempt.kill(chosen)
        killed_at, joined = time.monotonic(), runs.JOINED in attempt.seen
        if not attempt.wait(PATIENCE if joined else 1) and joined:
            raise Fault(f"ranks {chosen} killed at {moment}: the other one still runs after {PATIENCE:.0f} s")
        seconds = time.monotonic() - killed_at
        alone = [rank for rank in range(self.ranks) if rank not in chosen]
        if all(attempt.codes[rank] == 0 for rank in chosen):
            return False
        attempt.close()
        self.log.append(f"{moment}, ranks {chosen}")
        self.figures.kills += 1
        self.note_survivors(attempt, alone, seconds, joined)
        return True

    def note_survivors(self, attempt: Attempt, alone: Sequence[int], seconds: float, joined: bool) -> None:
        """Count how the ranks ended that were not killed. Raises Fault where one did not end with one line."""
        for rank in alone:
            text = (self.folder / f"said.rank{rank}.txt").read_text()
            errors = [line for line in text.splitlines() if "error" in line.lower() or "Traceback" in line]
            if not joined:
                self.figures.joining += 1
            elif attempt.codes[rank] == 5 and len(errors) == 1 and "another process of this run is gone" in errors[0]:
                self.figures.ended += 1
                self.figures.slowest = max(self.figures.slowest, seconds)
            elif attempt.codes[rank] != 0:  # 0: all that it had to do with the killed one was done
                raise Fault(f"rank {rank}, left alone, ended with {attempt.codes[rank]}: {errors[:3]}")

    def check(self, attempt: Attempt) -> bool:
        """What the kill left must be sound; whether the run is at its end. Raises Fault."""
        run = find_run(self.folder)
        if run is None or not run.has_state:
            if self.done >= 0:
                raise Fault(f"there was a state of step {self.done}, and there is none after the kill")
            self.count_lost(attempt, 0)
            return False
        if self.spoil == "state":
            for path in run.state.glob("step-*/model.safetensors"):
                flip_bit(path)
        try:
            done, epoch, last = position(run)
            for path in run.weights.glob("*.safetensors"):
                load_file(path)
        except (SelkernError, SafetensorError) as error:
            self.figures.unreadable += 1
            raise Fault(f"unreadable: {error}") from error
        if done < self.done:
            raise Fault(f"the newest state was of step {self.done}, and is of step {done} after the kill")
        self.count_lost(attempt, done)
        self.done = done
        epochs = [row["epoch"] for row in run.read_metrics()] if run.metrics.is_file() else []
        if epochs != list(range(1, len(epochs) + 1)) or len(epochs) not in (epoch, epoch + 1):
            raise Fault(f"metrics.csv has epochs {epochs}, the state {epoch} of them")
        return last and (not self.options.report or run.report.is_file())

    def count_lost(self, attempt: Attempt, done: int) -> None:
        """Optimizer steps that this kill undid. Raises Fault where a state should have kept them."""
        lost = max(self.done, 0) + attempt.seen.count(runs.STEP_DONE) - done
        self.figures.most_lost = max(self.figures.most_lost, lost)
        if lost > SAVE_STEPS:
            raise Fault(f"{lost} steps lost, though a state is saved every {SAVE_STEPS}")


def flip_bit(file: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def prove(
    kills: int, seed: int, folder: Path, ranks: int = 1, spoil: str = "", only: Sequence[str] | None = None
) -> Figures:
    """Kill until there were so many kills, each kind of run in its turn; the folders of faults are kept.

    Args:
        spoil: one of "optimizer", "bit" and "state", which is broken to see that it is noticed.
        only: these kinds of run alone.
    """
    runs.prepare()
    folder.mkdir(parents=True, exist_ok=True)
    runs.draw_data(folder / "data")
    started = time.monotonic()
    every = runs.configurations(folder / "data")
    kinds = {name: options for name, options in every.items() if name in (only or every)}
    references = {name: make_reference(kinds[name], ranks, folder / "unbroken" / name) for name in kinds}
    figures, number = Figures(), 0
    while figures.kills < kills:
        name = list(kinds)[number % len(kinds)]
        random = np.random.default_rng([seed, number])
        place = folder / f"{number:04}-{name}"
        victim = Victim(name, kinds[name], references[name], ranks, place, random, figures, spoil)
        try:
            victim.play(min(int(random.integers(1, MOST_KILLS + 1)), kills - figures.kills))
            shutil.rmtree(place)
        except Fault as fault:
            killed = "; ".join(victim.log)
            figures.faults.append(f"{name}, seed {seed}, run {number}: {fault} | killed: {killed} | see {place}")
        number += 1
    figures.seconds = time.monotonic() - started
    return figures
