"""Random command lines, made of the real commands and flags.

Each ends with a right exit code and, where that is not 0, one line `error: ...`; never with a traceback; and nothing is
written beyond the folder that a line may write to.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from guarantees.calls import ERROR_CODES, LIMIT, TINY, Main
from guarantees.fuzz_lines import Lines
from guarantees.pictures import encode, noise
from selkern import cli
from selkern.models.registry import create_model
from selkern.models.weights import save_weights


@dataclass
class Tally:
    """What came of the lines so far: how many, and a paragraph for each traceback and each wrong ending."""

    lines: int
    tracebacks: list[str]
    wrong: list[str]


class _Hangs(Exception):
    """A line took too long."""


def _ring(_number: int, _frame: FrameType | None) -> None:
    raise _Hangs


def make_place(root: Path) -> Path:
    """The few files that lines name."""
    (root / "blocked").write_text("a file, so that no folder can be made here")
    (root / "runs").write_text("so that a line without --output trains nothing")
    (root / "run").mkdir()
    (root / "a.png").write_bytes(encode(noise(), "PNG"))
    model = create_model(TINY, num_classes=2)
    assert model.card is not None
    save_weights(root / "w.safetensors", model.state_dict(), model.card)
    return root


def run_line(words: Sequence[str], main: Main = cli.main) -> tuple[int | None, str, str]:
    """Exit code of a line, None where an exception left the program; what it printed as errors; the traceback."""
    out, err = io.StringIO(), io.StringIO()
    code, fault = None, ""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(int(LIMIT))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
            out.getvalue().encode()  # as it would be on a terminal
    except BaseException:  # noqa: BLE001 - whatever leaves the program is what is looked for
        code, fault = None, traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, err.getvalue(), fault


def wrong_ending(words: Sequence[str], code: int, reported: str) -> str:
    """What is wrong with how a line ended; "" for nothing."""
    errors = [line for line in reported.split("\n") if line.startswith("error: ")]
    broken_rule = code == 1 and words[:1] == ["check"] and not errors
    if code not in (0, *ERROR_CODES) and not broken_rule:
        return f"exit code {code}"
    if len(errors) != (code in ERROR_CODES):
        return f"{len(errors)} error lines with exit code {code}"
    if errors and errors[0].count(" | ") < 2:  # more of them where a word of the line has some
        return "an error line without its three parts"
    if "Traceback (most recent" in reported:
        return "a traceback is printed"
    return "characters that steer a terminal" if "\x1b" in reported else ""


def fuzz(lines: int, seed: int, root: Path, main: Main = cli.main) -> Tally:
    """Run random lines in `root`, which is empty; every file that they leave there is a wrong ending."""
    source, tally = Lines(seed, make_place(root)), Tally(0, [], [])
    before, here = _files(root), Path.cwd()
    os.chdir(root)
    try:
        for number in range(lines):
            words = source.line()
            code, reported, fault = run_line(words, main)
            told_as = f"seed {seed}, line {number}: selkern {shlex.join(words)[:1500]}"
            if code is None:
                tally.tracebacks.append(f"{told_as}\n  {fault}")
                _say(tally.tracebacks[-1])
            elif wrong := wrong_ending(words, code, reported):
                tally.wrong.append(f"{told_as}\n  {wrong}: {reported[-500:]!r}")
                _say(tally.wrong[-1])
            if left := _files(root) - before:
                tally.wrong.append(f"{told_as}\n  has written {sorted(left)}")
                _say(tally.wrong[-1])
                before |= left
            tally.lines += 1
    finally:
        os.chdir(here)
    return tally


def _files(root: Path) -> set[str]:
    ours = {os.fspath(root / "run" / name) for name in ("config.yaml", ".lock")}  # made here, and by any --resume
    return {os.fspath(path) for path in root.rglob("*")} - ours


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
