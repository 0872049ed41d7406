"""A sign of life: within 2 s, ever fewer lines after it, never on stdout, and no harm where nobody reads it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading

import pytest

from selkern.progress import _BEAT, GAPS, Progress, doing, on_terminal, say
from selkern.train.progress import Tally, step_line


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_for(line: Progress, clock: Clock, seconds: float, each: int = 0) -> None:
    """Let time pass in halves of a second, `each` images done in every one."""
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        line.advance(each)
        line.tick()


def plain(
    clock: Clock, lines: list[str], what: str = "evaluating", total: int | None = None, done: int = 0
) -> Progress:
    def write(text: str) -> None:
        lines.append(f"{clock.now - 1000:g}: {text}")

    return Progress(what, total=total, done=done, write=write, clock=clock, terminal=False, beat=False)


def test_a_part_within_says_what_goes_on_to_the_innermost_line_of_its_process() -> None:
    doing("nobody looks")
    with Progress("outer", write=lambda _: None, terminal=False, beat=False) as outer:
        with Progress("inner", write=lambda _: None, terminal=False, beat=False) as inner:
            doing("a part")
            assert (inner.text, outer.text) == ("a part", "outer")
        doing("another")
        assert outer.text == "another"
        outer.pid = -1  # as a forked process has it from its parent
        doing("a third")
        assert outer.text == "another"


def test_a_step_that_says_nothing_is_told_within_two_seconds_and_then_ever_less() -> None:
    clock, lines = Clock(), list[str]()
    with plain(clock, lines) as line:
        run_for(line, clock, 250)
    assert [float(text.partition(":")[0]) for text in lines] == [1.5, 10, 30, 60, 120, 180, 240]
    assert lines[0] == "1.5: evaluating  1 s so far"
    assert lines[-1] == "240: evaluating  4 min so far"


def test_a_line_says_how_far_how_fast_and_how_long() -> None:
    clock, lines = Clock(), list[str]()
    with plain(clock, lines, total=5000, done=1000) as line:
        run_for(line, clock, 10, each=50)
    assert lines == [
        "1.5: evaluating  1,150/5,000 images  100 images/s  39 s left",
        "10: evaluating  2,000/5,000 images  100 images/s  30 s left",
    ]
    assert plain(clock, lines, total=10).line(clock.now) == "evaluating  0/10 images  0 s so far"


def test_what_is_said_otherwise_is_a_sign_of_life_too() -> None:
    clock, lines = Clock(), list[str]()
    with plain(clock, lines) as line:
        for _ in range(20):
            run_for(line, clock, 1)
            line.say("epoch done")
    assert lines == []


def test_another_part_is_counted_anew_and_told_as_soon() -> None:
    clock, lines = Clock(), list[str]()
    with plain(clock, lines, "listing the images") as line:
        run_for(line, clock, 2)
        line.show("decoding", total=400)
        run_for(line, clock, 10, each=5)
    assert lines == [
        "1.5: listing the images  1 s so far",
        "3: decoding  10/400 images  10 images/s  39 s left",
        "11.5: decoding  95/400 images  10 images/s  31 s left",
    ]


@pytest.mark.parametrize("size", [(0, 0), (24, 90)], ids=["unknown", "known"])
def test_a_terminal_of_any_size_has_a_live_line(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("loading the network", beat=False) as line:
            line.show("predicting", total=10)
            line.advance(4)
            line.tick()
            stream.write("END")  # else nothing drawn would be nothing to read, for ever
            stream.flush()
            drawn = ""
            while not drawn.endswith("END"):
                drawn += os.read(ours, 65536).decode()
    os.close(ours)
    assert "loading the network  00:00" in drawn, "nothing is counted"
    assert "predicting  4/10 images" in drawn
    assert "s/ images" not in drawn
    assert "eta" in drawn


def test_a_training_has_no_loss_before_its_first_step() -> None:
    assert step_line(Tally(), 0, 6, 0, 187, 0.002) == "epoch 1/6  step 0/187  lr 0.002"
    some = Tally(loss=16.0, right=2, images=8)
    assert step_line(some, 0, 6, 1, 187, 0.002) == "epoch 1/6  step 1/187  loss 2.000  top1 25.0%  lr 0.002"


def test_a_terminal_has_one_live_line_and_a_line_that_stays_does_not_break_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("predicting", total=10, clock=clock, terminal=True, beat=False) as line:
        line.advance(4)
        clock.now += 5
        line.tick()
        line.answer("a.png\tcat")
        line.say("note: odd")
    out, err = capsys.readouterr()
    assert out == "a.png\tcat\n"
    assert "predicting" in err
    assert "\rnote: odd\n" in err
    assert "\n" not in err.replace("\rnote: odd\n", ""), "the live line stays one line"


def test_a_quiet_one_says_nothing_and_has_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with Progress("x", quiet=True) as line:
        assert threading.active_count() == before
        line.say("y")
        line.advance()
    assert capsys.readouterr() == ("", "")


def test_the_thread_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    ticked = threading.Event()
    monkeypatch.setattr("selkern.progress._BEAT", 0.001)
    monkeypatch.setattr(Progress, "tick", lambda _self: ticked.set())
    with pytest.raises(KeyboardInterrupt), Progress("x", terminal=False):
        assert ticked.wait(60)
        raise KeyboardInterrupt
    assert "progress" not in [thread.name for thread in threading.enumerate()]


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("stream", [None, Gone(), "closed"])
def test_a_screen_that_is_gone_is_no_error(
    stream: io.StringIO | str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock()
    assert not on_terminal()
    with Progress("x", total=3, clock=clock, beat=False) as line:
        run_for(line, clock, 40, each=1)
        line.say("y")
    say("z")
    assert capsys.readouterr().out == "", "stdout is for answers"


def test_the_first_line_comes_within_two_seconds() -> None:
    assert GAPS[0] + _BEAT < 2
    assert list(GAPS) == sorted(GAPS)
