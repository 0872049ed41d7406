"""Workloads that need processes of their own: starting up, and training on several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import selkern
from selkern.bench import goals as names
from selkern.bench.results import Row
from selkern.bench.session import Session
from selkern.errors import ResourceError

_IMPORT = """import time, torch
start = time.perf_counter()
import selkern
print(time.perf_counter() - start)"""
_IMPORT_ALL = """import time, torch
start = time.perf_counter()
import selkern
for name in selkern.__all__:
    getattr(selkern, name)
print(time.perf_counter() - start)"""
_IMPORT_TORCH = """import time
start = time.perf_counter()
import torch
print(time.perf_counter() - start)"""
_PATIENCE = 600  # seconds for one child


def environment(**given: str) -> dict[str, str]:
    """This process's environment, in which `selkern` is the one that runs here."""
    home = str(Path(str(selkern.__file__)).parents[1])
    paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **given}


def run_child(job: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job of `child.py` in a fresh process, and give what it found.

    Raises:
        ResourceError: it failed; the message ends with its last line.
    """
    (found,) = _run_children(job, [settings], [{}])
    return found


def _run_children(job: str, settings: list[dict[str, Any]], given: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Run several processes at once, and give what each found."""
    children = []
    for one, extra in zip(settings, given, strict=True):
        words = [sys.executable, "-m", "selkern.bench.child", job, json.dumps(one | {"threads": _threads(len(given))})]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(words, env=environment(**extra), stdout=pipe, stderr=pipe, text=True))
    try:
        said = [child.communicate(timeout=_PATIENCE) for child in children]
    except subprocess.TimeoutExpired:
        raise ResourceError(f"a child process took more than {_PATIENCE} s", job, "measure it alone") from None
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
    for child, (_, error) in zip(children, said, strict=True):
        if child.returncode:
            last = (error.strip().splitlines() or ["no message"])[-1]
            raise ResourceError(f"a child process ended with {child.returncode}: {last}", job, "")
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in said]


def _threads(processes: int) -> int:
    return max(1, torch.get_num_threads() // processes)


def start(session: Session) -> None:
    """How long the program and the package take to start, each in a fresh Python, in turn."""
    session.say("start: imports and --help")
    programs = {
        (names.IMPORT, names.OURS): ["-c", _IMPORT],
        ("import selkern and all its names, after torch", names.OURS): ["-c", _IMPORT_ALL],
        ("import torch", "torch"): ["-c", _IMPORT_TORCH],
        (names.HELP, names.OURS): ["-m", "selkern.cli", "--help"],
        ("python -c pass", "Python"): ["-c", "pass"],
    }
    found: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    rounds = session.rounds or 7
    for turn in range(rounds + 1):
        for key, words in programs.items():
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *words], env=environment(), capture_output=True, text=True, check=False
            )
            whole = time.perf_counter() - begin
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                session.found.lacks("start", f"{key[1]} ({key[0]})", last)
            elif turn or session.trial:  # the first one reads the files from the disk
                found[key].append(float(done.stdout) if words[1].startswith("import time") else whole)
        if session.trial:
            break
    for (quantity, variant), seconds in found.items():
        if not seconds:
            continue
        row = Row(
            workload="start",
            case=names.FRESH,
            quantity=quantity,
            variant=variant,
            unit="ms",
            samples=tuple(value * 1e3 for value in seconds),
        )
        session.found.rows.append(row)


def ddp(session: Session) -> None:
    """Training on one and on two processes (gloo), which share the same cores and the same batch, in turn."""
    batch, steps = (8, 2) if session.trial else (64, 20)
    found: dict[str, list[float]] = {"1 process": [], "2 processes": []}
    for turn in range(session.rounds or (1 if session.trial else 3)):
        for world, variant in enumerate(found, start=1):
            session.say(f"ddp: {variant}, round {turn + 1}")
            try:
                found[variant].append(_ranks(world, batch, steps))
            except (ResourceError, OSError) as error:
                session.found.lacks("ddp", variant, error)
    for variant, speeds in found.items():
        if speeds:
            row = Row(
                workload="ddp",
                case=f"sknet_mini, batch {batch} over all processes, {torch.get_num_threads()} threads over all",
                quantity=names.STEP,
                variant=variant,
                unit="steps/s",
                samples=tuple(speeds),
                against="1 process" if variant != "1 process" else "",
                more_is_better=True,
            )
            session.found.rows.append(row)


def _ranks(world: int, batch: int, steps: int) -> float:
    """Steps per second of `world` ranks."""
    with TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        settings = [
            {"rank": rank, "world": world, "batch": batch, "steps": steps, "meeting": meeting} for rank in range(world)
        ]
        loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
        return float(_run_children("ddp", settings, [loopback] * world)[0]["steps_per_s"])
