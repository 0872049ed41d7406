"""Cases of options that are out of range, and of places that cannot be written to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from guarantees.calls import Said
from guarantees.cases import CHECKPOINT, DATA, OK, RESOURCE, USAGE, Case, Place

# Flag and value of training, each refused as a mistake that names the flag.
REFUSED = (
    "--epochs 0", "--epochs -1", "--epochs 1.5", "--epochs two", "--epochs 1e3", "--batch-size 0", "--batch-size 1",
    "--batch-size -4", "--accumulate 0", "--accumulate 3", "--accumulate 99999", "--image-size 7", "--image-size 0",
    "--image-size -1", "--lr 0", "--lr -1", "--lr inf", "--lr nan", "--lr 1e999", "--lr x", "--workers -1",
    "--workers 99999999", "--seed -1", "--seed 18446744073709551616", "--seed 1.0", "--save-minutes 0",
    "--save-minutes nan", "--save-steps -1", "--momentum 1", "--momentum -0.1", "--weight-decay -1", "--bias-lr 0",
    "--warmup -1", "--warmup 9", "--label-smoothing 1", "--clip -1", "--clip nan", "--ema 1", "--ema -1",
    "--eval-crop 0", "--eval-crop 2", "--flip 2", "--flip nan", "--colour -1", "--erase 1.1", "--pad -1",
    "--mixup -1", "--mixup inf", "--cutmix nan", "--optimizer adam", "--schedule linear", "--precision fp16",
    "--memory all", "--on-bad-image replace", "--on-nan ignore", "--crop centre", "--recipe none", "--name a/b",
    "--name ..", "--name ../../x", "--name", "--device", "--data",
)  # fmt: skip
SEVERAL = (
    ("--mean", "2", "2", "2"), ("--mean", "0.5"), ("--mean", "a", "b", "c"), ("--std", "0", "1", "1"),
    ("--std", "1", "1"), ("--std", "-1", "1", "1"), ("--std", "9", "9", "9"), ("--milestones", "3", "1"),
    ("--crop-scale", "0", "1"), ("--crop-scale", "1", "0.5"), ("--crop-ratio", "-1", "1"), ("--name", "x" * 300),
    ("--name", ""), ("--name", "a\nb"), ("--name", "a\0b"[:1] + "/b"),
)  # fmt: skip


def _no_run(place: Place) -> Callable[[Said], str]:
    return lambda _: "a run folder was made" if any(place.output.glob("*")) else ""


def options(place: Place) -> Iterator[Case]:
    """Options of every command that cannot be."""
    data = place.data()
    for words in [tuple(text.split(" ")) for text in REFUSED] + list(SEVERAL):
        flag = words[0]
        case = Case(" ".join(words)[:40], place.train(data, *words), (USAGE,), (flag,), _no_run(place))
        yield case
    for device in ("cuda", "cuda:7", "tpu", "mps", "", "cpu:x"):
        for command in ("train", "evaluate"):
            words = place.train(data) if command == "train" else place.evaluate(data)
            yield Case(
                f"{command} --device {device!r}", (*words, "--device", device), (USAGE,), ("--device",), _no_run(place)
            )
    yield Case("an unknown model", place.train(data, "--model", "sknet_mni"), (USAGE,), ("sknet_mini",), _no_run(place))
    yield Case("batch above the data", place.train(data, "--batch-size", "99"), (OK,))
    for share in ("0", "0.5", "1", "-1", "nan"):
        yield Case(f"--val-fraction {share}", place.train(data, "--val-fraction", share), (USAGE,), ("--val-fraction",))
    yield Case("images of one pixel's size", place.train(data, "--image-size", "8"), (OK,))
    yield Case("a batch of two", place.train(data, "--batch-size", "2"), (OK,))
    yield Case("two processes that read", place.train(data, "--workers", "2"), (OK,))
    for split in ("tset", "", "Test", "train "):
        yield Case(f"--split {split!r}", place.evaluate(data, "--split", split), (USAGE,), ("--split",))
    for number in ("0", "-1", "x", "1.5", ""):
        yield Case(f"--top-k {number!r}", (*place.predict(data), "--top-k", number), (USAGE,), ("--top-k",))
    yield Case("--top-k above the classes", (*place.predict(data), "--top-k", "99999999999"), (OK,))
    for pattern in ("zz*", "[", "", "?" * 300, "sk_none"):
        yield Case(f"models {pattern[:9]!r}", ("models", pattern), (USAGE,), ("no model fits",))
    yield from _checks(place)


def _checks(place: Place) -> Iterator[Case]:
    """Subjects of `check`."""
    for shape in ("x", "0,8,8", "-3,8,8", "3", "", "3,,8", "3,8,8,8,8", "9" * 30 + ",8,8", "1000000,100000,100000"):
        words = ("check", "sk_tiny", f"--input={shape}")
        yield Case(f"check --input {shape[:12]!r}", words, (USAGE, RESOURCE))
    for text in ("1,", "]", "__import__('os')", "a=b", "num_classes=-1", "num_classes='x'", "x" * 99_999, "(" * 999):
        yield Case(f"check --with {text[:12]!r}", ("check", "sk_tiny", "--with", text), (USAGE,))
    for subject in (
        "",
        ":",
        "a:b",
        "no.py:X",
        "os:getcwd",
        "timm:",
        "timm:none",
        "sknet_mni",
        "/",
        "json:loads",
        "x" * 5000,
    ):
        yield Case(f"check {subject[:12]!r}", ("check", subject), (USAGE, CHECKPOINT, RESOURCE))
    code = place.fresh() / "code.py"
    for name, text in {"an error": "1/0", "an exit": "raise SystemExit(3)", "no Python": "def", "binary": "\0"}.items():
        code.write_text(text)
        yield Case(f"check code with {name}", ("check", f"{code}:X"), (USAGE,), (str(code),))
    code.write_text("X = 3")
    yield Case("check a number", ("check", f"{code}:X"), (USAGE,), (str(code),))


def outputs(place: Place) -> Iterator[Case]:
    """Places that cannot be written to, and names that are taken."""
    data = place.data()
    file = place.input / "file"
    file.write_text("mine")
    for name, output in {
        "a file": file,
        "below a file": file / "x",
        "/proc": "/proc/x",
        "/dev/null": "/dev/null",
    }.items():
        yield Case(f"train into {name}", (*place.train(data), "--output", str(output)), (RESOURCE,), (str(output),))
        words = (*place.evaluate(data, command="analyze"), "--output", str(output))
        yield Case(f"analyze into {name}", words, (RESOURCE,), (str(output),))
    long = "x" * 300
    yield Case("train into a name too long", (*place.train(data), "--output", long), (RESOURCE, USAGE), (long[:50],))
    yield Case(
        "analyze into a name too long", (*place.evaluate(data, command="analyze"), "--output", long), (RESOURCE, USAGE)
    )
    locked = place.input / "locked"
    locked.mkdir(mode=0o500)
    codes = (OK,) if os.geteuid() == 0 else (RESOURCE,)  # root may write there all the same
    yield Case("train into a locked folder", (*place.train(data), "--output", str(locked)), codes, untouched=data)
    taken = place.output / "mine"
    taken.mkdir(parents=True)
    (taken / "config.yaml").write_text("mine")
    yield Case("a name that is taken", place.train(data, "--name", "mine"), (OK,), (), untouched=taken)
    (taken.parent / "file").write_text("mine")
    yield Case("a name that is a file", place.train(data, "--name", "file"), (OK,), (), untouched=taken)
    bare = ("analyze", str(place.weights), "--data", str(data), "--device", "cpu")
    yield Case("analyze weights without a place", bare, (USAGE,), ("--output",))
    yield Case("evaluate weights without data", ("evaluate", str(place.weights)), (USAGE,), ("--data",))
    yield Case("evaluate an empty split", place.evaluate(place.fresh()), (DATA,))
    yield Case("resume weights", ("train", "--resume", str(place.weights)), (CHECKPOINT,), (str(place.weights),))
