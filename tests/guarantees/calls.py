"""Commands of selkern as a user gives them, each in a forked child: what they printed, what they cost, what went wrong.

A fork has everything imported already, so hundreds of commands take a minute, and nothing that a command does to its
process reaches the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import os
import resource
import signal
import stat
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import torch

from guarantees.small import SMALL
from selkern import cli
from selkern.models import registry

Main = Callable[[Sequence[str]], int]
TINY = "sk_tiny"  # a model of two units that only these programs have
LIMIT = 60.0  # seconds; a command that takes longer hangs
ERROR_CODES = (2, 3, 4, 5, 6)
_DATA_LIMIT = 8 << 30  # bytes that a child may ask for at most, so that a fault does not take the machine with it
# What the commands import when they are called, so that a child's time and memory are the command's own.
_LATER = (
    "google.protobuf.message_factory",
    "PIL.Image",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "pyarrow.parquet",
    "pyarrow.compute",
    "selkern.conformance.check",
    "selkern.convert.subject",
    "selkern.convert.caffe",
    "selkern.convert.files",
    "selkern.models.describe",
    "selkern.convert.foreign",
    "selkern.report.analyze",
    "selkern.train.run",
    "selkern.inference.predict",
    "tarfile",
    "torch._dynamo",
)


@dataclass(frozen=True)
class Said:
    """What a command answered.

    Attributes:
        code: its exit code; -1 where it gave none.
        out, err: what it printed.
        seconds: that it took.
        grown: bytes by which its process grew at most.
        fault: an exception that left the program, a signal that ended it, or that it hung; "" for none.
    """

    code: int
    out: str
    err: str
    seconds: float
    grown: int
    fault: str = ""

    @property
    def error_lines(self) -> list[str]:
        """The lines of an error."""
        return [line for line in self.err.split("\n") if line.startswith("error: ")]


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Within the block there is the small model, and what the commands need is imported and was run once."""
    environment = dict(os.environ)
    registry.ARCHITECTURES[TINY] = SMALL
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in _LATER:
        importlib.import_module(name)
    importlib.import_module("PIL.Image").init()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for words in (["models", TINY], ["train", "--data", "/nothing"], ["evaluate", "nothing"], ["convert"]):
            cli.main(words)
    try:
        yield
    finally:
        del registry.ARCHITECTURES[TINY]
        os.environ.clear()
        os.environ.update(environment)


def call(words: Sequence[str], folder: Path, limit: float = LIMIT, main: Main = cli.main) -> Said:
    """`selkern WORDS...` in a child whose working folder is `folder`; it may take `limit` seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as reported:
        _give_back()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads, which are idle here
            child = os.fork()
        if not child:
            _run(main, words, folder, out, err, reported)
        ended = _wait(child, limit)
        for file in (out, err, reported):
            file.seek(0)
        printed, complained = (file.read().decode(errors="replace") for file in (out, err))
        answer = reported.read()
    if ended or not answer:
        fault = "hangs" if ended is None else f"ended by {signal.Signals(ended).name}" if ended else "ended silently"
        return Said(-1, printed, complained, limit, 0, fault)
    figures = json.loads(answer)
    return Said(figures["code"], printed, complained, figures["seconds"], figures["grown"], figures["fault"])


def _give_back() -> None:
    """Give the system what this process has freed: a child would fill that first, and seem to grow by nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _wait(child: int, limit: float) -> int | None:
    """The signal that ended a child, 0 for none; None where its time was over and it had to be killed."""
    end = time.monotonic() + limit
    pause = 0.002
    while time.monotonic() < end:
        result, status = os.waitpid(child, os.WNOHANG)
        if result:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what it started itself
    os.waitpid(child, 0)
    return None


def _run(
    main: Main, words: Sequence[str], folder: Path, out: IO[bytes], err: IO[bytes], reported: IO[bytes]
) -> NoReturn:
    """The child's part: it never returns into the caller's code."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - strict, as most terminals
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        sys.argv = ["selkern", *words]
        resource.setrlimit(resource.RLIMIT_DATA, (_DATA_LIMIT, _DATA_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before, started = _peak(), time.perf_counter()
        code, fault = -1, ""
        try:
            code = main(list(words))
        except BaseException:  # noqa: BLE001 - whatever leaves the program is what is looked for
            fault = traceback.format_exc()
        figures = {"code": code, "seconds": time.perf_counter() - started, "grown": _peak() - before, "fault": fault}
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        reported.write(json.dumps(figures).encode())
        reported.flush()
    finally:
        os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def faults(said: Said, codes: Sequence[int], shows: Sequence[str] = ()) -> list[str]:
    """What is wrong with an answer: it should have one of these exit codes, and its one error line these texts."""
    result = [said.fault] if said.fault else []
    if said.code not in codes:
        result.append(f"exit code {said.code}, not {' or '.join(map(str, codes))}")
    result += [f"{word!r} is printed" for word in ("Traceback (most recent", "Warning: ") if word in said.err]
    lines = said.error_lines
    if said.code == 0 and lines:
        result.append("an error is printed, and the exit code is 0")
    if said.code in ERROR_CODES:
        if len(lines) != 1:
            result.append(f"{len(lines)} error lines instead of one")
        elif len(parts := lines[0].split(" | ")) != 3 and not any(" | " in text for text in shows):
            result.append(f"the error line has {len(parts)} parts, not three")
        result += [f"{text!r} is not in the error line" for text in shows if not any(text in line for line in lines)]
    if steering := {c for c in said.out + said.err if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} - set(
        "\n\t\r"
    ):
        result.append(f"control characters are printed: {sorted(steering)}")
    return result


def fingerprint(root: Path) -> dict[str, tuple[str, int]]:
    """Everything below a folder by path: SHA-256 of files (the start of huge ones), and the time of change."""
    result: dict[str, tuple[str, int]] = {}
    for path in sorted(root.rglob("*")):
        reported = path.lstat()
        digest = oct(reported.st_mode)
        if stat.S_ISREG(reported.st_mode):
            with path.open("rb") as file:
                digest += hashlib.sha256(file.read(1 << 24)).hexdigest()
        result[str(path)] = (f"{digest} {reported.st_size}", reported.st_mtime_ns)
    return result
