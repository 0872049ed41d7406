"""A run that stops before each of its writes, and lets a fork of itself find out how it ends if that write fails."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from guarantees import runs
from guarantees.failing import Fault, put_aside, put_back, take_copy, watch
from selkern import cli
from selkern.errors import CheckpointError
from selkern.models.weights import read_tensors
from selkern.train.run_folder import RunFolder
from selkern.train.state import load_state, pointed_to

LIMIT = 120  # s; a run takes one or two
_STAGED = re.compile(r"\.\d+\.tmp$")  # the number is that of the process
# What a run can do without: the removal of what is old, and the making of folders that are there.
SPARED = ("unlink", "rmdir", "empty folder", "mkdir of what is there")


@dataclass
class Case:
    """One fault and what came of it.

    Attributes:
        number: of the call within the run.
        kind, path: of the call.
        fault: in words.
        code: exit code of the run that met it.
        loadable: whether the state that had been saved, if any, is sound.
        wrong: what else was not as it should be.
        left: name of the folder with what the run left; empty where a case before left the same.
    """

    number: int
    kind: str
    path: str
    fault: str
    code: int = -1
    loadable: bool = False
    wrong: list[str] = field(default_factory=list)
    left: str = ""


class Scout:
    """One run of the program in this process, which ends with it.

    Args:
        base: `output` in it is the run's, `data` the user's; the rest is ours.
        plan: the faults that each call is to meet, by its number; without one the calls are only counted.
        expected: the results of the run that met no fault.
    """

    def __init__(self, base: Path, plan: Mapping[int, Sequence[Fault]], expected: Mapping[str, Any]) -> None:
        self.base, self.plan, self.expected = base, plan, expected
        self.output = base / "output"
        self.points: list[tuple[str, str]] = []
        self.cases: list[Case] = []
        self.armed: Fault | None = None  # of a fork: what it lives with
        self.failed: list[str] = []  # of a fork: the calls that met it
        self.strays: list[str] = []  # calls that are no business of the run
        self.busy = False  # with its own files
        self.lefts: set[str] = set()
        self.users = self._look()

    def go(self, words: list[str]) -> NoReturn:
        """Run the program and end; what came of it lies in `base/outcome.json`, of a fork in `reported.json`."""
        code = 70
        try:
            gc.freeze()  # what is there stays there: collecting it in every fork would copy its memory
            speak_to(self.base / "said.txt")
            watch(self._meet)
            code = cli.main(words)
        except BaseException:  # noqa: BLE001 - whatever it is, a child must not go on as its parent
            traceback.print_exc()
        finally:
            self.busy = True
            reported: dict[str, Any] = {"failed": self.failed, "strays": self.strays}
            if self.armed is None:
                reported |= {"points": self.points, "cases": [asdict(case) for case in self.cases]}
            file = self.base / ("outcome.json" if self.armed is None else "reported.json")
            file.write_text(json.dumps(reported))
            sys.stderr.flush()
            os._exit(code)

    def _meet(self, kind: str, path: Path) -> Fault | None:
        """What `watch` asks before each call."""
        if self.busy:
            return None
        if not path.is_relative_to(self.output):
            if kind != "open folder" and not path.is_relative_to("/dev"):
                self.strays.append(f"{kind} {path}")
            return None
        if self.armed is not None:
            return self._fail(kind, path) if self.armed.for_ever else None
        reported = _STAGED.sub(".tmp", str(path.relative_to(self.output)))
        self.points.append((kind, reported))
        number = len(self.points) - 1
        for fault in self.plan.get(number, ()):
            if self._forked(Case(number, kind, reported, str(fault)), fault):
                return self._fail(kind, path)
        return None

    def _fail(self, kind: str, path: Path) -> Fault | None:
        self.failed.append("mkdir of what is there" if kind == "mkdir" and path.is_dir() else kind)
        return self.armed

    def _forked(self, case: Case, fault: Fault) -> bool:
        """True in a fork that is to meet the fault; False here, when that fork has ended and been judged."""
        self.busy = True
        run = runs.find_run(self.output)
        before = pointed_to(run.state) if run else ""
        aside = self.base / "aside"
        put_aside(self.output, aside)
        pid = os.fork()
        if not pid:
            take_copy(self.output, aside)
            speak_to(self.base / "fork.txt")
            signal.alarm(LIMIT)
            self.armed, self.busy = fault, False
            return True
        case.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._judge(case, before)
        put_back(self.output, aside)
        self.cases.append(case)
        self.busy = False
        return False

    def _judge(self, case: Case, before: str) -> None:
        """Look at what a fork said and left; `before` is the state that LAST pointed to."""
        reported = self.base / "reported.json"
        answer = json.loads(reported.read_text()) if reported.is_file() else {"failed": ["to report"], "strays": []}
        reported.unlink(missing_ok=True)
        case.wrong += [f"touched what is not its own: {stray}" for stray in answer["strays"]]
        if self._look() != self.users:
            case.wrong.append("changed files of the user")
        case.wrong += self._unlike_an_error((self.base / "fork.txt").read_text(), case.code, answer["failed"])
        run = runs.find_run(self.output)
        case.loadable = not before if run is None else _sound(run, before)
        if case.code != 0:
            self._keep(case)
        elif run is None or results(run) != self.expected:
            case.wrong.append("other results than without the fault")

    def _unlike_an_error(self, said: str, code: int, failed: Sequence[str]) -> list[str]:
        """What is wrong with the exit code and the words of a run in which these kinds of call failed."""
        spared = all(kind in SPARED for kind in failed)
        lines = said.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        wrong = []
        if code not in ((0, 5) if spared else (5,)):
            wrong.append(f"exit code {code}")
        if code and (errors != lines[-1:] or not self._tells_where(errors[0])):
            wrong.append(f"said {lines[-3:]}")
        if any(word in said for word in ("Traceback", "Exception ignored", "Warning")) or (not code and errors):
            wrong.append(f"said {lines[-6:]}")
        return wrong

    def _tells_where(self, line: str) -> bool:
        what = line.split(" | ")
        return len(what) == 3 and what[1].startswith(str(self.output))

    def _keep(self, case: Case) -> None:
        """Copy what a run left, unless it is what a run before it left."""
        path = self.output / "run"
        if not path.is_dir():
            return
        total = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            name = _STAGED.sub(".tmp", str(file.relative_to(path)))
            content = file.read_bytes() if file.is_file() and file.name != "log.txt" else b""  # which has the time
            total.update(f"{name} {len(content)}\n".encode() + content)
        name = total.hexdigest()[:16]
        if name not in self.lefts:
            self.lefts.add(name)
            case.left = name
            shutil.copytree(path, self.base / "left" / name / path.name)

    def _look(self) -> dict[str, tuple[int, int]]:
        files = [*(self.base / "data").rglob("*"), *(self.output / "older").rglob("*")]
        return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def _sound(run: RunFolder, before: str) -> bool:
    """Whether the weights and the newest state of a run are whole, and no state is older than the one before."""
    try:
        for file in run.weights.glob("*.safetensors"):
            read_tensors(file)
        if not run.has_state:
            return not before
        result = load_state(run.state)
    except CheckpointError:
        return False
    return not result.damaged and result.folder.name >= before


def results(run: RunFolder) -> dict[str, Any]:
    """What a run computed and which files it has, as JSON keeps it."""
    result = runs.results(run)
    texts = {
        name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in result.items() if name != "files"
    }
    return {**texts, "files": [name for name in result["files"] if not name.endswith(".tmp")]}


def speak_to(file: Path) -> None:
    """Let what this process says go to a file, and nowhere else."""
    sys.stderr.flush()
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
    # Python's own are made anew: in a test they write to somewhere else.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
